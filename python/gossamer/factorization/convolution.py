"""Convolutions as sequences of smaller ones: Tucker-2, and by the axes of the image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .allocation import Curve
from .sensitivity import Measure

_SWEEPS = 3
_FLOOR = 1e-10  # of the eigenvalues of a second moment against the largest: they are divided by


@dataclass
class Tucker:
    """A kernel W [O, I, h, w] in bases of its output and input channels, with all their ranks.

    ``W ≈ core x_1 A x_2 B``: A [O, r_O] and B [r_I, I] are 1x1 convolutions, and the core
    [r_O, r_I, h, w] is one of the kernel's size. A rank that is all channels needs no 1x1.

    Attributes
    ----------
    W : Tensor
        float64: the kernel, times D and C^½ of its measure.
    outputs, inputs : Tensor
        float64, (O, O) and (I, I): eigenvectors of the unfoldings, by energy.
    D, inverse_root : Tensor or None
        Of the measure: (O,), and C^-½ of shape (I, I).
    """

    W: Tensor
    outputs: Tensor
    inputs: Tensor
    D: Tensor | None
    inverse_root: Tensor | None

    @classmethod
    def solve(cls, kernel: Tensor, measure: Measure) -> Tucker:
        """The higher-order singular value decomposition of the two modes of channels."""
        W, D, inverse_root = kernel.double(), measure.rows, None
        if D is not None:
            W = W * D[:, None, None, None]
        if measure.columns is not None:
            values, vectors = torch.linalg.eigh(measure.columns.double())
            values = values.clamp_min(_FLOOR * float(values[-1])).clamp_min(1e-300).sqrt()
            W = _on_inputs(W, (vectors * values) @ vectors.T)
            inverse_root = (vectors / values) @ vectors.T
        return cls(W, _basis(W), _basis(W.transpose(0, 1)), D, inverse_root)

    def curve(self, measure: Measure) -> Curve:
        """The pairs of ranks that no smaller pair keeps as much as.

        The truncated decomposition keeps the sum of squares of its part of the core, which is known
        for all pairs of ranks at once; the sweeps of :meth:`factors` keep somewhat more.
        """
        core = _on_inputs(_on_outputs(self.W, self.outputs.T), self.inputs.T)
        energies = core.square().sum((2, 3))
        total = float(energies.sum())
        kept = energies.cumsum(0).cumsum(1) / (total or 1.0)
        outputs, inputs = torch.meshgrid(
            *(torch.arange(1, n + 1) for n in kept.shape), indexing="ij"
        )
        sizes = tucker_size(self.W.shape, outputs, inputs)
        below = sizes < self.W.numel()
        found = torch.stack([outputs[below], inputs[below]], 1)
        sizes, kept = sizes[below], kept[below] if total else torch.ones(len(found)).double()
        order = _lexicographic(sizes, -kept)
        found, sizes, kept = found[order], sizes[order], kept[order]
        best = kept.cummax(0).values
        better = torch.ones(len(kept), dtype=torch.bool)
        better[1:] = kept[1:] > best[:-1]
        size = self.W.numel()
        worth = measure.worth_of(total, size)
        return Curve(found[better], sizes[better], kept[better].clamp(0, 1), size, worth)

    def factors(self, outputs_rank: int, inputs_rank: int) -> tuple[Tensor, Tensor, Tensor, float]:
        """A, core, B and the share of the energy that they keep, by higher-order iterations.

        Each sweep takes the best basis of one side for the present basis of the other.
        """
        outputs, inputs = self.outputs[:, :outputs_rank], self.inputs[:, :inputs_rank]
        for _ in range(_SWEEPS):
            outputs = _basis(_on_inputs(self.W, inputs.T))[:, :outputs_rank]
            inputs = _basis(_on_outputs(self.W, outputs.T).transpose(0, 1))[:, :inputs_rank]
        core = _on_inputs(_on_outputs(self.W, outputs.T), inputs.T)
        total = float(self.W.square().sum())
        kept = min(1.0, float(core.square().sum()) / total) if total else 1.0
        A = outputs if self.D is None else outputs / self.D[:, None]
        B = inputs.T if self.inverse_root is None else inputs.T @ self.inverse_root
        return A, core, B, kept


IntOrTensor = TypeVar("IntOrTensor", int, Tensor)


def tucker_size(
    shape: tuple[int, ...], outputs_rank: IntOrTensor, inputs_rank: IntOrTensor
) -> IntOrTensor:
    """Parameters of a kernel of some shape with these ranks, all layers included."""
    outputs, inputs, height, width = shape
    return (
        height * width * outputs_rank * inputs_rank
        + inputs * inputs_rank * (inputs_rank < inputs)
        + outputs * outputs_rank * (outputs_rank < outputs)
    )


def _lexicographic(first: Tensor, second: Tensor) -> Tensor:
    """The order by the first, and by the second where that is the same."""
    order = second.argsort(stable=True)
    return order[first[order].argsort(stable=True)]


def _basis(W: Tensor) -> Tensor:
    """Eigenvectors of the first mode of a kernel, by energy from the largest."""
    rows = W.flatten(1)
    vectors: Tensor = torch.linalg.eigh(rows @ rows.T).eigenvectors
    return vectors.flip(1)


def _on_outputs(W: Tensor, matrix: Tensor) -> Tensor:
    changed: Tensor = torch.einsum("po,oihw->pihw", matrix, W)
    return changed


def _on_inputs(W: Tensor, matrix: Tensor) -> Tensor:
    changed: Tensor = torch.einsum("pi,oihw->ophw", matrix, W)
    return changed


def tucker_layers(conv: nn.Conv2d, A: Tensor, core: Tensor, B: Tensor) -> nn.Sequential:
    """1x1, kernel, 1x1, in place of a convolution. A 1x1 of full rank goes into the kernel."""
    whole_outputs, whole_inputs = A.shape[0] == A.shape[1], B.shape[0] == B.shape[1]
    if whole_outputs:
        core = _on_outputs(core, A)
    if whole_inputs:
        core = _on_inputs(core, B.T)
    layers = [] if whole_inputs else [_conv(B[:, :, None, None])]
    layers.append(
        _conv(core, conv.stride, conv.padding, conv.dilation, padding_mode=conv.padding_mode)
    )
    if not whole_outputs:
        layers.append(_conv(A[:, :, None, None]))
    return _sequence(conv, layers)


def pointwise_layers(conv: nn.Conv2d, U: Tensor, V: Tensor) -> nn.Sequential:
    """Two 1x1 convolutions in place of one; the first has its stride and padding."""
    first = _conv(V[:, :, None, None], conv.stride, conv.padding, padding_mode=conv.padding_mode)
    return _sequence(conv, [first, _conv(U[:, :, None, None])])


def separated_matrix(kernel: Tensor) -> Tensor:
    """The matrix [O w, I h] of a kernel [O, I, h, w]: its products are separable kernels."""
    return kernel.permute(0, 3, 1, 2).reshape(
        kernel.shape[0] * kernel.shape[3], kernel.shape[1] * kernel.shape[2]
    )


def separated_measure(measure: Measure, kernel_size: tuple[int, ...]) -> Measure:
    """The measure of a kernel for that matrix: taps count as if they were independent."""
    height, width = kernel_size
    rows, columns = measure.rows, measure.columns
    if rows is not None:
        rows = rows.repeat_interleave(width)
    if columns is not None:
        columns = torch.kron(columns, torch.eye(height))
    return Measure(columns, rows, measure.scale)


def separated_layers(conv: nn.Conv2d, U: Tensor, V: Tensor) -> nn.Sequential:
    """[h x 1], then [1 x w], in place of a convolution."""
    height, width = conv.kernel_size
    rank = U.shape[1]
    down = V.reshape(rank, conv.in_channels, height, 1)
    across = U.reshape(conv.out_channels, width, rank).transpose(1, 2)[:, :, None]
    padding: Any = (conv.padding,) * 2
    if not isinstance(conv.padding, str):
        padding = (conv.padding[0], 0), (0, conv.padding[1])
    mode = conv.padding_mode
    return _sequence(
        conv,
        [
            _conv(down, (conv.stride[0], 1), padding[0], (conv.dilation[0], 1), padding_mode=mode),
            _conv(
                across, (1, conv.stride[1]), padding[1], (1, conv.dilation[1]), padding_mode=mode
            ),
        ],
    )


def _conv(
    kernel: Tensor,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    padding_mode: Any = "zeros",
) -> nn.Conv2d:
    outputs, inputs, *size = kernel.shape
    conv = nn.Conv2d(
        inputs,
        outputs,
        (size[0], size[1]),
        stride=stride,
        padding=padding,
        dilation=dilation,
        padding_mode=padding_mode,
        bias=False,
        device="meta",
    )
    conv.weight = nn.Parameter(kernel)
    return conv


def _sequence(conv: nn.Conv2d, layers: list[nn.Conv2d]) -> nn.Sequential:
    """The layers in the dtype and the mode of a convolution, its bias in the last."""
    for layer in layers:
        kernel = layer.weight.detach().to(conv.weight.dtype).contiguous()
        layer.weight = nn.Parameter(kernel, requires_grad=conv.weight.requires_grad)
    layers[-1].bias = conv.bias
    return nn.Sequential(*layers).train(conv.training)


@torch.no_grad()
def composed_kernel(layers: nn.Sequential) -> Tensor:
    """The kernel [O, I, h, w] that a sequence of these computes with, float64.

    In each axis only one of the layers has more than one tap.
    """
    kernels = [layer.weight.double() for layer in layers if isinstance(layer, nn.Conv2d)]
    whole = kernels[0]
    for kernel in kernels[1:]:
        taps = torch.einsum("ormn,rihw->oihmwn", kernel, whole)
        whole = taps.flatten(4).flatten(2, 3)
    return whole
