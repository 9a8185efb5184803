"""The research surface of the truncated SVD: passes over a matrix, and an orthonormal basis.

Its functions are those of :mod:`gossamer.kernels`; W, X, Y and Z are tensors or arrays, and need
not be contiguous: a slice of columns of a larger buffer is read in place.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _check, _ops_svd
from ._products import Array, as_tensor, isa_name, like
from .svd.algebra import one_thread

# Of the pivots of a Gram matrix with unit diagonal: beyond it a float32 product knows too little.
_MOST_SPREAD = 1e3
_MOST_DEFECT = 0.1  # of the Gram matrix of the first round from the identity, entry by entry


def sketch(
    W: Array, X: Array, lane: str = "f32", isa: str | None = None, threads: int | None = None
) -> Any:
    """``Y = W X`` with a thin X.

    Parameters
    ----------
    W : Tensor or ndarray
        Shape (m, n), float32, float16 or (torch) bfloat16.
    X : Tensor or ndarray
        Shape (n, l), float32.
    lane : str
        "f32", or "bf16": W and X are rounded to bfloat16 and summed in float32, which is faster
        where the processor has such products; ``isa`` "avx512bf16" or "amx".
    isa : str, optional
        One of ``gs.cpu.available()``; None takes ``gs.cpu.isa()``.
    threads : int, optional
        None takes ``torch.get_num_threads()``. No bit of the result depends on it.

    Returns
    -------
    Tensor or ndarray
        Y of shape (m, l), float32, of the kind of W.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        Where an argument does not fit, or `isa` is not available or has no such lane.

    Notes
    -----
    ``|Y - W X| <= (2 n 2^-24 + v) |W| |X|`` entry by entry, v = 0 in lane "f32" and 1.01 2^-7 in
    "bf16", which also counts denormals as zero and rounds 3e38 to infinity.
    NaN and infinity propagate as in any sum.

    Examples
    --------
    >>> W = np.array([[1.0, 2.0], [3.0, 4.0]], dtype=np.float32)
    >>> gs.kernels.sketch(W, np.ones((2, 1), dtype=np.float32))
    array([[3.],
           [7.]], dtype=float32)
    """
    Y = _ops_svd.sketch(*_operands("sketch", W, "X", X), lane, isa_name("sketch", isa), threads)
    return like(W, Y)


def project(
    W: Array, Y: Array, lane: str = "f32", isa: str | None = None, threads: int | None = None
) -> Any:
    """``Z = Wᵀ Y`` with a thin Y: float32 sums of 256 rows, added in float64.

    Parameters
    ----------
    W : Tensor or ndarray
        Shape (m, n), float32, float16 or (torch) bfloat16.
    Y : Tensor or ndarray
        Shape (m, l), float32.
    lane, isa, threads : optional
        As of :func:`sketch`.

    Returns
    -------
    Tensor or ndarray
        Z of shape (n, l), float32, of the kind of W.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As :func:`sketch`.

    Notes
    -----
    ``|Z - Wᵀ Y| <= (512 2^-24 + v) |W|ᵀ |Y|`` however many rows there are, v as of :func:`sketch`;
    then Z is rounded to float32.

    Examples
    --------
    >>> W = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    >>> gs.kernels.project(W, W)  # the Gram matrix
    tensor([[10., 14.],
            [14., 20.]])
    """
    Z = _ops_svd.project(*_operands("project", W, "Y", Y), lane, isa_name("project", isa), threads)
    return like(W, Z)


def power_step(
    W: Array, X: Array, lane: str = "f32", isa: str | None = None, threads: int | None = None
) -> tuple[Any, Any]:
    """``Y = W X`` and ``Z = Wᵀ Y``, for which a large W is read from memory once.

    Parameters
    ----------
    W : Tensor or ndarray
        Shape (m, n), float32, float16 or (torch) bfloat16.
    X : Tensor or ndarray
        Shape (n, l), float32.
    lane, isa, threads : optional
        As of :func:`sketch`.

    Returns
    -------
    Y, Z : Tensor or ndarray
        Shapes (m, l) and (n, l), float32, of the kind of W. Y is bit for bit that of
        :func:`sketch`.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As :func:`sketch`.

    Notes
    -----
    One step of the power iteration of Halko, Martinsson and Tropp, "Finding structure with
    randomness" (2011), algorithm 4.4. Z is summed in float32 within chunks of at least 512 rows,
    which depend on the shape alone, and in float64 across them.

    Examples
    --------
    >>> W = torch.diag(torch.tensor([3.0, 2.0, 1.0]))
    >>> Y, Z = gs.kernels.power_step(W, torch.ones(3, 1))
    >>> Y.T, Z.T
    (tensor([[3., 2., 1.]]), tensor([[9., 4., 1.]]))
    """
    operands = _operands("power_step", W, "X", X)
    Y, Z = _ops_svd.power_step(*operands, lane, isa_name("power_step", isa), threads)
    return like(W, Y), like(W, Z)


def cholesky_qr2(X: Array, isa: str | None = None, threads: int | None = None) -> tuple[Any, Any]:
    """Orthonormal basis of the columns of a tall matrix: ``X = Q R``, mostly in products.

    Parameters
    ----------
    X : Tensor or ndarray
        Shape (m, l), l <= m, float32.
    isa, threads : optional
        As of :func:`sketch`.

    Returns
    -------
    Q : Tensor or ndarray
        Shape (m, l), float32, orthonormal columns: ``|QᵀQ - I|`` is a few 2^-24 times sqrt(l).
    R : Tensor or ndarray
        Shape (l, l), float32, upper triangular, its diagonal >= 0.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        Where X is not (m, l) with l <= m, holds NaN or infinity, or `isa` is not available.

    Notes
    -----
    Twice: ``G = XᵀX`` by :func:`project`, its Cholesky factor R in float64, ``X := X R⁻¹`` by
    :func:`sketch` (Fukaya, Nakatsukasa, Yanagisawa, Yamamoto, "CholeskyQR2", 2014). Columns are
    scaled to length 1 before, so that graded ones do no harm. Where X is rank-deficient or its
    scaled columns are nearly dependent (a condition number of a few hundred), which shows in
    G or in the basis after the first round, it is Householder's QR by ``torch.linalg.qr``
    instead, with one thread, in float64.

    ``|X - Q R|`` is about ``2^-24 κ |X|`` with κ the condition number of the scaled columns.

    Examples
    --------
    >>> Q, R = gs.kernels.cholesky_qr2(torch.randn(100, 8))
    >>> bool((Q.T @ Q - torch.eye(8)).abs().max() < 1e-5)
    True
    """
    basis = as_tensor("cholesky_qr2", "X", X)
    if basis.dim() != 2 or not 1 <= basis.shape[1] <= basis.shape[0]:
        raise ValueError(
            f"cholesky_qr2: X: got {_check.describe(basis)}, wanted [m, l] with 1 <= l <= m"
        )
    if basis.dtype is not torch.float32:
        raise TypeError(f"cholesky_qr2: X: got dtype {basis.dtype}, wanted float32")
    _check.on_cpu("cholesky_qr2", "X", basis)
    if not basis.isfinite().all():
        raise ValueError("cholesky_qr2: X: holds NaN or infinity")
    Q, R = _cholesky_rounds(basis, isa_name("cholesky_qr2", isa), threads) or _householder(basis)
    return like(X, Q), like(X, R)


def _operands(function: str, W: Array, name: str, factor: Array) -> tuple[Tensor, Tensor]:
    return as_tensor(function, "W", W), as_tensor(function, name, factor)


def _cholesky_rounds(X: Tensor, isa: str, threads: int | None) -> tuple[Tensor, Tensor] | None:
    """Q and R, or None where Gram matrices do not tell enough of X."""
    Q, R = X, torch.eye(X.shape[1], dtype=torch.float64)
    for round_number in range(2):
        gram = _ops_svd.project(Q, Q, "f32", isa, threads).double()
        if round_number == 1 and not (gram - torch.eye(len(gram))).abs().max() < _MOST_DEFECT:
            return None
        lengths = gram.diagonal().sqrt()
        if not (lengths > 0).all() or lengths.isinf().any():
            return None
        with one_thread():
            # Lower triangles only are read, so a last bit of asymmetry does not matter.
            L, failed = torch.linalg.cholesky_ex(gram / lengths / lengths[:, None])
            pivots = L.diagonal()
            if failed or not pivots.max() < _MOST_SPREAD * pivots.min():
                return None
            L = lengths[:, None] * L
            inverse = torch.linalg.solve_triangular(L, torch.eye(len(L)).double(), upper=False)
        Q = _ops_svd.sketch(Q, inverse.T.float().contiguous(), "f32", isa, threads)
        R = L.T @ R
    return Q, R.float()


def _householder(X: Tensor) -> tuple[Tensor, Tensor]:
    with one_thread():
        Q, R = torch.linalg.qr(X.double())
    signs = torch.where(R.diagonal() < 0, -1.0, 1.0)
    return (Q * signs).float(), (R * signs[:, None]).float()
