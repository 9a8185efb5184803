"""What this machine can run, which instruction set is used, and how fast the machine is."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch

from . import _C, _check

_MIB_PER_THREAD = (1, 16, 64, 256)
_SECONDS = 0.25


def isa() -> str:
    """The instruction set in use: each kernel takes its best version that does not exceed it.

    Returns
    -------
    str
        The best of :func:`available`, unless the environment variable ``GOSSAMER_ISA`` or
        :func:`force` named another.

    Raises
    ------
    ValueError, RuntimeError
        Where ``GOSSAMER_ISA`` holds an unknown name, or one that this machine lacks.

    Examples
    --------
    >>> gs.cpu.isa() in gs.cpu.available()
    True
    """
    return _C.isa_active()


def available() -> tuple[str, ...]:
    """The instruction sets this machine can run.

    Returns
    -------
    tuple of str
        From "scalar", which is always there, to the best.

    Examples
    --------
    >>> gs.cpu.available()[0]
    'scalar'
    """
    return tuple(_C.isa_available())


class Forced:
    """What :func:`force` returns: leaving it as a context manager takes the choice back."""

    def __init__(self, name: str, previous: str) -> None:
        self.name = name
        self.previous = previous

    def __enter__(self) -> str:
        return self.name

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _C.isa_force(self.previous)

    def __repr__(self) -> str:
        return f"Forced({self.name!r}, previous={self.previous!r})"


def force(name: str) -> Forced:
    """Use an instruction set from now on, in the whole process.

    Parameters
    ----------
    name : str
        One of :func:`available`.

    Returns
    -------
    Forced
        Used as a context manager it restores the earlier choice at the end; otherwise ignore it.

    Raises
    ------
    ValueError
        Where the name is unknown.
    RuntimeError
        Where this machine lacks the instruction set.

    Examples
    --------
    >>> with gs.cpu.force("scalar"):
    ...     gs.cpu.isa()
    'scalar'
    """
    if not isinstance(name, str) or name not in _C.isa_names():
        raise ValueError(f"force: name: got {name!r}, wanted one of {', '.join(_C.isa_names())}")
    previous = _C.isa_active()
    _C.isa_force(name)
    return Forced(name, previous)


def show() -> str:
    """What a bug report needs: processor, instruction sets, threads, versions, OpenMP runtimes.

    Returns
    -------
    str
        One line for each thing.

    Examples
    --------
    >>> "torch" in gs.cpu.show()
    True
    """
    facts = {
        **_C.cpu_info(),
        "isa in use": isa(),
        "isas available": ", ".join(available()),
        "torch threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "openmp runtimes": ", ".join(openmp_runtimes()) or "none found",
    }
    width = max(map(len, facts))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in facts.items())


def openmp_runtimes() -> tuple[str, ...]:
    """The OpenMP runtimes mapped into this process; more than one slows both down.

    Returns
    -------
    tuple of str
        File names, sorted; empty where the system does not tell.

    Examples
    --------
    >>> len(gs.cpu.openmp_runtimes())
    1
    """
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return ()
    mapped = {line.split()[-1] for line in lines if "/" in line}
    names = (Path(path).name for path in mapped)
    return tuple(
        sorted(name for name in names if name.startswith(("libgomp", "libomp", "libiomp")))
    )


@dataclass(frozen=True)
class Roofline:
    """What this machine reaches, measured; ``str()`` is a table.

    Attributes
    ----------
    threads : int
        Threads used together.
    peaks : mapping of str to float
        Operations per second by instruction, a multiply-add being two.
    bandwidth : mapping of int to float
        Bytes per second read, by the MiB that each thread reads again and again.
    """

    threads: int
    peaks: Mapping[str, float]
    bandwidth: Mapping[int, float]

    def __str__(self) -> str:
        lines = [f"threads {self.threads}, sizes per thread"]
        lines += [f"{name:<14} {peak / 1e12:8.2f} Top/s" for name, peak in self.peaks.items()]
        lines += [
            f"{f'read {size} MiB':<14} {rate / 1e9:8.1f} GB/s"
            for size, rate in self.bandwidth.items()
        ]
        return "\n".join(lines)


def roofline(threads: int | None = None) -> Roofline:
    """Measure the peaks of the multiply instructions and the read bandwidth, in a few seconds.

    Parameters
    ----------
    threads : int, optional
        Threads used together; None takes ``torch.get_num_threads()``.

    Returns
    -------
    Roofline
        Without the instructions that this machine lacks.

    Raises
    ------
    ValueError
        Where `threads` is below 1.

    Notes
    -----
    A layer with M rows does ``2 M N K`` operations and reads at least the bytes of its weight, so
    it takes no less than ``max(2 M N K / peak, bytes / bandwidth)``.

    References
    ----------
    Williams, Waterman, Patterson, "Roofline: an insightful visual performance model", 2009.
    """
    threads = _check.threads("roofline", threads)
    peaks = {name: _C.peak_ops(name, threads, _SECONDS) for name in _C.peak_instructions()}
    bandwidth = {
        size: _C.read_bandwidth(size * threads << 20, threads, _SECONDS) for size in _MIB_PER_THREAD
    }
    return Roofline(threads, peaks, bandwidth)
