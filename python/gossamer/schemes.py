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
# Scalings, which come first, and roundings, of which there is one. gossamer.quantization has their
# settings.
SCALINGS = ("awq", "smoothquant")
ROUNDINGS = ("rtn", "gptq", "hqq", "autoround")
# One scale for all rows, which calibration finds: by which method of static_scale().
STATIC = {
    "int8-static": "percentile",
    "int8-static-mse": "mse",
    "int8-static-min-max": "min-max",
}


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
    static_scale : str or None
        How calibration finds the scale of "int8" activations, if all rows have the same:
        "percentile", "mse" or "min-max".
    """

    format: str
    group_size: int | None = None
    activations: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    static_scale: str | None = None


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
        "int8": each row of x is rounded to int8, with a scale of its own; "int8-static": with one
        scale for all rows, which the ``calibration`` of :func:`gossamer.compress` finds, by the
        99.99th percentile; "int8-static-mse", "int8-static-min-max": by the squared error, or the
        largest magnitude; "int8-group": each group of a row, the groups being those of the weight,
        so that outliers in x cost less accuracy; "exact": only weights are rounded. None: what the
        scheme says. fp8, bf16, sparse-bf16 and sparse-fp32 are "exact" always.
    method : str, settings of a method, or tuple of these
        How weights are rounded: "rtn" (each to the nearest), "gptq", "hqq" or "autoround"; before
        it, what scales them: "awq" or "smoothquant"; for example ``("awq", "gptq")``. A scaling
        alone is followed by "rtn". Settings are objects such as ``gs.GPTQ(damping=0.05)``. All but
        "rtn" and "hqq" need the ``calibration`` of :func:`gossamer.compress`.

    correct_bias : bool
        Add to the bias, where a layer has one, what rounding takes from its mean output over the
        calibration.

    Raises
    ------
    ValueError
        For a name, size, kind of activations or method that does not exist.

    Examples
    --------
    >>> gs.Quantize("int8", group_size=64)
    Quantize(scheme='int8', group_size=64, activations=None, method='rtn', correct_bias=False)
    """

    scheme: str
    group_size: int | None = None
    activations: str | None = None
    method: Any = "rtn"
    correct_bias: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.scheme, str) or self.scheme not in SCHEMES:
            names = ", ".join(SCHEMES)
            raise ValueError(f"Quantize: scheme: got {self.scheme!r}, wanted one of {names}")
        form = FORMATS[SCHEMES[self.scheme].format]
        if self.group_size is not None:
            _check.group_size("Quantize", self.group_size, form.group_sizes)
        kinds = form.activation_kinds
        _check.activations(
            "Quantize", self.activations, (*kinds, *STATIC) if "int8" in kinds else kinds
        )
        if isinstance(self.method, list | tuple):  # of one is that one; the dataclass is frozen
            method = self.method[0] if len(self.method) == 1 else tuple(self.method)
            object.__setattr__(self, "method", method)
        _check_methods(self.methods)

    @property
    def methods(self) -> tuple[Any, ...]:
        """The scalings, if any, and the rounding that follows them; names or settings."""
        given = self.method if isinstance(self.method, tuple) else (self.method,)
        if given and method_name(given[-1]) in SCALINGS:
            return (*given, "rtn")
        return given

    def resolved(self) -> Scheme:
        """All settings: those given here, and for the rest those of the scheme.

        Returns
        -------
        Scheme
            With its activations, too: of "int8-static..." they are "int8", with ``static_scale``.

        Examples
        --------
        >>> gs.Quantize("nf4", group_size=32).resolved()
        Scheme(format='nf4', group_size=32, activations='int8', settings={}, static_scale=None)
        """
        scheme = SCHEMES[self.scheme]
        kinds = FORMATS[scheme.format].activation_kinds
        activations = self.activations or scheme.activations or kinds[0]
        return replace(
            scheme,
            group_size=self.group_size or scheme.group_size,
            activations="int8" if activations in STATIC else activations,
            static_scale=STATIC.get(activations),
        )

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


def method_name(method: Any) -> str:
    """The name of a method, or of the settings of one."""
    return method if isinstance(method, str) else str(getattr(method, "name", method))


def _check_methods(methods: tuple[Any, ...]) -> None:
    names = [method_name(method) for method in methods]
    for name in names:
        if name not in SCALINGS + ROUNDINGS:
            wanted = ", ".join(SCALINGS + ROUNDINGS)
            raise ValueError(f"Quantize: method: got {name!r}, wanted one of {wanted}")
    *scalings, rounding = names or [""]
    if rounding not in ROUNDINGS or not set(scalings) <= set(SCALINGS):
        raise ValueError(
            f"Quantize: method: got {names}, wanted scalings ({', '.join(SCALINGS)}) and then one "
            f"of {', '.join(ROUNDINGS)}"
        )


def as_quantize(function: str, scheme: object) -> Quantize:
    """The settings for a name; settings as they are."""
    if isinstance(scheme, str):
        return Quantize(scheme)
    if not isinstance(scheme, Quantize):
        raise TypeError(
            f"{function}: scheme: got {_check.describe(scheme)}, wanted a name or gs.Quantize"
        )
    return scheme


def check_calibrated(function: str, scheme: Quantize, input_scale: float | None) -> None:
    """Static activations need the scale that calibration finds."""
    if input_scale is None and scheme.resolved().static_scale:
        raise ValueError(
            f"{function}: input_scale: got None, wanted a number: activations "
            f"{scheme.activations!r} have one scale, which calibration finds: "
            "gs.compress(..., calibration=batches)"
        )
