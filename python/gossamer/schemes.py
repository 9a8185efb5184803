"""Named ways of storing weights: what "int8" means in Python, in recipes and on the command line.

A new scheme is one line in :data:`SCHEMES`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from . import _check
from .formats import FORMATS, Format


@dataclass(frozen=True)
class Scheme:
    """The settings behind a name: a format, its group size, and what happens to activations."""

    format: str
    group_size: int | None = None


SCHEMES: dict[str, Scheme] = {
    "int8": Scheme("int8"),
}


@dataclass(frozen=True)
class Quantize:
    """Store weights in fewer bits.

    Parameters
    ----------
    scheme : str
        A name in ``gs.schemes.SCHEMES``: "int8".
    group_size : int, optional
        32, 64 or 128 consecutive input features share a scale, which helps weights with outliers;
        None: what the scheme says, for "int8" one scale per output channel, the fastest.

    Raises
    ------
    ValueError
        For another name or size.

    Examples
    --------
    >>> gs.Quantize("int8", group_size=64)
    Quantize(scheme='int8', group_size=64)
    """

    scheme: str
    group_size: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.scheme, str) or self.scheme not in SCHEMES:
            names = ", ".join(SCHEMES)
            raise ValueError(f"Quantize: scheme: got {self.scheme!r}, wanted one of {names}")
        _check.group_size("Quantize", self.group_size)

    def quantize(self, W: Any) -> Format:
        """Round a dense weight.

        Parameters
        ----------
        W : Tensor or ndarray
            Shape (N, K).

        Returns
        -------
        Format
            Of the class that the scheme names.
        """
        scheme = SCHEMES[self.scheme]
        return FORMATS[scheme.format].quantize(W, self.group_size or scheme.group_size)


def as_quantize(function: str, scheme: object) -> Quantize:
    """The settings for a name; settings as they are."""
    if isinstance(scheme, str):
        return Quantize(scheme)
    if not isinstance(scheme, Quantize):
        raise TypeError(
            f"{function}: scheme: got {_check.describe(scheme)}, wanted a name or gs.Quantize"
        )
    return scheme
