"""gs.LowRankCorrection.fit: against the optimum in float64, as stored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import gossamer as gs
from gossamer.factorization.correction import Corrected, LowRankCorrection
from gossamer.formats import Format

N, K = 96, 160
QUANTIZE: Callable[[Tensor], Format] = gs.Quantize("int4-g32").quantize


def weight(seed: int = 0, rows: int = N, columns: int = K) -> Tensor:
    """Normal, with a few large columns: rounding to int4 then has an error with structure."""
    torch.manual_seed(seed)
    W = torch.randn(rows, columns)
    W[:, ::37] *= 8
    return W


def inputs(seed: int = 1, columns: int = K) -> Tensor:
    """Correlated rows of x, of very different scales."""
    torch.manual_seed(seed)
    return (
        torch.randn(4 * columns, columns)
        @ torch.randn(columns, columns)
        * torch.logspace(-1, 1, columns)
    )


def moment(x: Tensor) -> Tensor:
    return (x.double().T @ x.double() / len(x)).float()


def residual(W: Tensor, found: Corrected) -> Tensor:
    return W.double() - found.weight.dequantize().double()


def base_error(W: Tensor, found: Corrected) -> Tensor:
    return W.double() - found.weight.base.dequantize().double()  # type: ignore[attr-defined]


def outputs(E: Tensor, x: Tensor) -> float:
    """Root mean square of E x."""
    return float((x.double() @ E.T).square().mean().sqrt())


def fit(W: Tensor, rank: int = 16, **options: Any) -> Corrected:
    own = {name: options.pop(name) for name in ("iterations", "factors", "seed") if name in options}
    return LowRankCorrection(rank, **own).fit(W, QUANTIZE, **options)


class TestDataFree:
    def test_the_error_falls_with_the_rank_as_the_singular_values_say(self) -> None:
        W, before = weight(), 1.0
        for rank in (1, 4, 16, 48):
            found = fit(W, rank, factors="fp32")
            S = torch.linalg.svdvals(base_error(W, found))
            optimum = float(S[rank:].square().sum().sqrt() / W.double().norm())
            assert found.error == pytest.approx(optimum, rel=1e-3)
            assert found.error < min(before, found.uncorrected_error)
            assert found.weight.rank == rank  # type: ignore[attr-defined]
            before = found.error

    @pytest.mark.parametrize("factors", ["int8", "bf16", "fp32"])
    def test_errors_are_those_of_what_is_stored(self, factors: str) -> None:
        W = weight()
        found = fit(W, factors=factors)
        norm = float(W.double().norm())
        assert found.weight.low_rank.factors == factors  # type: ignore[attr-defined]
        assert found.error == pytest.approx(float(residual(W, found).norm()) / norm, rel=1e-5)
        assert found.uncorrected_error == pytest.approx(
            float(base_error(W, found).norm()) / norm, rel=1e-5
        )
        assert found.output_error_left is None
        assert found.error < 1.02 * fit(W, factors="fp32").error

    def test_factors_follow_the_base(self) -> None:
        for activations, factors in (("int8", "int8"), ("int8-group", "int8"), ("exact", "bf16")):
            found = fit(weight(), activations=activations)
            assert found.weight.low_rank.factors == factors  # type: ignore[attr-defined]

    def test_columns_of_u_and_rows_of_v_share_the_singular_values(self) -> None:
        found = fit(weight(), factors="fp32").weight.low_rank  # type: ignore[attr-defined]
        S = found.U.dequantize().norm(dim=0) / found.V.dequantize().norm(dim=1)
        assert torch.allclose(S / S[0], torch.ones(16), rtol=1e-3)

    def test_bfloat16_and_strided_weights(self) -> None:
        W = weight().bfloat16()
        found = fit(W)
        assert found.error == pytest.approx(
            float(residual(W, found).norm() / W.double().norm()), rel=1e-5
        )
        strided = fit(weight().T.contiguous().T)
        assert torch.equal(strided.weight.dequantize(), fit(weight()).weight.dequantize())

    def test_a_base_without_an_error(self) -> None:
        for W in (torch.zeros(N, K), torch.eye(N)):
            found = fit(W, 4)
            assert (found.uncorrected_error, found.error) == (0, 0)
            assert torch.equal(found.weight.dequantize(), W)

    def test_the_seed_says_all_bits(self) -> None:
        W, C, threads = weight(), moment(inputs()), torch.get_num_threads()
        for options in ({}, {"moment": C}):
            states = []
            try:
                for count in (1, 2):
                    torch.set_num_threads(count)
                    states.append(fit(W, iterations=3, seed=7, **options).weight.state())
            finally:
                torch.set_num_threads(threads)
            assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


class TestActivationAware:
    @pytest.mark.parametrize("shape", [(N, K), (K, N)])
    def test_is_the_optimum(self, shape: tuple[int, int]) -> None:
        W, x = weight(0, *shape), inputs(columns=shape[1])
        C = moment(x)
        found = fit(W, moment=C, factors="fp32")
        E = base_error(W, found)
        values = torch.linalg.eigvalsh(E @ C.double() @ E.T)
        optimum = float(values[:-16].clamp(min=0).sum().sqrt())
        R = residual(W, found)
        got = float((R @ C.double() @ R.T).trace().sqrt())
        assert got == pytest.approx(optimum, rel=1e-3)

    def test_beats_data_free_where_it_counts(self) -> None:
        W, x = weight(), inputs()
        plain, aware = fit(W), fit(W, moment=moment(x))
        assert outputs(residual(W, aware), x) < 0.8 * outputs(residual(W, plain), x)
        assert aware.error > plain.error  # in the weights, which do not count

    def test_what_is_left_of_the_error_of_outputs(self) -> None:
        W, x = weight(), inputs()
        found = fit(W, moment=moment(x))
        left = outputs(residual(W, found), x) / outputs(base_error(W, found), x)
        assert found.output_error_left == pytest.approx(left, rel=1e-3)

    def test_inputs_in_a_subspace(self) -> None:
        W, x = weight(), inputs()
        x = x[:, :8] @ torch.randn(8, K)  # C has rank 8
        found = fit(W, 8, moment=moment(x), factors="fp32")
        assert found.output_error_left is not None
        assert found.output_error_left < 1e-2
        assert outputs(residual(W, found), x) < 1e-2 * outputs(base_error(W, found), x)

    def test_inputs_of_zeros_are_no_inputs(self) -> None:
        W = weight()
        found, plain = fit(W, moment=torch.zeros(K, K)), fit(W)
        assert torch.equal(found.weight.dequantize(), plain.weight.dequantize())
        assert found.output_error_left is None


class TestIterations:
    @pytest.mark.parametrize("seed", range(4))
    @pytest.mark.parametrize("aware", [False, True])
    def test_are_never_worse(self, seed: int, aware: bool) -> None:
        W, x = weight(seed), inputs(seed)
        options = {"moment": moment(x)} if aware else {}
        errors = []
        for iterations in (1, 2, 6):
            found = fit(W, iterations=iterations, **options)
            R = residual(W, found)
            errors.append(outputs(R, x) if aware else float(R.norm()))
            first = fit(W, **options)
            assert found.uncorrected_error == first.uncorrected_error
        assert errors[1] <= errors[0] * (1 + 1e-5)
        assert errors[2] <= errors[1] * (1 + 1e-5)
        assert errors[2] < 0.99 * errors[0]

    def test_output_errors_are_counted_from_the_first_base(self) -> None:
        W, x = weight(), inputs()
        first, last = (fit(W, iterations=count, moment=moment(x)) for count in (1, 6))
        before = outputs(base_error(W, first), x)
        assert last.output_error_left == pytest.approx(
            outputs(residual(W, last), x) / before, rel=1e-3
        )

    def test_stop_when_the_error_no_longer_falls(self) -> None:
        calls = []

        def quantize(W: Tensor) -> Format:
            calls.append(W)
            return gs.formats.Int8.quantize(weight())  # whatever W is

        found = LowRankCorrection(4, iterations=50).fit(weight(), quantize)
        assert len(calls) == 2
        assert found.error < found.uncorrected_error

    @pytest.mark.parametrize("scheme", ["int8", "sparse-int8", "sparse-fp32", "int4-g32-asym"])
    def test_zeros_stay(self, scheme: str) -> None:
        W = weight()
        mask = gs.pruning.magnitude_mask(W, 0.5)
        found = LowRankCorrection(16, iterations=4).fit(
            W, gs.Quantize(scheme).quantize, pruned=W * mask
        )
        base = found.weight.base.dequantize()  # type: ignore[attr-defined]
        assert not base[~mask].any()
        assert found.error < found.uncorrected_error
        assert found.error == pytest.approx(
            float(residual(W, found).norm() / W.double().norm()), rel=1e-5
        )


class TestSettings:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"rank": 0}, "LowRankCorrection: rank: got int 0, wanted a whole number >= 1"),
            ({"rank": 2.5}, "LowRankCorrection: rank: got float 2.5"),
            ({"rank": True}, "LowRankCorrection: rank: got bool True"),
            ({"iterations": 0}, "LowRankCorrection: iterations: got int 0"),
            ({"seed": -1}, "LowRankCorrection: seed: got int -1, wanted a whole number >= 0"),
            (
                {"factors": "int4"},
                "LowRankCorrection: factors: got 'int4', wanted None or one of int8, bf16, fp32",
            ),
        ],
    )
    def test_errors(self, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            LowRankCorrection(**settings)

    def test_integers_of_numpy(self) -> None:
        found = LowRankCorrection(np.int64(4)).fit(weight(), QUANTIZE)  # type: ignore[arg-type]
        assert found.weight.rank == 4  # type: ignore[attr-defined]

    def test_where_it_is_too_large(self) -> None:
        correction = LowRankCorrection(rank=32)
        assert correction.why_too_large(64, 65) == ""
        assert correction.why_too_large(64, 64) == (
            "factors of rank 32 would hold 4096 numbers, the weight holds 4096"
        )
