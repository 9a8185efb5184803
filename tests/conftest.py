"""Fixtures for all tests: every ISA of this machine, and error bounds that are derived."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import hypothesis
import pytest
import torch
from torch import Tensor

import gossamer as gs
from gossamer import _C

hypothesis.settings.register_profile("gossamer", deadline=None, derandomize=True)
hypothesis.settings.load_profile("gossamer")

AssertProduct = Callable[..., None]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=_C.isa_names())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set, forced; those that this machine lacks are skipped."""
    name: str = request.param
    if name not in gs.cpu.available():
        pytest.skip(f"this machine has no {name}")
    with gs.cpu.force(name):
        assert gs.cpu.isa() == name
        yield name


def activate(z: Tensor, activation: str) -> Tensor:
    """The activation in the dtype of z."""
    functional = torch.nn.functional
    if activation == "relu":
        return functional.relu(z)
    if activation == "silu":
        return functional.silu(z)
    if activation in ("gelu", "gelu_tanh"):
        return functional.gelu(z, approximate="tanh" if activation == "gelu_tanh" else "none")
    return z


def _assert_product(
    y: Tensor,
    x: Tensor,
    weight: gs.formats.Int8,
    bias: Tensor | None = None,
    activation: str = "none",
    addend: Tensor | None = None,
) -> None:
    """y is the product of the stored operands, up to the rounding of fp32 and of y's dtype.

    The integer sums are exact. Each group's sum is rounded a few times (to fp32, by two scales) and
    added to the others: |error| <= (groups + 6) eps sum |a||b|. Activations have slopes below 1.13
    and an error of their own below 4e-7 |z| (csrc/include/gossamer/epilogue.h).
    """
    M, K = x.shape[:-1].numel(), x.shape[-1]
    values, scales = gs.kernels.quantize_rows(x.detach().reshape(M, K))
    a = values.double() * scales.double()[:, None]
    groups = weight.scales.shape[1]
    b = (
        weight.values.double()
        * weight.scales.double().repeat_interleave(weight.group_size or K, 1)[:, :K]
    )
    z, size = a @ b.T, a.abs() @ b.abs().T
    for extra in (bias, None if addend is None else addend.reshape(z.shape)):
        if extra is not None:
            z, size = z + extra.detach().double(), size + extra.detach().double().abs()
    exact = activate(z, activation)
    fp32, out = torch.finfo(torch.float32), torch.finfo(y.dtype)
    bound = 1.13 * (groups + 8) * fp32.eps * size + 4e-7 * z.abs() + out.eps * exact.abs()
    bound += out.smallest_normal * out.eps + fp32.smallest_normal
    assert y.shape == (*x.shape[:-1], b.shape[0])
    error = (y.detach().double().reshape(z.shape) - exact).abs()
    fits = exact.abs() < out.max
    assert bool((error <= bound)[fits].all()), f"largest excess {(error / bound)[fits].max()}"


@pytest.fixture
def assert_product() -> AssertProduct:
    return _assert_product
