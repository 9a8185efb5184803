"""The arguments of ``truncated_svd``: checked, as tensors, and scaled into the range of float32."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .. import _check, _ops_svd
from .search import Target

NAME = "truncated_svd"
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# Squares and products of such entries neither overflow nor vanish in float32.
_LEAST, _MOST = 1e-12, 1e12
_PART = 1 << 20  # elements of a part that is converted to float32 at once


@dataclass(frozen=True)
class Problem:
    """A matrix whose singular triplets are sought.

    Attributes
    ----------
    W : Tensor
        [m, n], contiguous, finite; the caller's values over `scale`, transposed where `transposed`.
    C : Tensor or None
        [n, n], symmetric, over a scale of its own.
    scale : float
        A power of two.
    transposed : bool
        Whether U and V change places: the caller's matrix has its columns in a row.
    size : float
        ``|W|_F²`` in the scaled values.
    energy : float
        The same; with C ``trace(W C Wᵀ)``.
    uncertainty : float
        How far `energy` may be off.
    """

    W: Tensor
    C: Tensor | None
    scale: float
    transposed: bool
    size: float
    energy: float
    uncertainty: float

    @property
    def factors(self) -> torch.dtype:
        """The dtype of the factors."""
        return torch.float64 if self.W.dtype is torch.float64 else torch.float32


def target(rank: object, rel_error: object, energy: object, shape: tuple[int, int]) -> Target:
    """The one of the three arguments that was given."""
    given = {"rank": rank, "rel_error": rel_error, "energy": energy}
    names = [name for name, value in given.items() if value is not None]
    if len(names) != 1:
        came = " and ".join(names) or "none"
        raise ValueError(f"{NAME}: got {came}, wanted exactly one of rank, rel_error, energy")
    value = given[names[0]]
    if names[0] == "rank":
        if not isinstance(value, (int, np.integer)) or isinstance(value, bool):
            raise TypeError(f"{NAME}: rank: got {_check.describe(value)}, wanted an int")
        if not 1 <= value <= min(shape):
            raise ValueError(f"{NAME}: rank: got {value}, wanted 1 to {min(shape)} for {shape}")
        return Target(int(value))
    if not isinstance(value, (int, float, np.floating)) or isinstance(value, bool):
        raise TypeError(f"{NAME}: {names[0]}: got {_check.describe(value)}, wanted a float")
    if not 0 < value < 1:
        raise ValueError(f"{NAME}: {names[0]}: got {value}, wanted more than 0 and less than 1")
    share = float(value)
    return Target(None, share * share if names[0] == "rel_error" else 1 - share)


def excess(value: object) -> float:
    """By how much the error may exceed the smallest, a number from 1e-6 to 1."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not 1e-6 <= value < 1:
        raise ValueError(
            f"{NAME}: excess: got {_check.describe(value)}, wanted at least 1e-6 and less than 1"
        )
    return float(value)


def matrix(name: str, value: object) -> Tensor:
    """A numpy array or torch tensor as a matrix, without a copy where possible."""
    if isinstance(value, np.ndarray):
        if value.dtype not in (np.float16, np.float32, np.float64):
            raise TypeError(
                f"{NAME}: {name}: got dtype {value.dtype}, wanted float16, float32 or float64"
            )
        plain = (
            value.dtype.isnative and value.flags.writeable and min(value.strides, default=1) >= 0
        )
        found = torch.from_numpy(value if plain else value.astype(value.dtype.newbyteorder("=")))
    elif isinstance(value, Tensor):
        found = value.detach()
    else:
        raise TypeError(
            f"{NAME}: {name}: got {_check.describe(value)}, wanted a numpy array or a torch tensor"
        )
    if found.dtype not in _DTYPES:
        raise TypeError(
            f"{NAME}: {name}: got dtype {found.dtype}, wanted float32, bfloat16, float16 or float64"
        )
    _check.on_cpu(NAME, name, found)
    if found.layout is not torch.strided or found.dim() != 2 or 0 in found.shape:
        raise ValueError(
            f"{NAME}: {name}: got {_check.describe(found)}, wanted a dense [m, n], both >= 1"
        )
    return found


