"""Passes of the truncated SVD over a dense matrix: tensors to the pointers of the extension.

Beside the other ``_ops`` files, the only one that turns tensors into pointers. The contract is
csrc/include/gossamer/svd.h; results are bit-identical for every number of threads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import _C, _check

LANES = ("f32", "bf16")


def sketch(
    W: Tensor, X: Tensor, lane: str = "f32", isa: str = "", threads: int | None = None
) -> Tensor:
    """Compute ``Y = W X``: W [m, n], X [n, l] float32, Y [m, l] float32."""
    passes, W = _passes("sketch", W, lane, isa, threads)
    X = _factor("sketch", "X", X, W.shape[1])
    Y = torch.empty(W.shape[0], X.shape[1])
    passes.sketch(X.shape[1], X.data_ptr(), X.stride(0), Y.data_ptr())
    return Y


def project(
    W: Tensor, Y: Tensor, lane: str = "f32", isa: str = "", threads: int | None = None
) -> Tensor:
    """Compute ``Z = Wᵀ Y``: Y [m, l] float32, Z [n, l] float32, float64 sums beyond 256 rows."""
    passes, W = _passes("project", W, lane, isa, threads)
    Y = _factor("project", "Y", Y, W.shape[0])
    Z = torch.empty(W.shape[1], Y.shape[1])
    passes.project(Y.shape[1], Y.data_ptr(), Y.stride(0), Z.data_ptr())
    return Z


def power_step(
    W: Tensor, X: Tensor, lane: str = "f32", isa: str = "", threads: int | None = None
) -> tuple[Tensor, Tensor]:
    """Compute ``Y = W X`` and ``Z = Wᵀ Y`` in one read of W."""
    passes, W = _passes("power_step", W, lane, isa, threads)
    X = _factor("power_step", "X", X, W.shape[1])
    l = X.shape[1]  # noqa: E741
    Y, Z = torch.empty(W.shape[0], l), torch.empty(W.shape[1], l)
    passes.power_step(l, X.data_ptr(), X.stride(0), Y.data_ptr(), Z.data_ptr())
    return Y, Z


def best_lane() -> str:
    """Name the fastest lane of the active ISA: "bf16" where it has one, else "f32"."""
    return "bf16" if _C.svd_has_lane("bf16", "") else "f32"


def _passes(
    function: str, W: Tensor, lane: str, isa: str, threads: int | None
) -> tuple[_C.SvdPasses, Tensor]:
    """Check W and how to multiply it; also W as the kernels read it, which must stay alive."""
    _check.floating(function, "W", W)
    if W.dim() != 2 or 0 in W.shape:
        raise ValueError(f"{function}: W: got {_check.describe(W)}, wanted [m, n], both >= 1")
    if lane not in LANES:
        raise ValueError(f"{function}: lane: got {lane!r}, wanted 'f32' or 'bf16'")
    if not _C.svd_has_lane(lane, isa):
        raise RuntimeError(
            f"{function}: lane: 'bf16' needs the instruction set avx512bf16 or amx, not "
            f"{isa or _C.isa_active()}; 'f32' works everywhere"
        )
    W = _unit_rows(W)
    passes = _C.SvdPasses(
        W.data_ptr(),
        _check.DTYPES[W.dtype],
        W.shape[0],
        W.shape[1],
        W.stride(0),
        lane,
        isa,
        _check.threads(function, threads),
    )
    return passes, W


def _factor(function: str, name: str, factor: Tensor, rows: int) -> Tensor:
    """Check the thin matrix [rows, l]."""
    if factor.dtype is not torch.float32:
        raise TypeError(f"{function}: {name}: got dtype {factor.dtype}, wanted float32")
    _check.on_cpu(function, name, factor)
    if factor.dim() != 2 or factor.shape[0] != rows or factor.shape[1] < 1:
        raise ValueError(
            f"{function}: {name}: got {_check.describe(factor)}, wanted [{rows}, l], l >= 1"
        )
    return _unit_rows(factor)


def _unit_rows(matrix: Tensor) -> Tensor:
    """The matrix with unit stride along its rows; copied only where it has another."""
    matrix = matrix.detach().resolve_neg()
    return matrix if matrix.stride(1) == 1 or matrix.shape[1] == 1 else matrix.contiguous()
