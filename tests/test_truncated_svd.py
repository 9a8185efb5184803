"""gossamer.svd.truncated_svd against LAPACK in float64: errors, bounds, ranks, determinism."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gossamer.svd import SVDInfo, truncated_svd
from gossamer.svd.search import EXCESS

ORTHONORMAL = {torch.float32: 1e-5, torch.float64: 1e-12}


def orthonormal_columns(rows: int, columns: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(rows, columns, generator=generator, dtype=torch.float64))[0]


def with_spectrum(sigma: Tensor, m: int, n: int, seed: int = 0) -> Tensor:
    size = min(m, n)
    left, right = orthonormal_columns(m, size, seed), orthonormal_columns(n, size, seed + 1)
    return (left * sigma[:size]) @ right.T


def spectrum(name: str, size: int) -> Tensor:
    i = torch.arange(1, size + 1, dtype=torch.float64)
    return {
        "flat": torch.ones(size, dtype=torch.float64),
        "slow": i**-0.5,
        "harmonic": 1 / i,
        "steep": torch.exp(-i / 4),
        "clustered": torch.where(i <= 12, 10.0, 1.0).double(),
        "repeated": 2.0 ** -torch.div(i, 5, rounding_mode="floor"),
        "deficient": torch.where(i <= 9, 1 / i, 0.0),
        "graded down": 10 ** (-6 * (i - 1) / (size - 1)),
        "graded up": 10 ** (6 - 6 * (i - 1) / (size - 1)),
    }[name]


SPECTRA = [
    "flat", "slow", "harmonic", "steep", "clustered", "repeated", "deficient", "graded down",
    "graded up",
]  # fmt: skip


def with_outlier_columns(m: int, n: int) -> Tensor:
    W = torch.randn(m, n, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    W[:, ::50] *= 30
    return W


def error_of(W: Tensor, U: Tensor, S: Tensor, V: Tensor) -> float:
    """The relative Frobenius error, in float64."""
    rest = W.double() - (U.double() * S.double()) @ V.double().T
    return float(rest.norm() / W.double().norm())


def optimum(W: Tensor, rank: int) -> float:
    sigma = torch.linalg.svdvals(W.double())
    return float(sigma[rank:].norm() / sigma.norm())


def check_factors(W: Tensor, U: Tensor, S: Tensor, V: Tensor, info: SVDInfo) -> None:
    """Shapes, order, signs, orthonormality, and bounds that hold."""
    m, n = W.shape
    assert (U.shape, S.shape, V.shape) == ((m, info.rank), (info.rank,), (n, info.rank))
    kind = torch.float64 if W.dtype is torch.float64 else torch.float32
    assert U.dtype is S.dtype is V.dtype is kind
    eye = torch.eye(info.rank, dtype=torch.float64)
    for factor in (U.double(), V.double()):
        assert (factor.T @ factor - eye).abs().max() < ORTHONORMAL[kind]
    assert (S[:-1] >= S[1:] * (1 - 1e-6)).all()
    assert (S >= 0).all()
    assert (U.gather(0, U.abs().argmax(0, keepdim=True)) >= 0).all()
    assert error_of(W, U, S, V) <= info.rel_error
    rest = W.double() - (U.double() * S.double()) @ V.double().T
    assert torch.linalg.matrix_norm(rest, 2) <= info.spectral_bound


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize(("m", "n", "rank"), [(300, 260, 12), (260, 300, 90), (90, 200, 20)])
def test_error_is_near_the_optimum(name: str, m: int, n: int, rank: int) -> None:
    W = with_spectrum(spectrum(name, min(m, n)), m, n).float()
    U, S, V, info = truncated_svd(W, rank)
    check_factors(W, U, S, V, info)
    best = optimum(W, rank)
    assert error_of(W, U, S, V) <= best * (1 + 3 * EXCESS) + 2e-6
    assert info.rel_error <= best * (1 + 3 * EXCESS + 1e-3) * 1.02 + 1e-5


@pytest.mark.parametrize("name", ["slow", "harmonic", "flat", "graded down"])
def test_singular_values(name: str) -> None:
    W = with_spectrum(spectrum(name, 300), 400, 300).float()
    S = truncated_svd(W, 16)[1]
    wanted = torch.linalg.svdvals(W.double())[:16]
    assert torch.allclose(S.double(), wanted, rtol=5e-3)
    assert float(S.double().square().sum() / wanted.square().sum()) > 1 - 1e-3


def test_outlier_columns() -> None:
    W = with_outlier_columns(400, 300).float()
    U, S, V, info = truncated_svd(W, 16)
    check_factors(W, U, S, V, info)
    assert error_of(W, U, S, V) <= optimum(W, 16) * (1 + 2e-3)


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from([*SPECTRA, "outliers"]),
    m=st.integers(1, 200),
    n=st.integers(1, 200),
    share=st.floats(0, 1),
    tolerance=st.sampled_from([None, 0.5, 0.1, 1e-2, 1e-3]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]),
    seed=st.integers(0, 1000),
)
def test_certificate_is_never_below_the_error(
    name: str,
    m: int,
    n: int,
    share: float,
    tolerance: float | None,
    dtype: torch.dtype,
    seed: int,
) -> None:
    size = min(m, n)
    if name == "outliers":
        W = with_outlier_columns(m, n)
    else:
        W = with_spectrum(spectrum(name, max(size, 2)), m, n, seed)
    W = (W / W.abs().max() * 8).to(dtype)
    rank = None if tolerance else 1 + round(share * (size - 1))
    U, S, V, info = truncated_svd(W, rank, rel_error=tolerance, seed=seed)
    check_factors(W, U, S, V, info)
    assert rank in (None, info.rank)
    if tolerance:
        assert info.rel_error <= tolerance


@pytest.mark.parametrize(("m", "n"), [(1, 50), (50, 1), (1, 1), (2, 3), (3, 2000), (2000, 3)])
def test_thin_matrices(m: int, n: int) -> None:
    W = torch.randn(m, n, generator=torch.Generator().manual_seed(0))
    for rank in {1, min(m, n)}:
        U, S, V, info = truncated_svd(W, rank)
        check_factors(W, U, S, V, info)
        assert error_of(W, U, S, V) <= optimum(W, rank) + 1e-6


@pytest.mark.parametrize("scale", [1e30, 1e-30, 1e-41])
def test_ill_scaled(scale: float) -> None:
    unit = with_spectrum(spectrum("harmonic", 150), 200, 150)
    W = (unit * scale).float()
    U, S, V, info = truncated_svd(W, 10)
    assert error_of(W, U, S, V) <= min(info.rel_error, optimum(W, 10) * (1 + EXCESS) + 1e-3)
    wanted = torch.linalg.svdvals(W.double())[:10]
    assert torch.allclose(S.double(), wanted, rtol=1e-2)


def test_zero_matrix() -> None:
    U, S, V, info = truncated_svd(torch.zeros(30, 20), 4)
    assert (info.method, info.rel_error, info.spectral_bound) == ("zero", 0.0, 0.0)
    assert not S.any()
    assert torch.equal(U.T @ U, torch.eye(4))
    assert torch.equal(V.T @ V, torch.eye(4))
    assert truncated_svd(torch.zeros(30, 20), rel_error=0.1)[3].rank == 1


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str
)
def test_dtypes(dtype: torch.dtype) -> None:
    W = with_spectrum(spectrum("slow", 300), 320, 300).to(dtype)
    U, S, V, info = truncated_svd(W, 16)
    assert info.method == "krylov"
    check_factors(W, U, S, V, info)
    assert error_of(W, U, S, V) <= optimum(W, 16) * (1 + EXCESS)


@pytest.mark.parametrize(("floor", "rank"), [(-12, 40), (-12, 120), (-3, 40)])
def test_float64_resolves_small_tails(floor: int, rank: int) -> None:
    W = with_spectrum(10 ** (floor * torch.arange(300.0).double() / 150), 300, 300)
    U, S, V, info = truncated_svd(W, rank)
    check_factors(W, U, S, V, info)
    assert error_of(W, U, S, V) <= optimum(W, rank) * (1 + EXCESS)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
def test_numpy_is_as_torch(dtype: type) -> None:
    W = with_spectrum(spectrum("slow", 150), 150, 160).numpy().astype(dtype)
    W.flags.writeable = False
    factors = truncated_svd(W, 12)[:3]
    wanted = truncated_svd(torch.from_numpy(W.copy()), 12)[:3]
    for found, tensor in zip(factors, wanted, strict=True):
        assert type(found) is np.ndarray
        assert np.array_equal(found, tensor.numpy())


def test_layouts() -> None:
    W = torch.randn(160, 300, generator=torch.Generator().manual_seed(0))
    wide = torch.randn(160, 600)
    wide[:, ::2] = W
    wanted = truncated_svd(W, 12)
    for found in (truncated_svd(wide[:, ::2], 12), truncated_svd(W.clone().requires_grad_(), 12)):
        assert all(torch.equal(a, b) for a, b in zip(found[:3], wanted[:3], strict=True))
    U, S, V, info = truncated_svd(W.T, 12)
    check_factors(W.T, U, S, V, info)


@pytest.mark.parametrize("rank", [16, 120])
def test_bits_depend_on_the_seed_only(rank: int) -> None:
    W = with_spectrum(spectrum("slow", 320), 360, 320).float()
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found += [truncated_svd(W, rank, seed=3), truncated_svd(W, rank, seed=3)]
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0][:3], other[:3], strict=True))
        assert other[3].rel_error == found[0][3].rel_error
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    other = truncated_svd(W, 16, seed=4)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not torch.equal(other[0], found[0][0][:, :16])


@pytest.mark.parametrize("name", ["slow", "harmonic", "graded down", "steep"])
@pytest.mark.parametrize("tolerance", [0.5, 0.1, 0.02])
def test_adaptive_rank(name: str, tolerance: float) -> None:
    W = with_spectrum(spectrum(name, 400), 400, 400).float()
    U, S, V, info = truncated_svd(W, rel_error=tolerance)
    check_factors(W, U, S, V, info)
    assert info.rel_error <= tolerance
    smallest = next(rank for rank in range(1, 401) if optimum_of(name, rank) <= tolerance)
    assert smallest <= info.rank <= max(smallest + 1, smallest * 1.02)


def optimum_of(name: str, rank: int) -> float:
    sigma = spectrum(name, 400)
    return float(sigma[rank:].norm() / sigma.norm())


def test_adaptive_rank_of_a_large_matrix_takes_a_small_basis() -> None:
    W = with_spectrum(spectrum("harmonic", 1024), 1024, 1024).float()
    info = truncated_svd(W, rel_error=0.1)[3]
    sigma = spectrum("harmonic", 1024)
    smallest = next(r for r in range(1, 1024) if sigma[r:].norm() <= 0.1 * sigma.norm())
    assert info.method == "krylov"
    assert smallest <= info.rank <= 1.02 * smallest
    known = truncated_svd(W, info.rank)[3]
    assert info.passes <= 1.5 * known.passes


def test_energy_is_an_error() -> None:
    W = with_spectrum(spectrum("harmonic", 150), 150, 160).float()
    by_energy = truncated_svd(W, energy=0.96)[3]
    assert by_energy.rank == truncated_svd(W, rel_error=0.2)[3].rank
    assert 1 - by_energy.rel_error**2 >= 0.96


def test_which_method_runs() -> None:
    large = with_spectrum(spectrum("slow", 320), 330, 320).float()
    assert truncated_svd(large, 16)[3].method == "krylov"
    assert truncated_svd(large, 200)[3].method == "gram"
    assert truncated_svd(large[:100], 16)[3].method == "gram"
    assert truncated_svd(large[:20], 5)[3].method == "svd"
    assert truncated_svd(large, 16)[3].passes < 10


@pytest.mark.parametrize("shape", [(300, 320), (320, 300)])
def test_all_ranks_from_one_gram_matrix(shape: tuple[int, int]) -> None:
    W = with_spectrum(spectrum("slow", 300), *shape).float()
    for rank in (150, 299, 300):
        U, S, V, info = truncated_svd(W, rank)
        assert info.method == "gram"
        check_factors(W, U, S, V, info)
        assert error_of(W, U, S, V) <= optimum(W, rank) * (1 + EXCESS) + 1e-6


def test_spectral_bound_is_of_use() -> None:
    W = with_spectrum(spectrum("slow", 320), 330, 320).float()
    info = truncated_svd(W, 16)[3]
    left = float(spectrum("slow", 320)[16])
    assert left <= info.spectral_bound <= 6 * left
    assert info.spectral_bound < info.rel_error * math.sqrt(float(W.double().square().sum()))
    assert info.seconds > 0


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ValueError, "got none, wanted exactly one of rank, rel_error, energy"),
        ({"rank": 2, "energy": 0.5}, ValueError, "got rank and energy, wanted exactly one"),
        ({"rank": 0}, ValueError, "rank: got 0, wanted 1 to 6"),
        ({"rank": 7}, ValueError, "rank: got 7, wanted 1 to 6"),
        ({"rank": 2.0}, TypeError, "rank: got float 2.0, wanted an int"),
        ({"rank": True}, TypeError, "rank: got bool True, wanted an int"),
        ({"rel_error": 0.0}, ValueError, "rel_error: got 0.0, wanted more than 0"),
        ({"rel_error": 1}, ValueError, "rel_error: got 1, wanted more than 0 and less than 1"),
        ({"rel_error": math.nan}, ValueError, "rel_error: got nan"),
        ({"energy": "0.9"}, TypeError, "energy: got str '0.9', wanted a float"),
        ({"rel_error": 1e-9}, ValueError, "below the rounding of float32 factors"),
        ({"rank": 2, "seed": -1}, ValueError, "seed: got int -1, wanted an int, 0 or more"),
        ({"rank": 2, "seed": 0.5}, ValueError, "seed: got float 0.5"),
    ],
)
def test_wrong_arguments(arguments: dict[str, object], error: type, message: str) -> None:
    W = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
    with pytest.raises(error, match=f"truncated_svd: .*{message}"):
        truncated_svd(W, **arguments)


@pytest.mark.parametrize(
    ("W", "error", "message"),
    [
        (torch.zeros(0, 4), ValueError, "wanted a dense .m, n., both >= 1"),
        (torch.zeros(4, 0), ValueError, "wanted a dense .m, n., both >= 1"),
        (torch.zeros(4), ValueError, "wanted a dense .m, n., both >= 1"),
        (torch.zeros(2, 4, 4), ValueError, "wanted a dense .m, n., both >= 1"),
        (torch.zeros(4, 4, dtype=torch.int32), TypeError, "got dtype torch.int32"),
        (torch.zeros(4, 4, dtype=torch.complex64), TypeError, "got dtype torch.complex64"),
        (np.zeros((4, 4), np.int64), TypeError, "got dtype int64"),
        ([[1.0]], TypeError, "wanted a numpy array or a torch tensor"),
        (torch.zeros(4, 4, device="meta"), RuntimeError, "is on meta"),
        (torch.eye(4).to_sparse(), ValueError, "wanted a dense"),
        (torch.full((4, 4), math.nan), ValueError, "W: holds NaN or Inf"),
        (torch.tensor([[1.0, math.inf], [0.0, 1.0]]), ValueError, "W: holds NaN or Inf"),
        (torch.full((300, 300), -math.inf, dtype=torch.float64), ValueError, "holds NaN or Inf"),
    ],
)
def test_wrong_matrices(W: object, error: type, message: str) -> None:
    with pytest.raises(error, match=f"truncated_svd: W: .*{message}|truncated_svd: {message}"):
        truncated_svd(W, 1)


def test_interrupting_restores_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    W = torch.randn(300, 300)
    threads = torch.get_num_threads()
    monkeypatch.setattr(torch.linalg, "eigh", interrupt)
    with pytest.raises(KeyboardInterrupt):
        truncated_svd(W, 8)
    assert torch.get_num_threads() == threads


def test_progress(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rich")
    W = torch.randn(300, 300)
    truncated_svd(W, 8, progress=True)
    assert "truncated_svd" in capsys.readouterr().err
    truncated_svd(W, 8)
    assert capsys.readouterr().err == ""


def test_excess_decides_how_long_the_search_runs() -> None:
    W = with_spectrum(spectrum("slow", 400), 600, 400).float()
    found = {}
    for excess in (0.03, 1e-5):
        U, S, V, info = truncated_svd(W, 32, excess=excess)
        assert error_of(W, U, S, V) <= optimum(W, 32) * (1 + excess)
        found[excess] = info.passes
    assert found[0.03] < found[1e-5]


@pytest.mark.parametrize("excess", [0.0, 1.0, math.nan, "1e-3", True])
def test_refuses_an_excess(excess: object) -> None:
    with pytest.raises(ValueError, match="excess: got"):
        truncated_svd(torch.eye(4), 2, excess=excess)