def seed(value: object) -> int:
    """The seed, a number from 0 on."""
    if (
        not isinstance(value, (int, np.integer))
        or isinstance(value, bool)
        or not 0 <= value < 2**63
    ):
        raise ValueError(f"{NAME}: seed: got {_check.describe(value)}, wanted an int, 0 or more")
    return int(value)


def prepare(W: Tensor, C: Tensor | None) -> Problem:
    """The problem of a checked matrix and its weight."""
    transposed = C is None and not W.is_contiguous() and W.T.is_contiguous()
    W, scale, size = _scaled("W", W.T if transposed else W)
    if C is None:
        return Problem(W, None, scale, transposed, size, size, 4e-7 * size)
    n = W.shape[1]
    if tuple(C.shape) != (n, n):
        raise ValueError(f"{NAME}: weight: got {_check.describe(C)}, wanted [{n}, {n}]")
    C = _scaled("weight", C)[0]
    C = _symmetric(C.to(torch.float64 if W.dtype is torch.float64 else torch.float32))
    trace, uncertainty = _weighted_energy(W, C)
    return Problem(W, C, scale, False, size, trace, uncertainty)


def _symmetric(C: Tensor) -> Tensor:
    largest = float(C.abs().max())
    difference = float((C - C.T).abs().max())
    if difference > 1e-3 * largest:
        raise ValueError(
            f"{NAME}: weight: entries differ from their mirror image by up to {difference:.3g}, "
            f"the largest is {largest:.3g}; wanted a symmetric matrix"
        )
    if float(C.diagonal().min()) < -1e-6 * largest:
        raise ValueError(f"{NAME}: weight: has negative entries on its diagonal, wanted none")
    return (C + C.T) / 2 if difference > 0 else C.contiguous()


def _weighted_energy(W: Tensor, C: Tensor) -> tuple[float, float]:
    """``trace(W C Wᵀ)``, and how far it may be off.

    A product of rows has an error of ``32 u |w| |c|`` (see certificate.py); those of different
    entries are independent but where W has structure, for which a factor of sqrt(m) is left.
    """
    total = 0.0
    for first in range(0, C.shape[0], 256):
        here = slice(first, first + 256)
        columns = C[:, here].contiguous()
        product = W @ columns if W.dtype is torch.float64 else _ops_svd.sketch(W, columns)
        total += float((product * W[:, here]).double().sum(1).sum())
    unit = torch.finfo(C.dtype).eps / 2
    off = 32 * unit * squares(W) * math.sqrt(squares(C) / C.shape[0])
    return max(total, 0.0), off


def _scaled(name: str, value: Tensor) -> tuple[Tensor, float, float]:
    """The values over a power of two, that power, and the sum of the squares of the result."""
    value = value.contiguous()
    total = squares(value)
    if _LEAST**2 < total < _MOST**2:
        return value, 1.0, total
    largest = float(value.abs().max())
    if not math.isfinite(largest):
        raise ValueError(f"{NAME}: {name}: holds NaN or Inf, wanted finite values")
    if largest == 0.0:
        return value, 1.0, 0.0
    exponent = math.frexp(largest)[1]
    wide = torch.ldexp(value.double(), torch.tensor(-exponent))
    value = wide if value.dtype is torch.float64 else wide.float()
    return value, 2.0**exponent, squares(value)


def squares(value: Tensor) -> float:
    """The sum of squares, in an order that does not depend on the number of threads.

    Blocks of 64 in float32 (float64 for float64), then in float64: off by less than 4e-7 of itself.
    """
    flat = value.reshape(-1)
    total = 0.0
    for first in range(0, flat.numel(), _PART):
        part = flat[first : first + _PART]
        part = part if part.dtype is torch.float64 else part.float()
        head = part.numel() // 64 * 64
        for blocks in (part[:head].view(-1, 64), part[head:].view(1, -1)):
            if blocks.numel():
                norms = torch.linalg.vector_norm(blocks, dim=1).double()
                total += float(norms.square().sum())
    return total
