"""The rows that a layer multiplies with its weight, from the tensor that it is given."""

from __future__ import annotations

from collections.abc import Hashable, Iterator

from torch import Tensor, nn
from torch.nn import functional

from ..nn.linear import is_conv1d

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)


def has_rows(module: nn.Module) -> bool:
    """Whether statistics are defined for a module.

    Parameters
    ----------
    module : nn.Module
        Any.

    Returns
    -------
    bool
        True for ``nn.Linear``, the ``Conv1D`` of transformers, ``nn.Conv1d`` and ``nn.Conv2d``.
    """
    return isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d) or is_conv1d(module)


def input_rows(module: nn.Module, x: Tensor) -> Iterator[Tensor]:
    """Rows [M, K] of x, a part at a time: of a convolution those of one sample."""
    if not isinstance(module, _CONVOLUTIONS):
        yield x.reshape(-1, x.shape[-1])
        return
    for sample in x if x.dim() == 2 + len(module.kernel_size) else (x,):
        yield _patches(module, sample)


def geometry(module: nn.Module) -> Hashable:
    """Layers that have the same geometry make the same rows of the same tensor."""
    if not isinstance(module, _CONVOLUTIONS):
        return None
    return (
        module.kernel_size,
        module.stride,
        module.padding,
        module.dilation,
        module.padding_mode,
        module.groups == 1,
    )


def tensor_version(x: Tensor) -> int:
    """Tells whether a tensor was written to since; -1 where that is not known."""
    return -1 if x.is_inference() else x._version


def without_padding(x: Tensor, mask: Tensor | None) -> Tensor:
    """A copy of x; where its shape is that of tokens, [B, S, K], without those masked out."""
    if mask is not None and x.dim() == 3 and x.shape[:2] == mask.shape:
        return x.detach()[mask]
    return x.detach().clone()


def _patches(module: nn.Conv1d | nn.Conv2d, sample: Tensor) -> Tensor:
    """What the kernel sees at each of its positions: [positions, (height, width, channel)]."""
    x = _padded(module, sample[None])[0].movedim(0, -1)
    sizes = zip(module.kernel_size, module.stride, module.dilation, strict=True)
    for dim, (size, stride, dilation) in enumerate(sizes):
        x = x.unfold(dim, (size - 1) * dilation + 1, stride)[..., ::dilation]
    # Positions, then channels, then the kernel.
    spatial = len(module.kernel_size)
    return x.movedim(spatial, -1).reshape(-1, x[(0,) * spatial].numel())


def _padded(module: nn.Conv1d | nn.Conv2d, x: Tensor) -> Tensor:
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    return functional.pad(x, module._reversed_padding_repeated_twice, mode)
