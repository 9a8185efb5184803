"""What the quantization_config of compressed-tensors says of a layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .entries import matches, setting

FORMATS = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized")


@dataclass(frozen=True)
class Scheme:
    """How a layer is quantized.

    Attributes
    ----------
    bits : int
        Of a code: 4 or 8.
    kind : str
        "int" or "float".
    group_size : int or None
        Consecutive k that share a scale; None: one for the row or the tensor.
    block : tuple of int or None
        Rows and columns of blocks that share a scale.
    symmetric : bool
        Whether there need be no zero points.
    activations : str
        What is done to x: "exact", "int8" or "int8-group".
    static : bool
        Whether all rows of x are rounded with one scale that stands in the file.
    """

    bits: int
    kind: str
    group_size: int | None
    block: tuple[int, int] | None
    symmetric: bool
    activations: str
    static: bool


def scheme_of(config: Mapping[str, Any], layer: str) -> Scheme:
    """The settings of a layer.

    Parameters
    ----------
    config : mapping
        The quantization_config.
    layer : str
        Its name.

    Raises
    ------
    ValueError
        Where there are none, or they are not what is read here.
    """
    group = _group_of(config, layer)
    form = group.get("format") or config.get("format")
    if form not in FORMATS:
        raise ValueError(f"format: got {form!r}, wanted one of {', '.join(FORMATS)}")
    weights = group["weights"]
    bits, kind = setting(weights, "num_bits", int, 8), setting(weights, "type", str, "int")
    if (kind, bits) not in (("int", 4), ("int", 8), ("float", 8)):
        raise ValueError(f"weights: got {bits} bits of {kind}, wanted int of 4 or 8, or float of 8")
    strategy = weights.get("strategy")
    size = setting(weights, "group_size", int, -1) if strategy in (None, "group") else -1
    if size != -1 and size < 1:
        raise ValueError(f"group_size: got {size}, wanted -1 or a number >= 1")
    block = _block(weights.get("block_structure")) if strategy == "block" else None
    activations = _activations(group.get("input_activations"), size)
    symmetric = setting(weights, "symmetric", bool, True)
    static = activations == "int8" and _is_static(group["input_activations"])
    return Scheme(bits, kind, None if size == -1 else size, block, symmetric, activations, static)


def _group_of(config: Mapping[str, Any], layer: str) -> Mapping[str, Any]:
    """The first config group with this name, a regular expression for it, or its class."""
    groups = config.get("config_groups")
    if not isinstance(groups, dict):
        raise ValueError(f"config_groups: got {groups!r}, wanted an object")
    wanted = [
        group
        for group in groups.values()
        if isinstance(group, dict)
        and isinstance(group.get("weights"), dict)
        and isinstance(group.get("targets"), list)
    ]
    for fits in (_is_name, _is_pattern, _is_class):
        for group in wanted:
            if any(fits(target, layer) for target in group["targets"]):
                return group
    raise ValueError(f"config_groups: got no targets for it among {list(groups)}")


def _is_name(target: object, layer: str) -> bool:
    return target == layer


def _is_pattern(target: object, layer: str) -> bool:
    return isinstance(target, str) and target.startswith("re:") and matches(target[3:], layer)


def _is_class(target: object, layer: str) -> bool:
    """Whether a target is a class: the layer has a quantized weight, so it must be of that."""
    return isinstance(target, str) and target.isidentifier()


def _block(structure: object) -> tuple[int, int]:
    fits = isinstance(structure, list) and len(structure) == 2
    if not isinstance(structure, list) or not fits or not all(type(n) is int for n in structure):
        raise ValueError(f"block_structure: got {structure!r}, wanted two numbers")
    rows, columns = structure
    if rows < 1 or columns < 1:
        raise ValueError(f"block_structure: got {structure!r}, wanted numbers >= 1")
    return rows, columns


def _activations(given: Mapping[str, Any] | None, group_size: int) -> str:
    """What is done to x. Asymmetric scales become symmetric ones, for each row."""
    if not given or given.get("type", "int") != "int" or given.get("num_bits") != 8:
        return "exact"
    same_groups = group_size != -1 and given.get("group_size") == group_size
    return "int8-group" if given.get("strategy") == "group" and same_groups else "int8"


def _is_static(given: Mapping[str, Any]) -> bool:
    """Whether x is rounded with one symmetric scale that calibration has found."""
    whole = given.get("strategy") in (None, "tensor")
    return whole and given.get("dynamic", False) is False and given.get("symmetric", True) is True
