"""What every sparse format offers: packing, parts along N, and saving."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from .. import _check, _ops_packing
from ..sparse_choice import (
    PATTERNS,
    USUAL_BATCH,
    Batch,
    SparseChoice,
    SparseKind,
    check_batch,
    check_name,
    check_parts,
    choose,
)
from .groups import check_kinds, fitting_group_size
from .sparse_tensors import SparseTensors

_Weight = TypeVar("_Weight", bound="Sparse")


@dataclass(frozen=True, eq=False)
class Sparse(SparseTensors):
    """A sparse weight that is packed for the kernels; :class:`SparseTensors` has the parameters."""

    @property
    def nbytes(self) -> int:
        """Bytes of what ``pack()`` gives: masks, values, offsets, scales, padding and header."""
        kind = self.activation_kinds[0]
        source, pattern, parts = self._layout(kind, USUAL_BATCH, None, None)
        return source.packed_bytes(pattern, parts)

    @property
    def bits_per_weight(self) -> float:
        """Bits of the packed weight, everything included, for each of its N * K weights."""
        N, K = self.shape
        return 8 * self.nbytes / (N * K)

    @property
    def settings(self) -> dict[str, Any]:
        """What ``quantize`` must be told, beside the group size, for another weight like this."""
        return {}

    # --- packed ---

    def choice(
        self,
        batch: Batch = USUAL_BATCH,
        activations: str | None = None,
        pattern: str | None = None,
        isa: str | None = None,
    ) -> SparseChoice:
        """How :meth:`pack` lays the weight out, and whether the dense format would be faster.

        Parameters
        ----------
        batch, activations, pattern
            As of :meth:`pack`.
        isa : str, optional
            A name of ``gs.cpu``, of this processor or another; None: ``gs.cpu.isa()``.

        Returns
        -------
        SparseChoice
            With a reason.
        """
        function = f"{type(self).__name__}.choice"
        kind = _check.activations(function, activations, self.activation_kinds)
        found = (
            check_name(function, "pattern", pattern, PATTERNS) or self._source(kind).best_pattern()
        )
        return choose(self._kind(kind, found), batch, isa)

    def pack(
        self,
        activations: str | None = None,
        *,
        batch: Batch = USUAL_BATCH,
        pattern: str | None = None,
        parts: tuple[str, ...] | None = None,
    ) -> Tensor:
        """Lay the weight out for the kernels.

        Parameters
        ----------
        activations : str, optional
            What the kernels do to x, one of ``activation_kinds``: "int8" rounds each row,
            "int8-group" each group of G in a row with a scale of its own, "exact" multiplies x as
            it is. None takes the first.
        batch : int, "large" or a tuple of these
            How many rows x will have.
        pattern : str, optional
            The blocks that share a bit: "any" (none do), "1x4", "1x16" (4 or 16 along K), "4x1"
            or "16x1" (4 or 16 along N). None takes what needs the fewest bytes.
        parts : tuple of str, optional
            "bitmask", which zeros are expanded from, and "spmm", which skips them. None takes what
            is fastest for `batch` (:meth:`choice`).

        Returns
        -------
        Tensor
            Shape (bytes,), uint8. One layout serves every x86 ISA.

        Raises
        ------
        ValueError
            Where an argument is not one of those, or the format has no part "spmm" for these
            activations and groups.
        """
        function = f"{type(self).__name__}.pack"
        kind = _check.activations(function, activations, self.activation_kinds)
        check_batch(function, batch)
        check_name(function, "pattern", pattern, PATTERNS)
        parts = check_parts(function, parts)
        source, pattern, parts = self._layout(kind, batch, pattern, parts)
        return source.pack(pattern, parts)

    def _layout(
        self, activations: str, batch: Batch, pattern: str | None, parts: tuple[str, ...] | None
    ) -> tuple[_ops_packing.SparseSource, str, tuple[str, ...]]:
        source = self._source(activations)
        pattern = pattern or source.best_pattern()
        kind = self._kind(activations, pattern)
        if parts is not None and "spmm" in parts and not kind.has_spmm:
            raise ValueError(
                f"{type(self).__name__}.pack: parts: got {parts}, but zeros are skipped only in "
                "sparse-fp32, and in sparse-int8 per channel with int8 activations"
            )
        return source, pattern, parts or choose(kind, batch).parts

    def _source(self, activations: str) -> _ops_packing.SparseSource:
        return _ops_packing.SparseSource(
            self.name,
            self.shape,
            self.group_size,
            activations,
            self.mask,
            self.values,
            self.nnz,
            self.scales,
        )

    def _kind(self, activations: str, pattern: str) -> SparseKind:
        return SparseKind(self.name, self.sparsity, self.group_size, activations, pattern)

    @classmethod
    def unpack(cls: type[_Weight], packed: Tensor) -> _Weight:
        """Undo :meth:`pack`, exactly.

        Parameters
        ----------
        packed : Tensor
            Shape (bytes,), uint8, from :meth:`pack`.

        Returns
        -------
        Sparse
            The canonical tensors, newly allocated.

        Raises
        ------
        TypeError, ValueError
            Where the bytes are not a packed weight of this format and layout, or their masks and
            offsets contradict each other.
        """
        found = _ops_packing.sparse_unpack(packed, cls.name, bool(cls.scale_dtypes))
        return cls(found.mask, found.values, found.scales, found.group_size, found.in_features)

    # --- parts along N ---

    def rows(self: _Weight, first: int, last: int) -> _Weight:
        """Some of the output channels.

        Parameters
        ----------
        first, last : int
            The rows [first, last), within [0, N].

        Returns
        -------
        Sparse
            Of shape (last - first, K), in tensors of its own.
        """
        single = self._single(int(self._starts[first]), int(self._starts[last])).clone()
        scales = None if self.scales is None else self.scales[first:last].clone()
        mask = self.mask[first:last].clone()
        return replace(self, mask=mask, values=self._stored(single), scales=scales)

    @classmethod
    def cat(cls: type[_Weight], weights: Sequence[_Weight]) -> _Weight:
        """Join weights along N.

        Parameters
        ----------
        weights : sequence
            Of this format, with the same K, group size and dtype of the scales.

        Returns
        -------
        Sparse
            The rows of the first, then those of the second, and so on, in tensors of its own.

        Raises
        ------
        ValueError
            Where they differ.
        """
        scales = [weight.scales for weight in weights if weight.scales is not None]
        kinds = [
            (w.in_features, w.group_size, None if w.scales is None else w.scales.dtype)
            for w in weights
        ]
        check_kinds(f"{cls.__name__}.cat", kinds, "in_features, group sizes and scale dtypes")
        return replace(
            weights[0],
            mask=torch.cat([weight.mask for weight in weights]),
            values=cls._stored(torch.cat([weight._single(0, weight.nnz) for weight in weights])),
            scales=torch.cat(scales) if scales else None,
        )

    # --- saved ---

    def state(self) -> dict[str, Tensor]:
        """The tensors that a ``state_dict`` holds, by name.

        Returns
        -------
        dict of str to Tensor
            ``weight_mask``; ``weight``, the values; and, where there are any, ``weight_scale``.
        """
        scales = {} if self.scales is None else {"weight_scale": self.scales}
        return {"weight_mask": self.mask, "weight": self.values, **scales}

    @classmethod
    def from_state(
        cls: type[_Weight],
        state: Mapping[str, Tensor],
        group_size: int | None = None,
        in_features: int | None = None,
    ) -> _Weight:
        """Undo :meth:`state`.

        Parameters
        ----------
        state : mapping of str to Tensor
            Tensors by the names of ``state_names``.
        group_size : int, optional
            The group size to take where the number of scales allows several.
        in_features : int, optional
            K; None takes eight for each byte of a row of the mask.

        Returns
        -------
        Sparse
            The weight; its tensors are those of `state`.

        Raises
        ------
        TypeError, ValueError
            Where dtypes or shapes do not fit together.
        """
        mask, scales = state["weight_mask"], state.get("weight_scale")
        if mask.dim() == 2 and scales is not None and scales.dim() == 2:
            K = in_features or 8 * mask.shape[1]
            group_size = fitting_group_size(K, scales.shape[1], group_size, cls.group_sizes)
        return cls(mask, state["weight"], scales, group_size, in_features)
