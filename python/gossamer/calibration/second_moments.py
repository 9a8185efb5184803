"""The second moments of what layers are given, from a few batches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .. import _check
from .._progress import Progress
from ..nn.linear import is_conv1d
from .batches import Batches, call, evaluating, sized

_ROWS = 4096  # of x in one float32 product; products are added in float64
_FUNCTION = "second_moments"


def second_moments(
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    batches: Batches,
    progress: bool | None = None,
) -> dict[str, Tensor]:
    """E[x xᵀ] of the inputs x of some modules, while the model runs over batches.

    The mean is over all rows of x: all leading dimensions of all calls, so that of tokens that are
    padding too. A convolution is taken as a layer over channels: its rows are the pixels of its
    input, of which a 1x1 convolution sees those that its stride leaves.

    Parameters
    ----------
    model : nn.Module
        Is run in eval mode and without gradients. Each module then has the mode that it had.
    modules : mapping of str to nn.Module
        By name, as errors call them: ``nn.Linear``, the ``Conv1D`` of transformers, or
        ``nn.Conv2d``, in the model.
    batches : iterable
        Each a tensor, a tuple or list of arguments, or a dict of keyword arguments. One that has no
        ``len()`` is read into a list first.
    progress : bool, optional
        Show a bar on stderr: True, False, or where it is a terminal, after a second (None).

    Returns
    -------
    dict of str to Tensor
        By name, float32 of shape (K, K), symmetric, K being the input features (channels). Modules
        that always get the same tensor, such as q, k and v, have one tensor between them.

    Raises
    ------
    ValueError
        Without a batch; where a module is never called; for NaN or infinity in an input.
    TypeError
        For a module or a batch of another kind.

    Notes
    -----
    Products of up to 4096 rows are float32, their sums float64: 12 K² bytes for each different
    input while the model runs. An input that several modules get is multiplied once.

    Examples
    --------
    >>> from gossamer.calibration import second_moments
    >>> layer = torch.nn.Linear(2, 3)
    >>> x = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
    >>> second_moments(torch.nn.Sequential(layer), {"0": layer}, [x])["0"]
    tensor([[5., 1.],
            [1., 2.]])
    """
    for name, module in modules.items():
        if not (isinstance(module, nn.Linear | nn.Conv2d) or is_conv1d(module)):
            raise TypeError(
                f"{_FUNCTION}: modules: {name!r} is {type(module).__name__}, wanted nn.Linear, "
                "Conv1D or nn.Conv2d"
            )
    found = sized(_FUNCTION, batches)
    sums = _Sums()
    hooks = []
    try:
        for name, module in modules.items():
            hook = _hook(sums, name)
            hooks.append(module.register_forward_pre_hook(hook, with_kwargs=True))
        with (
            evaluating(model),
            torch.no_grad(),
            Progress("calibrating", len(found), progress) as shown,
        ):
            for batch in found:
                call(_FUNCTION, model, batch)
                sums.close()
                shown.advance(1)
    finally:
        for handle in hooks:
            handle.remove()
    return sums.means(modules)


def _hook(sums: _Sums, name: str) -> Any:
    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = args[0] if args else next(iter(kwargs.values()))
        sums.add(name, module, x)

    return before


class _Sums:
    """Sums of x xᵀ. Each is kept for the set of modules that all have seen these x."""

    def __init__(self) -> None:
        self._sums: dict[frozenset[str], tuple[Tensor, int]] = {}  # x xᵀ in float64, rows
        self._x: Tensor | None = None  # the last input
        self._version = -1  # tells whether it was written to since
        self._product: Tensor | None = None  # of it
        self._rows = 0
        self._names: set[str] = set()  # who got it

    def add(self, name: str, module: nn.Module, x: Tensor) -> None:
        """Count one input of one module."""
        version = -1 if x.is_inference() else x._version
        same = x is self._x and version == self._version != -1
        # A convolution may see a part of the same tensor only.
        if same and name not in self._names and not isinstance(module, nn.Conv2d):
            self._names.add(name)
            return
        self.close()
        rows = _rows(module, x)
        self._product, self._rows = _product(rows), len(rows)
        self._names = {name}
        self._x, self._version = (None if isinstance(module, nn.Conv2d) else x), version
        if not self._product.diagonal().isfinite().all():
            raise ValueError(
                f"{_FUNCTION}: the input of {name!r} holds NaN or infinity, or numbers whose "
                "squares are beyond float32"
            )

    def close(self) -> None:
        """Add the last product to the sum of those who got its input."""
        if self._product is not None:
            key = frozenset(self._names)
            before = self._sums.get(key)
            if before is None:
                self._sums[key] = self._product.double(), self._rows
            else:
                self._sums[key] = before[0].add_(self._product), before[1] + self._rows
        self._x = self._product = None

    def means(self, names: Mapping[str, nn.Module]) -> dict[str, Tensor]:
        """The means over all rows, by module; the sums are freed."""
        rows = dict.fromkeys(names, 0)
        for key, (_, count) in self._sums.items():
            for name in key:
                rows[name] += count
        for name, count in rows.items():
            if count == 0:
                raise ValueError(
                    f"{_FUNCTION}: {name!r} was given no row of x in all of the calibration: the "
                    "model does not call it for these batches"
                )
        totals: dict[str, Tensor] = {}
        while self._sums:
            key, (total, count) = self._sums.popitem()
            # Those that have no other sum share one tensor.
            alone = [name for name in key if rows[name] == count]
            mean = _symmetric(total.div(count)) if alone else total
            totals.update(dict.fromkeys(alone, mean))
            for name in key.difference(alone):
                part = total / rows[name]
                totals[name] = totals[name].add_(part) if name in totals else part
        return {
            name: total if total.dtype is torch.float32 else _symmetric(total)
            for name, total in ((name, totals[name]) for name in names)
        }


def _symmetric(total: Tensor) -> Tensor:
    """In float32; products of float32 are symmetric up to rounding only."""
    return total.add(total.T).div_(2).float()


def _rows(module: nn.Module, x: Tensor) -> Tensor:
    """The rows of x that a layer multiplies with its weight: [M, K]."""
    if not isinstance(module, nn.Conv2d):
        return x.detach().reshape(-1, x.shape[-1])
    if all(size == 1 for size in module.kernel_size) and not any(_padding(module)):
        x = x[..., :: module.stride[0], :: module.stride[1]]
    return x.detach().movedim(-3, -1).reshape(-1, x.shape[-3])


def _padding(module: nn.Conv2d) -> tuple[int, ...]:
    return (0, 0) if isinstance(module.padding, str) else module.padding


def _product(x: Tensor) -> Tensor:
    """Σ x xᵀ over the rows: float32 of up to 4096 rows, else float64."""
    if x.is_complex() or not x.is_floating_point():
        raise TypeError(f"{_FUNCTION}: got {_check.describe(x)} as an input, wanted floats")
    total = _gram(x[:_ROWS])
    for first in range(_ROWS, len(x), _ROWS):
        total = total.double().add_(_gram(x[first : first + _ROWS]))
    return total


def _gram(x: Tensor) -> Tensor:
    x = x if x.dtype is torch.float64 else x.float()
    return x.T @ x
