"""The second moments of what layers are given, from a few batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from .._progress import Progress
from ..nn.linear import is_conv1d
from .batches import Batches, call, evaluating, sized, token_mask
from .statistics import Gathering

_FUNCTION = "second_moments"


def second_moments(
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    batches: Batches,
    progress: bool | None = None,
) -> dict[str, Tensor]:
    """E[x xᵀ] of the inputs x of some modules, while the model runs over batches.

    The mean is over all rows of x: all leading dimensions of all calls. Where a batch has an
    ``attention_mask`` of shape (B, S), inputs of shape (B, S, K) count without the tokens that are
    padding. A convolution is taken as a layer over channels: its rows are the pixels of its input,
    of which a 1x1 convolution sees those that its stride leaves.

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
    input while the model runs, beside 4096 rows of it. An input that several modules get is
    multiplied once.

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
    with (
        Gathering(_FUNCTION, modules, moments=True, rows=_channel_rows, lane="f32") as gathering,
        evaluating(model),
        torch.no_grad(),
        Progress("calibrating", len(found), progress) as shown,
    ):
        for batch in found:
            gathering.mask = token_mask(model, batch)
            call(_FUNCTION, model, batch)
            gathering.close()
            shown.advance(1)
    moments = ((name, found.moment) for name, found in gathering.results().items())
    return {name: moment for name, moment in moments if moment is not None}


def _channel_rows(module: nn.Module, x: Tensor) -> Iterator[Tensor]:
    """Rows [M, channels]: the pixels of the input of a convolution."""
    if not isinstance(module, nn.Conv2d):
        yield x.reshape(-1, x.shape[-1])
        return
    if all(size == 1 for size in module.kernel_size) and not any(_padding(module)):
        x = x[..., :: module.stride[0], :: module.stride[1]]
    yield x.movedim(-3, -1).reshape(-1, x.shape[-3])


def _padding(module: nn.Conv2d) -> tuple[int, ...]:
    return (0, 0) if isinstance(module.padding, str) else module.padding
