"""The checks of what factorize() is told."""

from __future__ import annotations

import contextlib
import math
import numbers
from collections.abc import Iterator

from .. import _check
from ..formats.low_rank import FACTORS
from .plans import Goal
from .sensitivity import METHODS

_LEAST_ERROR = 1e-4  # float32 factors of large ranks are rounded by less than this
CONVOLUTIONS = ("tucker", "spatial", None)


def as_goal(
    rank: object, ratio: object, energy: object, rel_error: object, parameters: object
) -> Goal:
    """The one of these that was given."""
    values = dict(rank=rank, ratio=ratio, energy=energy, rel_error=rel_error, parameters=parameters)
    given = [name for name, value in values.items() if value is not None]
    if len(given) != 1:
        got = " and ".join(given) or "none"
        raise ValueError(f"factorize: got {got}, wanted exactly one of {', '.join(values)}")
    if rank is not None:
        return Goal(rank=_count("rank", rank))
    if ratio is not None:
        return Goal(ratio=_share("ratio", ratio))
    if energy is not None:
        return Goal(rel_error=math.sqrt(1 - _share("energy", energy, most=1 - _LEAST_ERROR**2)))
    if rel_error is not None:
        return Goal(rel_error=_share("rel_error", rel_error, least=_LEAST_ERROR))
    if isinstance(parameters, numbers.Integral):
        return Goal(parameters=_count("parameters", parameters))
    return Goal(parameters=_share("parameters", parameters, most=1.0))


def _count(name: str, value: object, least: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"factorize: {name}: got {_check.describe(value)}, wanted an int")
    number = int(value)
    if number < least:
        raise ValueError(f"factorize: {name}: got {value}, wanted a number >= {least}")
    return number


def _share(name: str, value: object, least: float = 0.0, most: float = 1.0) -> float:
    """A number between these; 0 and, but for a budget, 1 are too small and too large."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"factorize: {name}: got {_check.describe(value)}, wanted a number")
    number = float(value)
    whole = number == 1 and name != "parameters"
    if not least <= number <= most or number == 0 or whole:
        start = f"[{least:g}" if least else "(0"
        end = f"{most:.8g}]" if most < 1 or name == "parameters" else "1)"
        raise ValueError(f"factorize: {name}: got {value}, wanted a number in {start}, {end}")
    return number


def check_seed(seed: object) -> int:
    """The seed, from 0 on."""
    return _count("seed", seed, least=0)


def check_method(
    method: object, calibration: object, loss: object, factors: object, convolutions: object
) -> None:
    """The names must exist, and each method has what it needs and nothing else."""
    _one_of("method", method, METHODS)
    _one_of("factors", factors, tuple(FACTORS))
    _one_of("convolutions", convolutions, CONVOLUTIONS)
    if (calibration is None) != (method == "plain"):
        wanted = "None" if method == "plain" else "an iterable of batches"
        got = "None" if calibration is None else type(calibration).__name__
        raise ValueError(
            f"factorize: calibration: got {got}, wanted {wanted} for method={method!r}"
        )
    if (loss is None) != (method != "fisher"):
        wanted = "loss(model, batch)" if method == "fisher" else "None"
        got = "None" if loss is None else type(loss).__name__
        raise ValueError(f"factorize: loss: got {got}, wanted {wanted} for method={method!r}")
    if loss is not None and not callable(loss):
        raise TypeError(f"factorize: loss: got {_check.describe(loss)}, wanted a callable")


def _one_of(name: str, value: object, wanted: tuple[object, ...]) -> None:
    if value not in wanted:
        names = ", ".join(map(repr, wanted))
        raise ValueError(f"factorize: {name}: got {value!r}, wanted one of {names}")


@contextlib.contextmanager
def naming_factorize() -> Iterator[None]:
    """Says in the errors of :mod:`gossamer.selection` who was called."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise type(error)(str(error).replace("compress:", "factorize:", 1)) from error
