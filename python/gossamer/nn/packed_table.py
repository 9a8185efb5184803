"""What the embeddings share: a packed table, of their own or of an output head."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from .. import _check
from ..formats import FORMATS, Format
from .linear import Linear
from .named_weights import NamedWeight
from .weight import PackedWeight


class PackedTable(torch.nn.Module):
    """Rows of a packed weight Ŵ of shape (num_embeddings, embedding_dim).

    The weight is a child of its own, ``table``, or that of a :class:`Linear` elsewhere in the
    model, the output head: then the head saves, moves and copies it, and both read the same bytes.

    Parameters
    ----------
    num_embeddings : int
        N, rows of the table.
    embedding_dim : int
        K, values of each row.
    weight : Format or Linear
        The table, or the layer whose weight it is.
    padding_idx : int, optional
        As of the class of torch; negative ones count from the end.
    dtype : torch.dtype
        Of the output, where `weight` is a Format; that of the layer otherwise.
    """

    _version = 1

    num_embeddings: int
    embedding_dim: int
    padding_idx: int | None

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        weight: Format | Linear,
        padding_idx: int | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        shape = (num_embeddings, embedding_dim)
        found = weight_shape(weight)
        if found != shape:
            got = _check.describe(weight) if found is None else f"shape {found}"
            raise (TypeError if found is None else ValueError)(
                f"{self._kind}: weight: got {got}, wanted a format of shape {shape}, such as "
                "gs.formats.Int8.quantize(W); for a dense module use from_dense"
            )
        self.num_embeddings, self.embedding_dim = shape
        self.padding_idx = self._from_start(padding_idx)
        self._tied: tuple[Linear, ...] = ()  # in a tuple, a module is no child
        if not isinstance(weight, Linear):
            weight = NamedWeight(embedding_dim, num_embeddings, weight=weight, dtype=dtype)
        if isinstance(weight, NamedWeight):
            self.table = weight
        else:
            self._tied = (weight,)

    @property
    def weight(self) -> Tensor:
        """The table as a tensor, expanded where its values are read."""
        if torch.compiler.is_compiling():
            return self.dequantize(self.dtype)
        weight = PackedWeight(self.packed, (self.num_embeddings, self.embedding_dim), self.dtype)
        # transformers' tie_weights() takes it from here, if it is a Parameter, and gives it to the
        # head, which has it already.
        weight._is_param = bool(self._tied)
        return weight

    @property
    def packed(self) -> Tensor:
        """The packed table, uint8 [bytes]."""
        return self._holder.packed

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the output; ``.to(dtype)`` changes it."""
        return self._holder.dtype

    @property
    def format(self) -> str:
        """Name of the format."""
        return self._holder.format

    @property
    def group_size(self) -> int | None:
        """Values along a row that share a scale."""
        return self._holder.group_size

    @property
    def weight_error(self) -> float | None:
        """``|W - Ŵ| / |W|`` (Frobenius), where it was made from a dense table."""
        return self._holder.weight_error

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The table as a new dense tensor.

        Parameters
        ----------
        dtype : torch.dtype
            Dtype of the result.

        Returns
        -------
        Tensor
            Shape (num_embeddings, embedding_dim).
        """
        return self._holder.dequantize(dtype)

    def quantized(self) -> Format:
        """The canonical tensors of the table.

        Returns
        -------
        Format
            Newly unpacked.
        """
        return self._holder.quantized()

    def extra_repr(self) -> str:
        """The settings, for ``repr``.

        Returns
        -------
        str
            Without those that have their usual value.
        """
        text = f"{self.num_embeddings}, {self.embedding_dim}"
        if self.padding_idx is not None:
            text += f", padding_idx={self.padding_idx}"
        text += f", format={self.format}"
        if self.group_size is not None:
            text += f", group_size={self.group_size}"
        return text + ", tied" * len(self._tied)

    @property
    def _kind(self) -> str:
        return type(self).__name__

    @property
    def _holder(self) -> Linear:
        return self._tied[0] if self._tied else self.table

    def _from_start(self, padding_idx: int | None) -> int | None:
        N = self.num_embeddings
        if padding_idx is None:
            return None
        if not -N <= padding_idx < N:
            raise ValueError(
                f"{self._kind}: padding_idx: got {padding_idx}, wanted {-N} to {N - 1}"
            )
        return padding_idx % N

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "weight":
            if isinstance(value, PackedWeight) and value._packed is self.packed:
                return  # tied to what it is tied to already
            raise AttributeError(
                f"{self._kind}: weight: is packed and cannot be assigned; make a new module with "
                "from_dense, or use load_state_dict"
            )
        super().__setattr__(name, value)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PackedTable:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for head in self._tied:
            head._apply(fn)
        return self

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        for name, tensor in self.quantized().state().items():
            destination[prefix + name] = tensor

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        self._holder._take_weight(state_dict, prefix, missing_keys, error_msgs)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )


def weight_shape(weight: object) -> tuple[int, int] | None:
    """(N, K) of a format or a packed layer; None for anything else."""
    if isinstance(weight, Linear):
        return weight.out_features, weight.in_features
    return weight.shape if type(weight) in FORMATS.values() else None  # type: ignore[attr-defined]


def dense_table(module: torch.nn.Module, kind: type[torch.nn.Module], function: str) -> Tensor:
    """The weight of an nn.Embedding or nn.EmbeddingBag that does nothing but look rows up."""
    if not isinstance(module, kind) or type(module).forward is not kind.forward:
        raise TypeError(
            f"{function}: got {type(module).__name__}, wanted nn.{kind.__name__} with the forward "
            "of that class"
        )
    if module.max_norm is not None:
        raise ValueError(
            f"{function}: max_norm: got {module.max_norm}; a lookup would write to the weight, "
            "which is packed. Normalize the rows once and set max_norm to None"
        )
    weight = module.weight
    _check.floating(function, "weight", weight)
    return weight.detach()
