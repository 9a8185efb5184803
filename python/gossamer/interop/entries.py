"""What readers give: the weights of somebody else's files, one by one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..formats import Format


@dataclass(frozen=True)
class Entry:
    """One tensor of a model.

    Attributes
    ----------
    name : str
        Of the parameter or buffer, such as "model.layers.0.mlp.up_proj.weight".
    value : Format or Tensor
        A quantized weight [N, K], or a tensor as it is in the file.
    activations : str
        Of a quantized weight: "exact", or what the file says of x ("int8" or "int8-group").
    error : float
        Of a quantized weight: 0 where the Format holds the numbers of the file bit for bit;
        otherwise ``|W - Ŵ| / |W|`` (Frobenius) of rounding those once more, to what it can hold.
    input_scale : float or None
        Where x is rounded to int8 with one scale for all rows: that. None: each row has its own.
    """

    name: str
    value: Format | Tensor
    activations: str = "exact"
    error: float = 0.0
    input_scale: float | None = None


def layers_with(names: Iterable[str], suffix: str) -> list[str]:
    """Modules that have a tensor whose name ends so, in order."""
    return [name.removesuffix(suffix) for name in names if name.endswith(suffix)]


@contextmanager
def naming_layer(source: Path, layer: str) -> Iterator[None]:
    """Says in an error which file and layer it comes from."""
    try:
        yield
    except (TypeError, ValueError, RuntimeError) as error:
        if str(error).startswith(str(source)):
            raise
        raise ValueError(f"{source}: layer {layer!r}: {error}") from error


def setting(config: Mapping[str, Any], name: str, kind: type, default: Any) -> Any:
    """A setting of a quantization_config; ValueError where it has another type."""
    value = config.get(name)
    if value is None:
        return default
    if type(value) is not kind:
        raise ValueError(f"{name}: got {value!r}, wanted {kind.__name__}")
    return value


def group_size(config: Mapping[str, Any]) -> int | None:
    """The group size in a quantization_config; None where it is -1: a scale for each row."""
    size: int = setting(config, "group_size", int, 128)
    if size != -1 and size < 1:
        raise ValueError(f"group_size: got {size}, wanted -1 or a number >= 1")
    return None if size == -1 else size


def matches(pattern: str, layer: str) -> bool:
    """Whether a regular expression fits the beginning of a name; ValueError where it is none."""
    try:
        return re.match(pattern, layer) is not None
    except re.error as error:
        raise ValueError(f"got {pattern!r}, which is no regular expression: {error}") from error
