"""Named ways of storing weights: what "int8" means in Python, in recipes and on the command line.

A name is ``<format>[-g<group size> | -per-channel][-asym][-weight-only]``; without a group size the
usual one of the format is meant. Formats that begin with "sparse-" leave out the zeros of a weight.
A new scheme is one line in :data:`SCHEMES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from . import _check
from .formats import FORMATS, Format

_ASYMMETRIC = {"symmetric": False}


@dataclass(frozen=True)
class Scheme:
    """The settings behind a name.

    Attributes
    ----------
    format : str
        A name in ``gs.formats.FORMATS``.
    group_size : int or None
        Input features that share a scale; None: one scale per output channel.
    activations : str or None
        "int8": each row of x is rounded; "int8-group": each group of a row; "exact": x is
        multiplied as it is. None: the first that the format offers.
    settings : mapping
        Further arguments of the format's ``quantize``.
    """

    format: str
    group_size: int | None = None
    activations: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


SCHEMES: dict[str, Scheme] = {
    "int8": Scheme("int8"),
    **{f"int8-g{G}": Scheme("int8", G) for G in (32, 64, 128)},
    "int8-weight-only": Scheme("int8", activations="exact"),
    "int4": Scheme("int4", 128),
    **{f"int4-g{G}": Scheme("int4", G) for G in (16, 32, 64, 128, 256)},
    "int4-per-channel": Scheme("int4"),
    "int4-weight-only": Scheme("int4", 128, "exact"),
    "int4-asym": Scheme("int4", 128, settings=_ASYMMETRIC),
    **{f"int4-g{G}-asym": Scheme("int4", G, settings=_ASYMMETRIC) for G in (16, 32, 64, 128, 256)},
    "int4-per-channel-asym": Scheme("int4", settings=_ASYMMETRIC),
    "int4-asym-weight-only": Scheme("int4", 128, "exact", _ASYMMETRIC),
    "nf4": Scheme("nf4", 64),
    "nf4-weight-only": Scheme("nf4", 64, "exact"),
    "fp4": Scheme("fp4", 32),
    "fp4-weight-only": Scheme("fp4", 32, "exact"),
    "mxfp4": Scheme("mxfp4", 32),
    "mxfp4-weight-only": Scheme("mxfp4", 32, "exact"),
    "fp8": Scheme("fp8"),
    "fp8-e5m2": Scheme("fp8", settings={"dtype": torch.float8_e5m2}),
    "fp8-block": Scheme("fp8", 128),
    "bf16": Scheme("bf16"),
    "sparse-int8": Scheme("sparse-int8"),
    **{f"sparse-int8-g{G}": Scheme("sparse-int8", G) for G in (32, 64, 128)},
    "sparse-int8-weight-only": Scheme("sparse-int8", activations="exact"),
    "sparse-int4": Scheme("sparse-int4", 128),
    **{f"sparse-int4-g{G}": Scheme("sparse-int4", G) for G in (16, 32, 64, 128, 256)},
    "sparse-int4-per-channel": Scheme("sparse-int4"),
    "sparse-int4-weight-only": Scheme("sparse-int4", 128, "exact"),
    "sparse-bf16": Scheme("sparse-bf16"),
    "sparse-fp32": Scheme("sparse-fp32"),
}


@dataclass(frozen=True)
class Quantize:
    """Store weights in fewer bits.

    Parameters
    ----------
    scheme : str
        A name in ``gs.schemes.SCHEMES``, such as "int8", "int4", "int4-g32-asym", "nf4", "fp8" or
        "int8-weight-only".
    group_size : int, optional
        That many consecutive input features share a scale, which helps weights with outliers: 32,
        64 or 128 for int8; 16, 32, 64, 128 or 256 for int4, nf4 and fp4; 128 for fp8, in blocks of
        128 x 128; for sparse-int8 and sparse-int4 as without the zeros. None: what the scheme says.
    activations : str, optional
        "int8": each row of x is rounded to int8, the fastest; "int8-group": each group of a row,
        the groups being those of the weight, so that outliers in x cost less accuracy; "exact":
        only weights are rounded. None: what the scheme says. fp8, bf16, sparse-bf16 and sparse-fp32
        are "exact" always.

    Raises
    ------
    ValueError
        For a name, size or kind of activations that does not exist.

    Examples
    --------
    >>> gs.Quantize("int8", group_size=64)
    Quantize(scheme='int8', group_size=64, activations=None)
    """

    scheme: str
    group_size: int | None = None
    activations: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.scheme, str) or self.scheme not in SCHEMES:
            names = ", ".join(SCHEMES)
            raise ValueError(f"Quantize: scheme: got {self.scheme!r}, wanted one of {names}")
        form = FORMATS[SCHEMES[self.scheme].format]
        if self.group_size is not None:
            _check.group_size("Quantize", self.group_size, form.group_sizes)
        _check.activations("Quantize", self.activations, form.activation_kinds)

    def resolved(self) -> Scheme:
        """All settings: those given here, and for the rest those of the scheme.

        Returns
        -------
        Scheme
            With its activations, too.

        Examples
        --------
        >>> gs.Quantize("nf4", group_size=32).resolved()
        Scheme(format='nf4', group_size=32, activations='int8', settings={})
        """
        scheme = SCHEMES[self.scheme]
        kinds = FORMATS[scheme.format].activation_kinds
        activations = self.activations or scheme.activations or kinds[0]
        group_size = self.group_size or scheme.group_size
        return replace(scheme, group_size=group_size, activations=activations)

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
        scheme = self.resolved()
        quantize: Callable[..., Format] = FORMATS[scheme.format].quantize
        return quantize(W, scheme.group_size, **scheme.settings)


def as_quantize(function: str, scheme: object) -> Quantize:
    """The settings for a name; settings as they are."""
    if isinstance(scheme, str):
        return Quantize(scheme)
    if not isinstance(scheme, Quantize):
        raise TypeError(
            f"{function}: scheme: got {_check.describe(scheme)}, wanted a name or gs.Quantize"
        )
    return scheme
