"""The factored inverse of second moments, and what happens where there is none."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gossamer.calibration.obs import factor


def moment_of(K: int) -> Tensor:
    x = torch.randn(3 * K + 5, K)
    x[:, 1:] += 0.8 * x[:, :-1].clone()
    return x.T @ x / len(x)


def test_factor_is_of_the_inverse() -> None:
    for K in (1, 2, 100, 129, 300):
        moment = moment_of(K)
        used = factor(moment, damping=0.05)
        assert used.damping == 0.05
        assert used.order is None
        assert torch.equal(used.lower, used.lower.tril())
        H = moment.double()
        H += 0.05 * H.diagonal().mean() * torch.eye(K, dtype=torch.float64)
        L = used.lower.double()
        unit = L @ L.T @ H
        assert (unit - torch.eye(K, dtype=torch.float64)).abs().max() < 1e-3


def test_damping_grows_until_there_is_a_factor() -> None:
    moment = torch.ones(30, 30)
    assert 0 < factor(moment, damping=0.0).damping <= 1e-2
    moment[3, 4] = moment[4, 3] = 1.2  # not positive semidefinite
    used = factor(moment, damping=0.01)
    assert used.damping == pytest.approx(1.0)
    assert bool(used.lower.isfinite().all())


def test_float64_where_float32_fails() -> None:
    i = torch.arange(8, dtype=torch.float64)
    hilbert = 1 / (i[:, None] + i + 1)  # its condition number is 1.5e10
    used = factor(hilbert, damping=0.0)
    assert used.damping == 0.0
    L = used.lower.double()
    unit = L.T @ hilbert @ L
    assert (unit - torch.eye(8, dtype=torch.float64)).abs().max() < 0.05


def test_order_is_by_falling_diagonal() -> None:
    moment = moment_of(40)
    used = factor(moment, order=True)
    assert used.order is not None
    assert torch.equal(used.order.sort().values, torch.arange(40))
    assert bool((moment.diagonal()[used.order].diff() <= 0).all())
    plain = factor(moment[used.order][:, used.order])
    assert torch.equal(used.lower, plain.lower)


def test_threads_change_nothing() -> None:
    moment, count = moment_of(333), torch.get_num_threads()
    factors = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        try:
            factors.append(factor(moment).lower)
        finally:
            torch.set_num_threads(count)
    assert torch.equal(factors[0], factors[1])
    assert torch.equal(factors[0], factors[2])


def test_far_from_positive_semidefinite() -> None:
    moment = torch.eye(4)
    moment[0, 1] = moment[1, 0] = 1e7
    with pytest.raises(ValueError, match="wanted a positive semidefinite matrix"):
        factor(moment)


def test_factor_errors() -> None:
    nan = torch.eye(3)
    nan[1, 2] = torch.nan
    for kind, message, call in (
        (ValueError, "factor: moment: holds NaN or infinity", lambda: factor(nan)),
        (ValueError, r"wanted \[K, K\]", lambda: factor(torch.ones(2, 3))),
        (ValueError, r"wanted \[K, K\]", lambda: factor(torch.ones(0, 0))),
        (TypeError, "got dtype torch.float16", lambda: factor(torch.eye(2).half())),
        (ValueError, "damping: got -1", lambda: factor(torch.eye(2), damping=-1)),
        (ValueError, "damping: got nan", lambda: factor(torch.eye(2), damping=float("nan"))),
    ):
        with pytest.raises(kind, match=message):
            call()
