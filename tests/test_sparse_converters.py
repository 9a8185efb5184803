"""Sparse formats from and to torch CSR and BSR and SciPy, and gs.kernels.spmm on all of them."""

from __future__ import annotations

import sys
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

import gossamer as gs
from gossamer.formats import SparseBF16, SparseFP32, SparseInt4, SparseInt8

scipy_sparse = pytest.importorskip("scipy.sparse")
FLOAT_FORMS: list[type[Any]] = [SparseFP32, SparseBF16]
shapes = st.tuples(st.integers(1, 40), st.integers(1, 200))


def pruned(N: int, K: int, density: float, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    W = torch.randn(N, K, generator=random).bfloat16().float()
    return torch.where(torch.rand(N, K, generator=random) < density, W, 0.0)


def same(a: Any, b: Any) -> bool:
    return a.shape == b.shape and torch.equal(a.mask, b.mask) and torch.equal(a.values, b.values)


@pytest.mark.parametrize("form", FLOAT_FORMS)
@hypothesis.given(
    shape=shapes, density=st.sampled_from([0.0, 0.1, 0.9, 1.0]), seed=st.integers(0, 99)
)
@hypothesis.settings(max_examples=20)
def test_round_trips_are_exact(
    form: type[Any], shape: tuple[int, int], density: float, seed: int
) -> None:
    W = pruned(*shape, density, seed)
    weight = form.quantize(W)
    csr = weight.to_csr()
    assert torch.equal(csr.to_dense(), W)
    assert csr.values().numel() == weight.nnz
    assert same(form.from_csr(csr), weight)
    matrix = weight.to_scipy()
    np.testing.assert_array_equal(matrix.toarray(), W.numpy())
    assert same(form.from_scipy(matrix), weight)
    for block in ((1, 1), (shape[0], 1), (1, shape[1]), shape):
        bsr = weight.to_bsr(block)
        assert torch.equal(bsr.to_dense(), W)
        assert same(form.from_bsr(bsr), weight)


@pytest.mark.parametrize("block", [(1, 4), (4, 1), (3, 8), (12, 40)])
def test_blocks(block: tuple[int, int]) -> None:
    kept = torch.rand(24 // block[0], 80 // block[1]) < 0.4
    W = torch.randn(24, 80) * kept.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
    W.view(-1)[::5] = 0
    bsr = W.to_sparse_bsr(block)
    weight = SparseFP32.from_bsr(bsr)
    assert torch.equal(weight.dequantize(), W)
    assert weight.nnz == int((W != 0).sum())
    assert torch.equal(SparseFP32.quantize(W).to_bsr(block).to_dense(), W)


def test_nan_and_infinity_are_kept() -> None:
    W = torch.tensor([[float("nan"), 0.0], [float("inf"), 1e-45]])
    for weight in (
        SparseFP32.from_csr(W.to_sparse_csr()),
        SparseFP32.from_scipy(scipy_sparse.csr_array(W.numpy())),
        SparseFP32.from_bsr(W.to_sparse_bsr((1, 1))),
    ):
        torch.testing.assert_close(weight.dequantize(), W, rtol=0, atol=0, equal_nan=True)
        assert weight.nnz == 3


@pytest.mark.parametrize("index", [np.int32, np.int64])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_unsorted_indices_and_duplicates(index: type, dtype: type) -> None:
    starts = np.array([0, 4, 4, 6], index)
    columns = np.array([5, 0, 5, 2, 1, 1], index)
    data = np.array([1.0, 2.0, 0.25, -3.0, 4.0, -4.0], dtype)
    want = torch.tensor([[2.0, 0, -3, 0, 0, 1.25], [0] * 6, [0] * 6])
    matrix = scipy_sparse.csr_array((data, columns, starts), shape=(3, 6))
    before = matrix.indices.copy()
    for weight in (
        SparseFP32.from_scipy(matrix),
        SparseFP32.from_csr(
            torch.sparse_csr_tensor(
                torch.from_numpy(starts),
                torch.from_numpy(columns),
                torch.from_numpy(data),
                size=(3, 6),
                check_invariants=False,
            )
        ),
    ):
        assert torch.equal(weight.dequantize(), want)
        assert weight.nnz == 3  # the sum of the last two is 0
    np.testing.assert_array_equal(matrix.indices, before)


@pytest.mark.parametrize("kind", ["coo", "csc", "bsr", "dia", "lil", "dok"])
def test_every_scipy_format(kind: str) -> None:
    W = pruned(12, 20, 0.3)
    matrix = scipy_sparse.coo_array(W.numpy()).asformat(kind)
    assert torch.equal(SparseFP32.from_scipy(matrix).dequantize(), W)
    old = scipy_sparse.csr_matrix(W.numpy())
    assert torch.equal(SparseFP32.from_scipy(old).dequantize(), W)


def test_integer_formats_round_as_quantize_does() -> None:
    W = pruned(9, 200, 0.4)
    for form, settings in ((SparseInt8, {"group_size": 32}), (SparseInt8, {}), (SparseInt4, {})):
        want = form.quantize(W, **settings)
        got = form.from_csr(W.to_sparse_csr(), **settings)
        assert same(got, want)
        assert torch.equal(got.scales, want.scales)
        assert torch.equal(want.to_csr().to_dense(), want.dequantize())
        np.testing.assert_array_equal(want.to_scipy().toarray(), want.dequantize().numpy())


def csr(starts: list[int], columns: list[int], shape: tuple[int, int] = (2, 3)) -> Tensor:
    return torch.sparse_csr_tensor(
        torch.tensor(starts),
        torch.tensor(columns),
        torch.ones(len(columns)),
        size=shape,
        check_invariants=False,
    )


@pytest.mark.parametrize(
    ("matrix", "error", "message"),
    [
        (torch.ones(2, 3), TypeError, "wanted a torch CSR matrix"),
        (torch.ones(2, 3).to_sparse_bsr((1, 1)), TypeError, "wanted a torch CSR matrix"),
        (torch.ones(2, 2, 3).to_sparse_csr(), TypeError, "wanted a torch CSR matrix"),
        ("csr", TypeError, "matrix: got str 'csr'"),
        (torch.ones(2, 3, dtype=torch.int32).to_sparse_csr(), TypeError, "wanted floating point"),
        (csr([0, 1, 2], [0, 3]), ValueError, r"column indices are not within \[0, 3\)"),
        (csr([0, 1, 2], [0, -1]), ValueError, r"column indices are not within \[0, 3\)"),
        (csr([0, 2, 1], [0, 1]), ValueError, "row pointers do not rise from 0 to 2"),
        (csr([0, 3, 2], [0, 1]), ValueError, "row pointers do not rise from 0 to 2"),
        (csr([1, 1, 2], [0, 1]), ValueError, "row pointers do not rise from 0 to 2"),
    ],
)
def test_torch_matrices_that_are_refused(matrix: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"SparseFP32.from_csr: matrix: .*{message}|{message}"):
        SparseFP32.from_csr(matrix)


def test_scipy_matrices_that_are_refused() -> None:
    eye = scipy_sparse.eye_array(3, format="csr", dtype=np.float32)
    for matrix in (np.eye(3), eye.astype(np.int64), eye.astype(np.complex64), torch.eye(3)):
        with pytest.raises(TypeError, match=r"SparseFP32.from_scipy: matrix: got .*wanted a scipy"):
            SparseFP32.from_scipy(matrix)
    eye.indices[1] = 7
    with pytest.raises(ValueError, match=r"from_scipy: matrix: some column indices are not within"):
        SparseFP32.from_scipy(eye)
    with pytest.raises(TypeError, match="SparseFP32: got group_size: its values have no scales"):
        SparseFP32.from_csr(torch.eye(3).to_sparse_csr(), group_size=32)
    with pytest.raises(ValueError, match=r"SparseFP32.to_bsr: block_size: got \(2, 1\), wanted"):
        SparseFP32.quantize(torch.eye(3)).to_bsr((2, 1))


def test_scipy_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = SparseFP32.quantize(torch.eye(3))
    monkeypatch.setitem(sys.modules, "scipy", None)
    monkeypatch.setitem(sys.modules, "scipy.sparse", None)
    with pytest.raises(ModuleNotFoundError, match=r"SparseFP32.to_scipy: needs SciPy"):
        weight.to_scipy()


class TestSpmm:
    def test_every_kind_of_matrix(self, isa: str) -> None:
        W = pruned(45, 130, 0.1)
        matrices = [
            SparseFP32.quantize(W),
            SparseFP32.quantize(W).pack(parts=("spmm",)),
            W.to_sparse_csr(),
            W.to_sparse_bsr((5, 10)),
            W.to_sparse_coo(),
            scipy_sparse.csr_array(W.numpy()),
            scipy_sparse.coo_array(W.numpy()),
        ]
        for M in (1, 5, 16, 40):
            x = torch.randn(M, 130)
            want, size = x.double() @ W.double().T, x.abs().double() @ W.abs().double().T
            for matrix in matrices:
                error = (gs.kernels.spmm(matrix, x).double() - want).abs()
                assert bool((error <= 200 * torch.finfo(torch.float32).eps * size).all())

    def test_int8_is_that_of_matmul(self, isa: str) -> None:
        weight = SparseInt8.quantize(pruned(45, 130, 0.1))
        x = torch.randn(20, 130)
        y = gs.kernels.spmm(weight, x)
        assert torch.equal(y, gs.kernels.matmul(x, weight.pack(parts=("spmm",))))
        expanded = gs.kernels.matmul(x, weight.pack(parts=("bitmask",)))
        torch.testing.assert_close(y, expanded, rtol=1e-5, atol=1e-5)

    def test_numpy_in_and_out(self) -> None:
        W = pruned(6, 8, 0.5)
        x = np.ones((2, 3, 8), np.float32)
        y = gs.kernels.spmm(scipy_sparse.csr_array(W.numpy()), x)
        assert isinstance(y, np.ndarray)
        np.testing.assert_allclose(y, x @ W.numpy().T, rtol=1e-5, atol=1e-6)

    def test_what_cannot_be_multiplied_so(self) -> None:
        x = torch.randn(2, 32)
        for weight in (
            SparseBF16.quantize(torch.randn(4, 32)),
            SparseInt4.quantize(torch.randn(4, 32)),
            SparseInt8.quantize(torch.randn(4, 32), 32),
        ):
            with pytest.raises(ValueError, match=r"parts: got .*, but zeros are skipped"):
                gs.kernels.spmm(weight, x)
        bitmask = SparseFP32.quantize(torch.randn(4, 32)).pack(parts=("bitmask",))
        with pytest.raises(ValueError, match="path: got spmm, but the weight was packed without"):
            gs.kernels.spmm(bitmask, x)
        with pytest.raises(ValueError, match=r"spmm: x: .*wanted \[..., 32\]"):
            gs.kernels.spmm(SparseFP32.quantize(torch.randn(4, 32)), torch.randn(2, 31))
        with pytest.raises(TypeError, match="from_scipy: matrix: got str"):
            gs.kernels.spmm("matrix", x)
