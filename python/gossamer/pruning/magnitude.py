"""Pruning by magnitude: the smallest weights become zero."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..formats.groups import dense_matrix, refuse_rows, row_chunks
from .patterns import BLOCKS, block_keys, over_weights, parse_n_of_m
from .selecting import Cut, common_cuts, keep_above, keep_largest

SCOPES = ("global", "layer", "row")


@dataclass(frozen=True)
class Prune:
    """Set the weights of the smallest magnitude to zero.

    Parameters
    ----------
    sparsity : float, optional
        Share of the weights that become zero, in [0, 1]: ``round(sparsity * n)`` of n. None with a
        pattern N:M only, which says it.
    scope : str
        Where the smallest are looked for: "global": in all pruned layers together, so that each
        layer ends with a share of its own; "layer": in each weight by itself; "row": in each output
        channel, which keeps the work of all rows the same.
    pattern : str, optional
        None: each weight by itself. "2:4", or any "N:M": of M consecutive input features, counted
        from the first, the N largest stay; `scope` has no meaning then. "1x4", "4x1", "1x16",
        "16x1": blocks of output channels x input features, by their L2 norm; `sparsity` counts
        blocks, and a row of blocks takes the place of a row.

    Raises
    ------
    ValueError
        For a number, scope or pattern that does not exist.

    Notes
    -----
    Of equal magnitudes the first stay, in the order of the layers and of their rows. Input features
    of a convolution are in the order (height, width, channel), as in its packed weight.

    References
    ----------
    Han et al., "Learning both Weights and Connections for Efficient Neural Networks", 2015.

    Examples
    --------
    >>> gs.Prune(0.8)
    Prune(sparsity=0.8, scope='global', pattern=None)
    >>> gs.Prune(pattern="2:4").sparsity
    0.5
    """

    sparsity: float | None = None
    scope: str = "global"
    pattern: str | None = None

    def __post_init__(self) -> None:
        if self.scope not in SCOPES:
            wanted = ", ".join(SCOPES)
            raise ValueError(f"Prune: scope: got {self.scope!r}, wanted one of {wanted}")
        ratio = self.n_of_m
        if ratio is None and self.pattern not in (None, *BLOCKS):
            wanted = ", ".join(BLOCKS)
            raise ValueError(f"Prune: pattern: got {self.pattern!r}, wanted N:M or one of {wanted}")
        sparsity: object = self.sparsity
        if ratio is not None:
            implied = 1 - ratio[0] / ratio[1]
            if sparsity not in (None, implied):
                raise ValueError(
                    f"Prune: sparsity: got {sparsity}, wanted None or {implied:g}, which "
                    f"{self.pattern} says"
                )
            object.__setattr__(self, "sparsity", implied)
        elif isinstance(sparsity, bool) or not isinstance(sparsity, int | float):
            raise ValueError(f"Prune: sparsity: got {sparsity!r}, wanted a number in [0, 1]")
        elif not 0 <= sparsity <= 1:
            raise ValueError(f"Prune: sparsity: got {sparsity}, wanted a number in [0, 1]")

    @property
    def n_of_m(self) -> tuple[int, int] | None:
        """(N, M) of a pattern N:M; None for others."""
        return parse_n_of_m(self.pattern)

    @property
    def block(self) -> tuple[int, int]:
        """Output channels and input features of a block; (1, 1) without blocks."""
        return BLOCKS.get(self.pattern or "", (1, 1))

    def cuts(
        self, weights: Sequence[Callable[[], Tensor]], advance: Callable[[int], None] | None = None
    ) -> list[Cut | None]:
        """What all weights have to say to which of each stay; nothing is changed.

        Parameters
        ----------
        weights : sequence of callables
            Each gives a weight of shape (N, K), float32, bfloat16 or float16; they are called
            twice, one after the other.
        advance : callable, optional
            Told the number of weights that were looked at.

        Returns
        -------
        list of Cut or None
            For :meth:`mask`, one for each weight; None where it needs nothing.
        """
        if self.scope == "row" or self.n_of_m is not None:
            return [None] * len(weights)
        readers = [partial(self._keys_of, weight) for weight in weights]
        assert self.sparsity is not None
        if self.scope == "global":
            return list(common_cuts(readers, self.sparsity, advance))
        return [common_cuts([reader], self.sparsity, advance)[0] for reader in readers]

    def mask(self, W: Tensor, cut: Cut | None) -> Tensor:
        """Which weights stay.

        Parameters
        ----------
        W : Tensor
            Shape (N, K).
        cut : Cut or None
            What :meth:`cuts` gave for it.

        Returns
        -------
        Tensor
            bool, shape (N, K).
        """
        mask = torch.empty(W.shape, dtype=torch.bool)
        rows, seen = 0, 0
        for keys in self._keys(W):
            if cut is not None:
                keep, seen = keep_above(keys, cut, seen)
            else:
                keep = self._keep_by_row(keys)
            part = over_weights(keep, self.block)
            last = min(rows + len(part), len(W))
            mask[rows:last] = part[: last - rows, : W.shape[1]]
            rows = last
        return mask

    def _keys_of(self, weight: Callable[[], Tensor]) -> Iterator[Tensor]:
        return self._keys(weight())

    def _keys(self, W: Tensor) -> Iterator[Tensor]:
        """Magnitudes of weights or blocks as ordered integers, some rows at a time."""
        N, K = W.shape
        chunks = row_chunks(N, K, multiple=self.block[0])
        return (block_keys(W[rows], self.block) for rows in chunks)

    def _keep_by_row(self, keys: Tensor) -> Tensor:
        rows, columns = keys.shape
        if self.n_of_m is None:
            assert self.sparsity is not None
            return keep_largest(keys, columns - round(self.sparsity * columns))
        N, M = self.n_of_m
        padded = torch.nn.functional.pad(keys, (0, -columns % M), value=-1)
        return keep_largest(padded.view(-1, M), N).view(rows, -1)[:, :columns]


def magnitude_mask(
    W: Tensor | np.ndarray[Any, Any],
    sparsity: float | None = None,
    scope: str = "layer",
    pattern: str | None = None,
) -> Tensor:
    """Which weights of one matrix stay when the smallest become zero.

    Parameters
    ----------
    W : Tensor or ndarray
        Shape (N, K), float32, bfloat16, float16 or float64 (compared as float32).
    sparsity, scope, pattern : float, str, str
        As of :class:`Prune`; "global" is the same as "layer".

    Returns
    -------
    Tensor
        bool, shape (N, K): True where the weight stays.

    Raises
    ------
    ValueError
        For settings that do not exist, a `W` with NaN, or one that is not a matrix.

    Examples
    --------
    >>> W = torch.tensor([[1.0, -4.0, 2.0, 3.0], [8.0, 7.0, -6.0, 5.0]])
    >>> gs.pruning.magnitude_mask(W, 0.5).int()
    tensor([[0, 0, 0, 0],
            [1, 1, 1, 1]], dtype=torch.int32)
    >>> gs.pruning.magnitude_mask(W, pattern="2:4").int()
    tensor([[0, 1, 0, 1],
            [1, 1, 0, 0]], dtype=torch.int32)
    """
    prune = replace(Prune(sparsity, scope, pattern), scope="row" if scope == "row" else "layer")
    W = dense_matrix("magnitude_mask", W)
    refuse_rows("magnitude_mask", ~W.isnan().any(1))
    return prune.mask(W, prune.cuts([lambda: W])[0])
