"""quantization.HQQ against loops over groups in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import gossamer as gs
from gossamer.quantization import HQQ, RTN

from .rounding_layers import SCHEMES, scheme_of, weight


def norm(W: Tensor, rounded: Any, p: float) -> float:
    return float((W - rounded.dequantize()).double().abs().pow(p).sum())


def skewed(N: int, K: int, seed: int) -> Tensor:
    return weight(N, K, seed).exp() - weight(N, K, seed + 1).square() / 8


@pytest.mark.parametrize("p", [0.5, 0.7, 1.0])
@pytest.mark.parametrize("name", SCHEMES)
def test_never_worse_than_rtn_by_norm_nor_by_squares(name: str, p: float) -> None:
    scheme = scheme_of(name)
    for seed in range(3):
        W = skewed(40, 100, seed)
        got, plain = HQQ(p=p).round(W, scheme), RTN().round(W, scheme)
        assert norm(W, got, p) <= norm(W, plain, p) * (1 + 1e-6)
        assert norm(W, got, 2) <= norm(W, plain, 2) * (1 + 1e-4)


@pytest.mark.parametrize(("name", "share"), [("int4-g64", 0.99), ("int4-g64-asym", 0.975)])
def test_it_gains(name: str, share: float) -> None:
    W, scheme = skewed(40, 128, 5), scheme_of(name)
    assert norm(W, HQQ().round(W, scheme), 0.7) < share * norm(W, RTN().round(W, scheme), 0.7)


def steps_of_one_group(w: Tensor, scale: float, zero: float, steps: int) -> tuple[float, float]:
    """The equations of HQQ for asymmetric int4, as they stand, in float64."""
    p, beta = 0.7, 10.0
    best, limit, kept = float("inf"), 0.0, (scale, zero)
    for step in range(steps + 1):
        level = ((w / scale).round() + zero).clamp(0, 15)
        error = w - (level - zero) * scale
        size, squares = float(error.abs().pow(p).sum()), float(error.square().sum())
        limit = squares if step == 0 else limit
        if size < best and squares <= limit * (1 + 1e-9):
            best, kept = size, (scale, zero)
        residue = error / scale
        large = residue.sign() * (residue.abs() - residue.abs().clamp(min=1e-6) ** (p - 1) / beta)
        large[residue.abs() < residue.abs().clamp(min=1e-6) ** (p - 1) / beta] = 0
        target = w / scale - large
        zero = float((level - target).mean().round().clamp(0, 15))
        scale *= float((target * (level - zero)).sum() / (level - zero).square().sum())
        beta *= 1.1
    return kept


def test_one_group_follows_the_equations() -> None:
    scheme = gs.schemes.Scheme(
        "int4", None, settings={"symmetric": False, "scale_dtype": torch.float32}
    )
    agree = 0
    for seed in range(30):
        W = skewed(1, 64, seed)
        plain: Any = RTN().round(W, scheme)
        start = float(plain.scales), float(plain.zero_points)
        scale, zero = steps_of_one_group(W[0].double(), *start, steps=20)
        got: Any = HQQ().round(W, scheme)
        same_zero = float(got.zero_points) == zero
        agree += same_zero and abs(float(got.scales) - scale) < 1e-4 * abs(scale)
    assert agree >= 28  # the rest: ties, and groups that lose nothing by squares to rounding


def test_zeros_constants_and_short_groups() -> None:
    for name in ("int4-g64", "int4-g64-asym", "nf4", "int8"):
        scheme = scheme_of(name)
        assert not bool(HQQ().round(torch.zeros(4, 100), scheme).dequantize().any())
        constant = torch.full((4, 100), 0.37)
        error = (HQQ().round(constant, scheme).dequantize() - constant).abs()
        assert float(error.max()) < 1e-3
    W = skewed(8, 100, 9)
    got = HQQ().round(W, scheme_of("int4-g64-asym")).dequantize()
    first = HQQ().round(W[:, :64].contiguous(), scheme_of("int4-g64-asym")).dequantize()
    assert torch.equal(got[:, :64], first)  # the short group changes nothing of the first
    last = HQQ().round(W[:, 64:].contiguous(), scheme_of("int4-per-channel-asym")).dequantize()
    assert torch.equal(got[:, 64:], last)  # and its padding nothing of it


@pytest.mark.parametrize("settings", [{"p": 0}, {"p": 1.5}, {"p": "x"}, {"iterations": 0}])
def test_settings_are_checked(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"HQQ: {next(iter(settings))}: got"):
        HQQ(**settings)


def test_a_format_without_a_grid_is_an_error() -> None:
    with pytest.raises(ValueError, match="'bf16' has no grid"):
        HQQ().round(weight(4, 8, 0), scheme_of("bf16"))
