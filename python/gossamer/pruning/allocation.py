"""How much of each layer becomes zero, where layers do not all give the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch
from torch import Tensor

from ..formats.groups import row_chunks
from .arguments import above_zero, share

if TYPE_CHECKING:
    from .prune import Prune

_PARTS = ("block", "layer")


class Weighed(NamedTuple):
    """A weight, and what its inputs are.

    Attributes
    ----------
    weight : callable
        Gives the weight, shape (N, K), float32, bfloat16 or float16. Called twice.
    squares : Tensor
        E[x_k²] of the inputs, float32, shape (K,).
    """

    weight: Callable[[], Tensor]
    squares: Tensor


@dataclass(frozen=True)
class OWL:
    """Less sparsity where more weights stand out.

    Of the scores ``|w[n, k]| * sqrt(E[x_k²])`` of a block of the model, D is the share that is
    above `outlier` times their mean. A block gets the sparsity S - c (D - mean D): the mean over
    all weights is S, and c is such that the one that is farthest from S differs from it by
    `spread`.

    Parameters
    ----------
    outlier : float
        M: above this many times the mean a score stands out. Above 0.
    spread : float
        λ: no block is farther from the mean sparsity than this; nor below 0, nor above 1. In
        [0, 1].
    per : str
        "block": the layers of a block of the model get the same; "layer": each its own.

    Raises
    ------
    ValueError
        For a number or a name that does not exist.

    References
    ----------
    Yin et al., "Outlier Weighed Layerwise Sparsity (OWL): A Missing Secret Sauce for Pruning LLMs
    to High Sparsity", 2023.

    Examples
    --------
    >>> gs.Prune(0.7, method="wanda", allocation=gs.pruning.OWL(spread=0.1)).needs
    'squares'
    """

    name: ClassVar[str] = "owl"
    needs: ClassVar[str] = "squares"

    outlier: float = 5.0
    spread: float = 0.08
    per: str = "block"

    def __post_init__(self) -> None:
        above_zero("OWL", "outlier", self.outlier)
        share("OWL", "spread", self.spread)
        if self.per not in _PARTS:
            raise ValueError(f"OWL: per: got {self.per!r}, wanted {' or '.join(map(repr, _PARTS))}")


def layer_sparsity(
    prune: Prune, layers: Mapping[str, Weighed], blocks: Mapping[str, str] | None = None
) -> dict[str, float]:
    """The sparsity of each layer; their mean over all weights is that of `prune`.

    Parameters
    ----------
    prune : Prune
        With its allocation.
    layers : mapping of str to Weighed
        By name: the weight, given by a callable, and the squares of its inputs.
    blocks : mapping of str to str, optional
        The block of the model that each layer is in, by any name. A layer that is not in the
        mapping is a block by itself.

    Returns
    -------
    dict of str to float
        By layer, in [0, 1].

    Raises
    ------
    ValueError
        For weights or squares with NaN or infinity.

    Examples
    --------
    >>> even, peaked = torch.ones(8, 64), torch.ones(8, 64)
    >>> peaked[:, 0] = 20
    >>> layers = {"a": (lambda: even, torch.ones(64)), "b": (lambda: peaked, torch.ones(64))}
    >>> gs.pruning.layer_sparsity(gs.Prune(0.5, method="wanda", allocation="owl"), layers)
    {'a': 0.58, 'b': 0.42}
    """
    assert prune.sparsity is not None
    owl = prune.allocation_settings
    if owl is None or not layers:
        return dict.fromkeys(layers, prune.sparsity)
    groups: dict[str, list[str]] = {}
    for name in layers:
        inside = blocks and owl.per == "block"
        groups.setdefault(blocks.get(name, name) if blocks and inside else name, []).append(name)
    found = [_outliers(owl.outlier, {n: layers[n] for n in names}) for names in groups.values()]
    shares = torch.tensor([outliers / count for outliers, count in found], dtype=torch.float64)
    counts = torch.tensor([count for _, count in found], dtype=torch.float64)
    given = _spread(shares, counts, prune.sparsity, owl.spread).tolist()
    by_layer = {
        name: value for names, value in zip(groups.values(), given, strict=True) for name in names
    }
    return {name: by_layer[name] for name in layers}


def _spread(shares: Tensor, counts: Tensor, mean: float, spread: float) -> Tensor:
    """``mean - c * (shares - their mean)``, with the largest c for which none goes too far."""
    away = (shares * counts).sum() / counts.sum() - shares  # positive: sparser than the mean
    up, down = float(away.max()), -float(away.min())
    if up <= 0 or down <= 0:
        return torch.full_like(shares, mean)
    c = min(min(spread, 1 - mean) / up, min(spread, mean) / down)
    return (mean + c * away).clamp_(0, 1)  # beyond by rounding only


def _outliers(times: float, layers: Mapping[str, Weighed]) -> tuple[int, int]:
    """How many scores of all these layers are above `times` their mean, and of how many."""
    total, count = 0.0, 0
    for part in _scores(layers):
        total += float(part.sum(dtype=torch.float64))
        count += part.numel()
    limit = times * total / count
    return sum(int((part > limit).sum()) for part in _scores(layers)), count


def _scores(layers: Mapping[str, Weighed]) -> Iterator[Tensor]:
    """The scores of some rows at a time."""
    for name, (weight, squares) in layers.items():
        W, roots = weight(), squares.float().sqrt()
        for rows in row_chunks(*W.shape):
            part = W[rows].float().abs() * roots
            if not bool(part.isfinite().all()):
                raise ValueError(
                    f"layer_sparsity: layers: the weight or the squares of {name!r} hold NaN, "
                    "infinity or negative squares"
                )
            yield part
