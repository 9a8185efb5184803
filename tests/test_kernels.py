"""gossamer.kernels: the kernels themselves, on every ISA, against naive references."""

from __future__ import annotations

from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import gossamer as gs
from gossamer import _C, kernels

sizes = st.integers(1, 70)
activations = st.sampled_from(["none", "relu", "gelu", "gelu_tanh", "silu"])
per_isa = hypothesis.settings(
    max_examples=40, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)


def random_int8(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(-128, 128, shape, dtype=np.int8)


def int8_weight(values: np.ndarray[Any, Any], group_size: int | None = None) -> gs.formats.Int8:
    N, K = values.shape
    groups = 1 if group_size is None else -(-K // group_size)
    return gs.formats.Int8(torch.from_numpy(values), torch.ones(N, groups), group_size)


class TestQuantizeRows:
    @per_isa
    @hypothesis.given(
        x=hnp.arrays(
            np.float32,
            hnp.array_shapes(min_dims=2, max_dims=2, max_side=70),
            elements=st.floats(-(2.0**100), 2.0**100, width=32).map(
                lambda v: v if abs(v) > 2.0**-80 else 0.0
            ),
        )
    )
    def test_equals_its_definition(self, isa: str, x: np.ndarray[Any, Any]) -> None:
        values, scales = kernels.quantize_rows(x)
        amax = np.abs(x).max(1)
        inverse = np.divide(np.float32(127), amax, where=amax > 0, out=np.zeros_like(amax))
        np.testing.assert_array_equal(scales, amax / np.float32(127))
        np.testing.assert_array_equal(values, np.rint(x * inverse[:, None]).astype(np.int8))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("K", [1, 15, 64, 65, 517])
    def test_rounds_to_the_nearest_value(self, isa: str, dtype: torch.dtype, K: int) -> None:
        x = torch.randn(7, K).to(dtype)
        values, scales = kernels.quantize_rows(x)
        error = (values.double() * scales.double()[:, None] - x.double()).abs()
        # 127 / amax, its product with x and the scale are each rounded: 3 * 127 * 2^-24 of a step.
        assert bool((error <= scales.double()[:, None] / 2 * (1 + 2**-14)).all())
        assert int(values.abs().max()) == 127

    def test_special_rows(self, isa: str) -> None:
        x = np.ones((5, 33), np.float32)
        x[0, 7], x[1, 32], x[2, 0], x[3] = np.nan, np.inf, -np.inf, 0
        values, scales = kernels.quantize_rows(x)
        assert np.isnan(scales[:3]).all()
        assert scales[3] == 0
        assert not values[3].any()
        assert (values[4] == 127).all()
        assert scales[4] == np.float32(1) / np.float32(127)

    def test_denormal_rows(self, isa: str) -> None:
        x = np.array([[1e-40, -5e-41, 0, 1e-45]], np.float32)
        values, scales = kernels.quantize_rows(x)
        assert values.tolist() == [[127, -64, 0, 0]] or values.tolist() == [[127, -63, 0, 0]]
        error = np.abs(values.astype(np.float64) * scales[:, None] - x)
        assert (error <= scales[:, None] / 2 + 64 * 2.0**-149).all()  # the scale is a denormal too

    def test_reads_strided_rows(self, isa: str) -> None:
        wide = torch.randn(6, 101)
        for x in (wide[:, 3:90], wide[::2], wide.T, wide[:, ::3], wide[2:3].expand(4, -1)):
            expected = kernels.quantize_rows(x.contiguous())
            for got, want in zip(kernels.quantize_rows(x), expected, strict=True):
                assert torch.equal(got, want)

    def test_no_rows(self) -> None:
        values, scales = kernels.quantize_rows(torch.empty(0, 5))
        assert values.shape == (0, 5)
        assert scales.shape == (0,)


class TestAccumulate:
    @per_isa
    @hypothesis.given(
        M=st.integers(0, 40),
        N=sizes,
        K=st.one_of(sizes, st.integers(60, 600)),
        group_size=st.sampled_from([None, 32, 64, 128]),
        seed=st.integers(0, 2**31),
    )
    def test_equals_int64_sums(
        self, isa: str, M: int, N: int, K: int, group_size: int | None, seed: int
    ) -> None:
        a, b = random_int8(M, K, seed=seed), random_int8(N, K, seed=seed + 1)
        got = kernels.accumulate(a, int8_weight(b, group_size))
        assert got.dtype == np.int64
        np.testing.assert_array_equal(got, a.astype(np.int64) @ b.T.astype(np.int64))

    @pytest.mark.parametrize("K", [65535, 65536, 65537, 140001, 10**6])
    @pytest.mark.parametrize("group_size", [None, 128])
    def test_long_sums_do_not_wrap(self, isa: str, K: int, group_size: int | None) -> None:
        extremes = np.stack([np.full(K, v, np.int8) for v in (-128, 127, -127)])
        got = kernels.accumulate(extremes, int8_weight(extremes, group_size))
        wide = extremes[:, 0].astype(np.int64)
        np.testing.assert_array_equal(got, K * np.outer(wide, wide))

    @pytest.mark.parametrize("M", [1, 2, 5, 16, 17, 33, 100])
    def test_adjacent_extremes_do_not_saturate(self, isa: str, M: int) -> None:
        K, N = 130, 37
        a = np.where(np.arange(K) % 3 == 0, -128, 127).astype(np.int8)[None].repeat(M, 0)
        b = np.where(np.arange(N)[:, None] % 2 == 0, -128, 127).astype(np.int8).repeat(K, 1)
        got = kernels.accumulate(a, int8_weight(b))
        np.testing.assert_array_equal(got, a.astype(np.int64) @ b.T.astype(np.int64))

    def test_reads_strided_rows(self, isa: str) -> None:
        wide = torch.from_numpy(random_int8(9, 211))
        weight = int8_weight(random_int8(21, 67))
        for a in (wide[:, 5:72], wide[1::3, :67], wide[:, :201:3]):
            want = kernels.accumulate(a.contiguous(), weight)
            assert torch.equal(kernels.accumulate(a, weight), want)


class TestMatmul:
    @per_isa
    @hypothesis.given(
        M=st.one_of(st.integers(1, 6), st.integers(1, 70)),
        N=sizes,
        K=st.one_of(sizes, st.integers(60, 300)),
        group_size=st.sampled_from([None, None, 32, 64, 128]),
        dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
        activation=activations,
        with_bias=st.booleans(),
        seed=st.integers(0, 2**31),
    )
    def test_error_is_rounding_only(
        self,
        isa: str,
        assert_product: Any,
        M: int,
        N: int,
        K: int,
        group_size: int | None,
        dtype: torch.dtype,
        activation: str,
        with_bias: bool,
        seed: int,
    ) -> None:
        torch.manual_seed(seed)
        weight = gs.formats.Int8.quantize(torch.randn(N, K), group_size)
        x = torch.randn(M, K).to(dtype)
        bias = torch.randn(N).to(dtype) if with_bias else None
        y = kernels.matmul(x, weight, bias, activation)
        assert y.dtype == dtype
        assert_product(y, x, weight, bias, activation)

    @pytest.mark.parametrize("M", [1, 3, 4, 5, 16, 63, 200])
    @pytest.mark.parametrize("shape", [(1, 1), (16, 64), (1003, 517), (96, 1500)])
    def test_sizes(self, isa: str, assert_product: Any, M: int, shape: tuple[int, int]) -> None:
        weight = gs.formats.Int8.quantize(torch.randn(shape))
        x = torch.randn(M, shape[1])
        assert_product(kernels.matmul(x, weight), x, weight)

    def test_isas_agree(self) -> None:
        weight = gs.formats.Int8.quantize(torch.randn(65, 200), 64)
        x = torch.randn(19, 200)
        size = x.abs().double() @ weight.dequantize().abs().double().T
        want = kernels.matmul(x, weight, isa="scalar").double()
        for name in gs.cpu.available():
            error = (kernels.matmul(x, weight, isa=name).double() - want).abs()
            assert bool((error <= 24 * torch.finfo(torch.float32).eps * size).all()), name

    def test_foreign_weight_with_minus_128(self, isa: str, assert_product: Any) -> None:
        values = torch.full((17, 100), -128, dtype=torch.int8)
        weight = gs.formats.Int8(values, torch.full((17, 1), 0.01))
        x = torch.randn(5, 100)
        assert_product(kernels.matmul(x, weight), x, weight)

    @pytest.mark.parametrize("activation", ["none", "relu", "gelu", "gelu_tanh", "silu"])
    @pytest.mark.parametrize("M", [4, 40])
    def test_nan_and_infinity_give_rows_of_nan(self, isa: str, activation: str, M: int) -> None:
        weight = gs.formats.Int8.quantize(torch.randn(35, 70))
        x = torch.randn(M, 70)
        x[1, 3], x[2, 69], x[3] = float("nan"), float("inf"), 0
        y = kernels.matmul(x, weight, activation=activation)
        assert bool(y[1:3].isnan().all())
        assert not bool(y[3].any())
        assert bool(y[0].isfinite().all())

    def test_infinite_sums_of_float16_become_infinite(self, isa: str) -> None:
        weight = gs.formats.Int8.quantize(torch.full((3, 64), 100.0))
        y = kernels.matmul(torch.full((2, 64), 100.0, dtype=torch.float16), weight)
        assert bool((y == float("inf")).all())

    def test_denormal_scales(self, isa: str, assert_product: Any) -> None:
        weight = gs.formats.Int8.quantize(torch.randn(5, 64) * 1e-38)
        x = torch.randn(3, 64)
        assert_product(kernels.matmul(x, weight), x, weight)

    @pytest.mark.parametrize("dtype", [np.float32, np.float16])
    def test_numpy_in_and_out(self, dtype: type) -> None:
        weight = gs.formats.Int8.quantize(np.eye(8, dtype=np.float32))
        x = np.random.default_rng(0).standard_normal((2, 3, 8)).astype(dtype)
        y = kernels.matmul(x, weight)
        assert isinstance(y, np.ndarray)
        assert y.dtype == dtype
        want = kernels.matmul(torch.from_numpy(x), weight)
        np.testing.assert_array_equal(y, want.numpy())

    def test_unusual_arrays(self) -> None:
        weight = gs.formats.Int8.quantize(torch.randn(4, 6))
        x = np.random.default_rng(0).standard_normal((5, 6)).astype(np.float32)
        want = kernels.matmul(x, weight)
        read_only = x.copy()
        read_only.flags.writeable = False
        np.testing.assert_array_equal(kernels.matmul(read_only, weight), want)
        np.testing.assert_array_equal(kernels.matmul(x[::-1], weight), want[::-1])
        np.testing.assert_array_equal(kernels.matmul(np.asfortranarray(x), weight), want)

    def test_out_dtype_rounds_the_same_result_once(self, isa: str) -> None:
        weight = gs.formats.Int8.quantize(torch.randn(33, 90))
        x = torch.randn(7, 90)
        full = kernels.matmul(x, weight)
        for dtype in (torch.bfloat16, torch.float16):
            assert torch.equal(kernels.matmul(x, weight, out_dtype=dtype), full.to(dtype))
        assert kernels.matmul(x.numpy(), weight, out_dtype=np.float16).dtype == np.float16

    def test_packed_or_format(self) -> None:
        weight = gs.formats.Int8.quantize(torch.randn(33, 90), 32)
        x = torch.randn(7, 90)
        packed = kernels.pack(weight)
        want = kernels.matmul(x, weight)
        assert torch.equal(kernels.matmul(x, packed), want)
        assert torch.equal(kernels.matmul(x, packed.numpy()), want)

    def test_any_number_of_threads_gives_the_same_bits(self, isa: str) -> None:
        for group_size in (None, 32):
            weight = gs.formats.Int8.quantize(torch.randn(300, 520), group_size).pack()
            for M in (1, 3, 150):
                x = torch.randn(M, 520)
                want = kernels.matmul(x, weight, threads=1)
                for threads in (2, 3, 4):
                    assert torch.equal(kernels.matmul(x, weight, threads=threads), want)

    def test_no_rows(self, isa: str) -> None:
        weight = gs.formats.Int8.quantize(torch.randn(4, 6))
        assert kernels.matmul(torch.empty(0, 6), weight).shape == (0, 4)
        assert kernels.matmul(torch.empty(2, 0, 6), weight).shape == (2, 0, 4)
        assert kernels.accumulate(torch.empty(0, 6, dtype=torch.int8), weight).shape == (0, 4)


class TestErrors:
    weight = gs.formats.Int8.quantize(torch.randn(4, 6))
    x = torch.randn(2, 6)

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ({"x": torch.randn(2, 5)}, ValueError, "matmul: x: .*wanted \\[..., 6\\]"),
            ({"x": torch.randn(2, 6).double()}, TypeError, "matmul: x: .*float64"),
            ({"x": [1.0] * 6}, TypeError, "matmul: x: got list"),
            ({"bias": torch.randn(5)}, ValueError, "matmul: bias: .*wanted \\[4\\]"),
            ({"bias": torch.ones(4, dtype=torch.int32)}, TypeError, "matmul: bias: .*int32"),
            ({"activation": "tanh"}, ValueError, "matmul: activation: got 'tanh'"),
            ({"isa": "sse9"}, ValueError, "matmul: isa: got 'sse9', wanted one of scalar"),
            ({"threads": 0}, ValueError, "matmul: threads: got 0"),
            ({"out_dtype": torch.float64}, TypeError, "matmul: out_dtype: got torch.float64"),
            ({"weight": torch.randn(4, 6)}, TypeError, "packed: .*wanted a uint8 tensor"),
            ({"weight": "int8"}, TypeError, "pack: weight: got str"),
        ],
    )
    def test_matmul(self, arguments: dict[str, Any], error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            kernels.matmul(**{"x": self.x, "weight": self.weight, **arguments})

    def test_accumulate(self) -> None:
        with pytest.raises(TypeError, match=r"accumulate: a: .*wanted int8"):
            kernels.accumulate(self.x, self.weight)
        with pytest.raises(ValueError, match=r"accumulate: a: .*wanted int8 \[M, 6\]"):
            kernels.accumulate(torch.zeros(2, 7, dtype=torch.int8), self.weight)

    def test_quantize_rows(self) -> None:
        with pytest.raises(ValueError, match=r"quantize_rows: x: .*wanted \[M, K\]"):
            kernels.quantize_rows(torch.zeros(3))
        with pytest.raises(TypeError, match=r"quantize_rows: x: .*int64"):
            kernels.quantize_rows(torch.zeros(3, 3, dtype=torch.int64))

    def test_unavailable_isa(self) -> None:
        missing = [name for name in _C.isa_names() if name not in gs.cpu.available()]
        if not missing:
            pytest.skip("this machine has every ISA")
        with pytest.raises(RuntimeError, match=missing[0]):
            kernels.matmul(self.x, self.weight, isa=missing[0])
