"""gossamer.svd.truncated_svd with a weight, against the eigenvectors of W C W^T in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from gossamer.svd import truncated_svd
from gossamer.svd.search import EXCESS


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def second_moment(n: int, samples: int) -> Tensor:
    X = random(samples, n, seed=1) * torch.exp(random(n, seed=2))
    return X.T @ X / samples


def weighted_error(W: Tensor, C: Tensor, U: Tensor, S: Tensor, V: Tensor) -> float:
    W, C = W.double(), C.double()
    E = W - (U.double() * S.double()) @ V.double().T
    return math.sqrt(max(float((E @ C * E).sum() / (W @ C * W).sum()), 0.0))


def best(W: Tensor, C: Tensor, rank: int) -> float:
    """The smallest possible weighted error."""
    M = W.double() @ C.double() @ W.double().T
    energies = torch.linalg.eigvalsh((M + M.T) / 2).flip(0).clamp_min(0)
    return math.sqrt(float(energies[rank:].sum() / energies.sum()))


CASES = [(300, 260, 8), (300, 260, 130), (280, 500, 8), (280, 500, 140), (90, 60, 8), (30, 40, 5)]


@pytest.mark.parametrize(("m", "n", "rank"), CASES)
@pytest.mark.parametrize("samples", ["many", "few"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_error_is_near_the_optimum(
    m: int, n: int, rank: int, samples: str, dtype: torch.dtype
) -> None:
    C = second_moment(n, 2 * n if samples == "many" else n // 3).to(dtype)
    W = random(m, n).to(dtype)
    U, S, V, info = truncated_svd(W, rank, weight=C)
    eye, limit = torch.eye(rank, dtype=dtype), 1e-5 if dtype is torch.float32 else 1e-12
    assert (U.T @ U - eye).abs().max() < limit
    assert (V.T @ V - eye).abs().max() < limit
    error = weighted_error(W, C, U, S, V)
    assert error <= info.rel_error
    assert error <= best(W, C, rank) * (1 + 2 * EXCESS) + 2e-5
    rest = W.double() - (U.double() * S.double()) @ V.double().T
    assert torch.linalg.matrix_norm(rest, 2) <= info.spectral_bound


def test_it_projects_on_the_leading_output_directions() -> None:
    """U S V^T = U_r U_r^T W, with U_r from the eigenvectors of W C W^T."""
    W, C = random(60, 40), second_moment(40, 100)
    U, S, V, _ = truncated_svd(W, 6, weight=C)
    leading = torch.linalg.eigh(W @ C @ W.T)[1][:, -6:]
    assert torch.allclose((U * S) @ V.T, leading @ (leading.T @ W), atol=1e-9)


def test_identity_changes_nothing() -> None:
    W = random(300, 280).float()
    plain = truncated_svd(W, 150)
    weighted = truncated_svd(W, 150, weight=torch.eye(280))
    assert torch.allclose(plain[1], weighted[1], rtol=1e-5)
    assert weighted[3].rel_error == pytest.approx(plain[3].rel_error, rel=1e-3)


def test_weighted_beats_plain() -> None:
    W, C = random(300, 280).float(), second_moment(280, 500)
    weighted = weighted_error(W, C, *truncated_svd(W, 16, weight=C)[:3])
    assert weighted < 0.95 * weighted_error(W, C, *truncated_svd(W, 16)[:3])


@pytest.mark.parametrize("tolerance", [0.6, 0.3])
def test_adaptive_rank(tolerance: float) -> None:
    W, C = random(300, 280).float(), second_moment(280, 500).float()
    U, S, V, info = truncated_svd(W, rel_error=tolerance, weight=C)
    assert weighted_error(W, C, U, S, V) <= info.rel_error <= tolerance
    smallest = next(rank for rank in range(1, 281) if best(W, C, rank) <= tolerance)
    assert smallest <= info.rank <= max(smallest + 1, 1.02 * smallest)


def test_dtypes_and_kinds() -> None:
    W, C = random(150, 140), second_moment(140, 300)
    wanted = truncated_svd(W.float(), 8, weight=C.float())[:3]
    by_numpy = truncated_svd(W.float().numpy(), 8, weight=C.float().numpy())[:3]
    for found, tensor in zip(by_numpy, wanted, strict=True):
        assert np.array_equal(found, tensor.numpy())
    for kind in (torch.bfloat16, torch.float16):
        rounded = (C / C.abs().max()).to(kind)
        U, S, V, info = truncated_svd(W.to(kind), 8, weight=rounded)
        assert U.dtype is torch.float32
        assert weighted_error(W.to(kind), rounded, U, S, V) <= info.rel_error
    mixed = truncated_svd(W.float(), 8, weight=C)
    assert torch.allclose(mixed[1], wanted[1], rtol=1e-4)


@pytest.mark.parametrize("scale", [1e25, 1e-25])
def test_the_scale_of_the_weight_does_not_matter(scale: float) -> None:
    W, C = random(100, 90).float(), second_moment(90, 200).float()
    wanted = truncated_svd(W, 8, weight=C)
    found = truncated_svd(W, 8, weight=C * scale)
    assert torch.allclose(found[1], wanted[1], rtol=1e-4)
    assert found[3].rel_error == pytest.approx(wanted[3].rel_error, rel=1e-3)


def test_bits_depend_on_the_seed_only() -> None:
    W, C = random(300, 280).float(), second_moment(280, 500).float()
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(truncated_svd(W, 12, weight=C))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0][:3], other[:3], strict=True))


def test_a_weight_that_sees_nothing() -> None:
    W = random(60, 50).float()
    U, S, V, info = truncated_svd(W, 5, weight=torch.zeros(50, 50))
    assert info.rel_error == 0.0
    assert (U.T @ U - torch.eye(5)).abs().max() < 1e-5
    assert (V.T @ V - torch.eye(5)).abs().max() < 1e-5
    assert S.isfinite().all()


@pytest.mark.parametrize(
    ("C", "error", "message"),
    [
        (torch.eye(5), ValueError, r"wanted \[6, 6\]"),
        (torch.zeros(6, 5), ValueError, r"wanted \[6, 6\]"),
        (torch.ones(6, 6).triu(), ValueError, "wanted a symmetric matrix"),
        (torch.full((6, 6), math.nan), ValueError, "holds NaN or Inf"),
        (-torch.eye(6), ValueError, "negative entries on its diagonal"),
        (torch.eye(6, dtype=torch.int32), TypeError, "got dtype torch.int32"),
        (6, TypeError, "wanted a numpy array or a torch tensor"),
    ],
)
def test_wrong_weights(C: object, error: type, message: str) -> None:
    with pytest.raises(error, match=f"truncated_svd: weight: .*{message}"):
        truncated_svd(random(8, 6), 2, weight=C)
