"""formats.FP8 and BF16: rounding, scales, and all 256 codes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

import gossamer as gs
from gossamer.formats import BF16, FP8

DTYPES = [torch.float8_e4m3fn, torch.float8_e5m2]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (5, 130), (130, 257)])
def test_quantize_equals_its_definition(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    W, largest = torch.randn(shape), torch.finfo(dtype).max
    weight = FP8.quantize(W, dtype=dtype)
    scales = W.abs().amax(1, keepdim=True) / largest
    assert torch.equal(weight.scales, scales)
    want = (W / scales).clamp(-largest, largest).to(dtype)
    assert torch.equal(weight.values.view(torch.uint8), want.view(torch.uint8))
    # Half a unit in the last place: 3 or 2 bits of mantissa.
    half = 2**-4 if dtype is torch.float8_e4m3fn else 2**-3
    step = scales * torch.finfo(dtype).smallest_normal * half
    assert bool(((weight.dequantize() - W).abs() <= W.abs() * half * 1.001 + step).all())


@pytest.mark.parametrize("shape", [(1, 1), (128, 128), (130, 257), (300, 100)])
def test_blocks(shape: tuple[int, int]) -> None:
    W = torch.randn(shape) * torch.logspace(-3, 3, shape[0])[:, None]
    weight = FP8.quantize(W, 128)
    for i, rows in enumerate(W.split(128)):
        for j, block in enumerate(rows.split(128, 1)):
            scale = weight.scales[i, j]
            assert scale == block.abs().max() / 448
            got = weight.values[i * 128 : i * 128 + 128, j * 128 : j * 128 + 128].float()
            assert torch.equal(
                got, (block / scale).clamp(-448, 448).to(torch.float8_e4m3fn).float()
            )
            dense = weight.dequantize()[i * 128 : i * 128 + 128, j * 128 : j * 128 + 128]
            assert torch.equal(dense, got * scale)
    assert list(weight.state()) == ["weight", "weight_scale_inv"]
    assert list(FP8.quantize(W).state()) == ["weight", "weight_scale"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_tensors_of_torch_are_taken_as_they_are(dtype: torch.dtype) -> None:
    W = torch.randn(8, 70).to(dtype)
    weight = FP8.quantize(W)
    assert torch.equal(weight.dequantize(), W.float())
    assert weight.values.dtype is dtype
    assert torch.equal(gs.kernels.dequantize(weight), W.float())


@pytest.mark.parametrize("dtype", DTYPES)
def test_all_256_codes(dtype: torch.dtype, isa: str) -> None:
    """Each code alone in a column of the product, NaN and infinity included."""
    codes = torch.arange(256, dtype=torch.uint8)[:, None].view(dtype)
    weight = FP8(codes, torch.full((256, 1), 0.5))
    want = codes.float() * 0.5
    torch.testing.assert_close(weight.dequantize(), want, rtol=0, atol=0, equal_nan=True)
    for M in (1, 20):
        got = gs.kernels.matmul(torch.ones(M, 1), weight)
        torch.testing.assert_close(got, want.T.expand(M, -1), rtol=0, atol=0, equal_nan=True)


def test_zero_rows_and_settings() -> None:
    W = torch.randn(3, 64)
    W[1] = 0
    weight = FP8.quantize(W, dtype=torch.float8_e5m2)
    assert float(weight.scales[1, 0]) == 0
    assert not bool(weight.dequantize()[1].any())
    assert weight.settings == {"dtype": torch.float8_e5m2}
    assert FP8.quantize(W).settings == {}
    with pytest.raises(TypeError, match=r"FP8.quantize: dtype: got torch.float16"):
        FP8.quantize(W, dtype=torch.float16)


@pytest.mark.parametrize(
    ("values", "scales", "group_size", "error", "message"),
    [
        (torch.zeros(2, 3), torch.ones(2, 1), None, TypeError, "FP8: values: .*float32"),
        (None, torch.ones(2), None, ValueError, r"FP8: scales: got shape \[2\], wanted \[2, 1\]"),
        (None, torch.ones(2, 1), 128, ValueError, r"got shape \[2, 1\], wanted \[1, 1\]"),
        (None, torch.ones(2, 1).half(), None, TypeError, "FP8: scales: .*wanted float32"),
        (None, torch.ones(2, 1) * torch.inf, None, ValueError, "FP8: scales: some are infinite"),
        (None, torch.ones(2, 1), 64, ValueError, "FP8: group_size: got 64, wanted None or 128"),
    ],
)
def test_wrong_canonical_tensors(
    values: Tensor | None,
    scales: Tensor,
    group_size: int | None,
    error: type[Exception],
    message: str,
) -> None:
    if values is None:
        values = torch.zeros(2, 3).to(torch.float8_e4m3fn)
    with pytest.raises(error, match=message):
        FP8(values, scales, group_size)


def test_bf16_is_the_rounded_weight() -> None:
    W = torch.randn(5, 70)
    weight = BF16.quantize(W)
    assert torch.equal(weight.dequantize(), W.bfloat16().float())
    assert BF16.quantize(W.bfloat16()).values.data_ptr() != W.data_ptr()
    W[2, 1] = 3.4e38  # rounds to infinity
    with pytest.raises(ValueError, match=r"BF16.quantize: W: NaN or infinity in row\(s\) 2$"):
        BF16.quantize(W)
    with pytest.raises(TypeError, match=r"BF16: values: .*float32"):
        BF16(torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"BF16.pack: activations: got 'int8', wanted 'exact'"):
        weight.pack("int8")


def test_the_examples_of_the_document_run() -> None:
    text = (Path(__file__).parent.parent / "docs" / "format-fp8.md").read_text()
    examples = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert examples
    for example in examples:
        exec(compile(example, "format-fp8.md", "exec"), {})
