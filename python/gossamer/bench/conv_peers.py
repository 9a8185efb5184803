"""Who runs in ``gossamer bench conv``: torch in five forms, and gossamer in every scheme.

Images come in the layout and dtype that each wants: no conversion is anybody's figure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from gossamer.bench.peers import gossamer_linear
from gossamer.bench.peers.peer import Arithmetic, Array
from gossamer.bench.worker import Prepare, Run

if TYPE_CHECKING:
    from gossamer.bench.conv import ConvLayer

BASELINE = "torch-fp32-channels-last"


@dataclass(frozen=True)
class ConvPeer:
    """One way to convolve; ``build(layer, weight, **arguments)`` returns ``prepare(x)``.

    ``x`` is float32 [batch, in, height, width]; ``prepare`` returns what is timed.
    """

    name: str
    build: Callable[..., Prepare]
    arithmetic: Arithmetic
    arguments: Mapping[str, Any] = field(default_factory=dict)


def build_dense(layer: ConvLayer, weight: Array, dtype: str, channels_last: bool) -> Prepare:
    """``torch.nn.Conv2d`` of a dtype and a layout."""
    torch_dtype = getattr(torch, dtype)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    convolution = layer.module(weight).to(torch_dtype).to(memory_format=memory_format)  # type: ignore[call-overload]

    def prepare(x: Array) -> Run:
        image = torch.from_numpy(x).to(torch_dtype).contiguous(memory_format=memory_format)
        return lambda: convolution(image)

    return prepare


def build_static_int8(layer: ConvLayer, weight: Array, engine: str) -> Prepare:
    """Torch's quantized Conv2d on ``engine``: uint8 images in and out, scales known before."""
    torch.backends.quantized.engine = engine  # this process has no other use for it
    dense = layer.module(weight)
    observer = torch.ao.quantization.default_per_channel_weight_observer()
    observer(dense.weight)
    scales, zeros = observer.calculate_qparams()
    stored = torch.quantize_per_channel(dense.weight.detach(), scales, zeros, 0, torch.qint8)

    def prepare(x: Array) -> Run:
        image = torch.from_numpy(x).contiguous(memory_format=torch.channels_last)
        quantized = torch.ao.nn.quantized.Conv2d(  # type: ignore[no-untyped-call]
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,
            stride=layer.stride,
            padding=layer.kernel_size // 2,
            groups=layer.groups,
            bias=False,
        )
        quantized.set_weight_bias(stored, None)
        quantized.scale, quantized.zero_point = _range(dense(image))
        scale, zero_point = _range(image)
        given = torch.quantize_per_tensor(image, scale, zero_point, torch.quint8)
        return lambda: quantized(given)

    return prepare


def build_gossamer(layer: ConvLayer, weight: Array, scheme: str, dtype: str) -> Prepare:
    """``gossamer.nn.Conv2d`` fed with images of ``dtype``, channels last."""
    import gossamer as gs

    convolution = gs.nn.Conv2d.from_dense(layer.module(weight), scheme)
    torch_dtype = getattr(torch, dtype)

    def prepare(x: Array) -> Run:
        image = torch.from_numpy(x).to(torch_dtype).contiguous(memory_format=torch.channels_last)
        return lambda: convolution(image)

    return prepare


def choose_peers(schemes: Sequence[str]) -> list[ConvPeer]:
    """torch's, and gossamer's in each of ``schemes``.

    Raises
    ------
    ValueError
        For a name that is no scheme.
    """
    try:
        chosen = set(gossamer_linear.names(schemes))
    except ValueError as error:
        raise ValueError(f"run_conv: schemes: {error}") from error
    ours = [
        ConvPeer(peer.name, build_gossamer, peer.arithmetic, peer.arguments)
        for peer in gossamer_linear.PEERS
        if peer.name in chosen
    ]
    return [*TORCH, *ours]


def _dense(name: str, arithmetic: Arithmetic, dtype: str, channels_last: bool) -> ConvPeer:
    arguments = {"dtype": dtype, "channels_last": channels_last}
    return ConvPeer(name, build_dense, arithmetic, arguments)


def _range(values: torch.Tensor) -> tuple[float, int]:
    """Scale and zero point of uint8 that reach from the smallest to the largest value."""
    low, high = min(values.min().item(), 0.0), max(values.max().item(), 0.0)
    scale = (high - low) / 255
    return scale, round(-low / scale)


TORCH = (
    _dense("torch-fp32", "fp32", "float32", channels_last=False),
    _dense(BASELINE, "fp32", "float32", channels_last=True),
    _dense("torch-bf16-channels-last", "bf16", "bfloat16", channels_last=True),
    ConvPeer("torch-static-int8-x86", build_static_int8, "int8", {"engine": "x86"}),
    ConvPeer("torch-static-int8-onednn", build_static_int8, "int8", {"engine": "onednn"}),
)
