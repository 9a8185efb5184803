"""gs.Prune: how many weights become zero, where they are looked for, and by which method."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from .. import _check
from ..calibration.statistics import Statistics
from ..formats.grids import Grid
from ..formats.groups import finite_matrix, row_chunks
from .allocation import OWL
from .arguments import share
from .magnitude import Magnitude
from .patterns import BLOCKS, block_keys, over_weights, parse_n_of_m
from .pruned import Pruned
from .selecting import Cut, common_cuts, keep_above, keep_largest
from .sparsegpt import SparseGPT
from .wanda import Wanda

Method: TypeAlias = Magnitude | Wanda | SparseGPT
METHODS: dict[str, type[Method]] = {kind.name: kind for kind in (Magnitude, Wanda, SparseGPT)}
ALLOCATIONS: dict[str, type[OWL]] = {OWL.name: OWL}
UNIFORM = "uniform"
_NEEDS = ("nothing", "squares", "moment")  # each includes those before it


@dataclass(frozen=True)
class Prune:
    """Set those weights to zero that matter least.

    Parameters
    ----------
    sparsity : float, optional
        Share of the weights that become zero, in [0, 1]: ``round(sparsity * n)`` of n. None with a
        pattern N:M only, which says it.
    scope : str, optional
        Where the least are looked for: "global": in all pruned layers together, so that each layer
        ends with a share of its own; "layer": in each weight by itself; "row": in each output
        channel, which keeps the work of all rows the same. None: "global" for magnitude ("layer"
        with an allocation), "row" for wanda, "layer" for sparsegpt, which has no "global".
    pattern : str, optional
        None: each weight by itself. "2:4", or any "N:M": of M consecutive input features, counted
        from the first, N stay; `scope` has no meaning then. "1x4", "4x1", "1x16", "16x1": blocks of
        output channels x input features, by the L2 norm of their scores; `sparsity` counts blocks,
        and a row of blocks takes the place of a row.
    method : str or settings
        What matters: "magnitude": the magnitude of a weight; "wanda": times that of its inputs;
        "sparsegpt": what its zero costs after the others have made up for it, as they then do. Or
        ``gs.pruning.SparseGPT(damping=0.1)``. All but "magnitude" need a calibration.
    allocation : str or settings
        "uniform": the same sparsity for all layers. "owl": less where more weights stand out; or
        ``gs.pruning.OWL(spread=0.05)``. Needs a calibration; not for N:M and the scope "global".

    Raises
    ------
    ValueError
        For a number, scope, pattern, method or allocation that does not exist, or does not go
        with the others.

    Notes
    -----
    Of equal weights the first stay, in the order of the layers and of their rows. Input features
    of a convolution are in the order (height, width, channel), as in its packed weight.

    References
    ----------
    Han et al., "Learning both Weights and Connections for Efficient Neural Networks", 2015. The
    other methods name theirs.

    Examples
    --------
    >>> gs.Prune(0.8)
    Prune(sparsity=0.8, scope='global', pattern=None, method='magnitude', allocation='uniform')
    >>> gs.Prune(pattern="2:4", method="wanda").sparsity
    0.5
    """

    sparsity: float | None = None
    scope: str | None = None
    pattern: str | None = None
    method: str | Method = "magnitude"
    allocation: str | OWL = UNIFORM

    def __post_init__(self) -> None:
        _check_setting("method", self.method, METHODS, tuple(METHODS))
        _check_setting("allocation", self.allocation, ALLOCATIONS, (UNIFORM, *ALLOCATIONS))
        self._set_scope()
        self._set_sparsity()
        if self.allocation_settings and (self.scope == "global" or self.n_of_m):
            what = "pattern N:M" if self.n_of_m else "scope 'global'"
            raise ValueError(
                f"Prune: allocation: got {self.allocation!r} with a {what}, which says the "
                "sparsity of each layer"
            )

    def _set_scope(self) -> None:
        scopes = self.method_settings.scopes
        if self.scope is None:
            first = scopes[1] if self.allocation_settings and scopes[0] == "global" else scopes[0]
            object.__setattr__(self, "scope", first)
        elif self.scope not in scopes:
            raise ValueError(
                f"Prune: scope: got {self.scope!r}, wanted one of {', '.join(scopes)} for "
                f"{self.method_settings.name}"
            )

    def _set_sparsity(self) -> None:
        ratio = self.n_of_m
        if ratio is None:
            if self.pattern not in (None, *BLOCKS):
                wanted = ", ".join(BLOCKS)
                raise ValueError(
                    f"Prune: pattern: got {self.pattern!r}, wanted N:M or one of {wanted}"
                )
            share("Prune", "sparsity", self.sparsity)
            return
        implied = 1 - ratio[0] / ratio[1]
        if self.sparsity not in (None, implied):
            raise ValueError(
                f"Prune: sparsity: got {self.sparsity}, wanted None or {implied:g}, which "
                f"{self.pattern} says"
            )
        object.__setattr__(self, "sparsity", implied)

    @property
    def method_settings(self) -> Method:
        """The settings of the method, which may have been given by its name."""
        return METHODS[self.method]() if isinstance(self.method, str) else self.method

    @property
    def allocation_settings(self) -> OWL | None:
        """The settings of the allocation; None: all layers get the same."""
        if isinstance(self.allocation, str):
            return None if self.allocation == UNIFORM else ALLOCATIONS[self.allocation]()
        return self.allocation

    @property
    def needs(self) -> str:
        """What has to be known of inputs: "nothing", "squares" (E[x²]) or "moment" (E[x xᵀ])."""
        allocation = self.allocation_settings
        both = self.method_settings.needs, allocation.needs if allocation else "nothing"
        return max(both, key=_NEEDS.index)

    @property
    def n_of_m(self) -> tuple[int, int] | None:
        """(N, M) of a pattern N:M; None for others."""
        return parse_n_of_m(self.pattern)

    @property
    def block(self) -> tuple[int, int]:
        """Output channels and input features of a block; (1, 1) without blocks."""
        return BLOCKS.get(self.pattern or "", (1, 1))

    def apply(
        self,
        W: Tensor,
        statistics: Statistics | None = None,
        *,
        sparsity: float | None = None,
        cut: Cut | None = None,
        grid: Grid | None = None,
    ) -> Pruned:
        """Prune the weight of one layer.

        Parameters
        ----------
        W : Tensor
            Shape (N, K), float32, bfloat16 or float16.
        statistics : Statistics, optional
            Of the inputs of the layer, with what :attr:`needs` says.
        sparsity : float, optional
            In the place of that of the settings: what :func:`layer_sparsity` gave.
        cut : Cut, optional
            Of the scope "global": what :meth:`cuts` gave for the scores of this layer. Without it
            the layer is taken as the only one.
        grid : Grid, optional
            What the weights that stay will be rounded to, which "sparsegpt" takes account of.

        Returns
        -------
        Pruned
            The values, and which of them stay.

        Raises
        ------
        ValueError
            For NaN or infinity, statistics that are missing, or a grid that the method has no use
            for.

        Examples
        --------
        >>> W = torch.tensor([[1.0, -4.0, 2.0, 3.0]])
        >>> gs.Prune(0.5).apply(W).values
        tensor([[ 0., -4.,  0.,  3.]])
        """
        W = finite_matrix("Prune", W)
        prune = self if sparsity is None else self._with_sparsity(sparsity)
        method = self.method_settings
        if isinstance(method, SparseGPT):
            return method.prune(W, statistics, prune, grid)
        if grid is not None:
            raise ValueError(f"Prune: grid: {method.name} does not round; wanted None")
        scores = self.scores(W, statistics)
        keep = prune.mask(scores, cut or prune.cuts([lambda: scores])[0])
        return Pruned(W.float().masked_fill(~keep, 0), keep)

    def scores(self, W: Tensor, statistics: Statistics | None = None) -> Tensor:
        """How much each weight matters, which :meth:`cuts` and :meth:`mask` take.

        Parameters
        ----------
        W : Tensor
            Shape (N, K), float32, bfloat16 or float16.
        statistics : Statistics, optional
            Of the inputs of the layer; "wanda" needs its squares.

        Returns
        -------
        Tensor
            Shape (N, K); the magnitudes count.

        Raises
        ------
        ValueError
            For "sparsegpt", which finds them while it changes the weight.
        """
        method = self.method_settings
        if isinstance(method, SparseGPT):
            raise ValueError("Prune: scores: sparsegpt has none before its updates; use apply()")
        return method.scores(W, statistics)

    def cuts(
        self, weights: Sequence[Callable[[], Tensor]], advance: Callable[[int], None] | None = None
    ) -> list[Cut | None]:
        """What all weights have to say to which of each stay; nothing is changed.

        Parameters
        ----------
        weights : sequence of callables
            Each gives a weight of shape (N, K), float32, bfloat16 or float16, or the scores that
            the method has for it; they are called twice, one after the other.
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
            Shape (N, K): the weight, or the scores that the method has for it.
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

    def _with_sparsity(self, sparsity: float) -> Prune:
        return replace(self, sparsity=sparsity, allocation=UNIFORM)

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


def _check_setting(
    name: str, value: object, kinds: Mapping[str, type], names: tuple[str, ...]
) -> None:
    """The argument must be one of these names, or settings of one of these kinds."""
    known = value in names if isinstance(value, str) else type(value) in kinds.values()
    if not known:
        raise ValueError(
            f"Prune: {name}: got {_check.describe(value)}, wanted one of {', '.join(names)}, or "
            "settings"
        )
