"""Dataclasses as JSON, and back again with every value checked against its annotation."""

from __future__ import annotations

import dataclasses
import functools
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints


def to_plain(value: Any) -> Any:
    """What JSON can hold: dicts, lists, strings and numbers; fields that have their default go."""
    if dataclasses.is_dataclass(value):
        return {
            field.name: to_plain(getattr(value, field.name))
            for field in dataclasses.fields(value)
            if getattr(value, field.name) != field.default
        }
    if isinstance(value, dict):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [to_plain(item) for item in value]
    return value


def from_plain(kind: Any, value: Any, where: str) -> Any:
    """Undo :func:`to_plain`.

    Parameters
    ----------
    kind : type
        A dataclass, str, int, float, bool, None, Any, or a tuple, a dict with names as keys or a
        union of these.
    value : Any
        As JSON gives it.
    where : str
        What errors call it.

    Returns
    -------
    Any
        Of that type.

    Raises
    ------
    ValueError
        Where it is of another.
    """
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        return _fields(kind, value, where)
    if get_origin(kind) in (Union, UnionType):
        return _one_of(kind, value, where)
    if get_origin(kind) is tuple and isinstance(value, list):
        return _items(get_args(kind), value, where)
    if get_origin(kind) is dict and isinstance(value, dict):
        item = get_args(kind)[1]
        return {key: from_plain(item, found, f"{where}: {key!r}") for key, found in value.items()}
    if kind is float and type(value) is int:
        return float(value)
    if (NoneType if kind is None else kind) is type(value):
        return value
    raise ValueError(f"{where}: got {_shown(value)}, wanted {getattr(kind, '__name__', kind)}")


def _fields(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{where}: got {_shown(value)}, wanted a dict")
    hints, found = _hints(kind), {}
    for field in dataclasses.fields(kind):
        if field.name in value:
            item = value[field.name]
            found[field.name] = from_plain(hints[field.name], item, f"{where}: {field.name}")
        elif field.default is dataclasses.MISSING:
            raise ValueError(f"{where}: has no {field.name}")
    unknown = [name for name in value if name not in found]
    if unknown:
        raise ValueError(f"{where}: has unknown {', '.join(map(_shown, unknown))}")
    return kind(**found)


_hints = functools.cache(get_type_hints)


def _one_of(kind: Any, value: Any, where: str) -> Any:
    errors = []
    for option in get_args(kind):
        try:
            return from_plain(option, value, where)
        except ValueError as error:
            errors.append(error)
    raise errors[0]


def _items(kinds: tuple[Any, ...], value: list[Any], where: str) -> tuple[Any, ...]:
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        kinds = (kinds[0],) * len(value)
    if len(kinds) != len(value):
        raise ValueError(f"{where}: got {len(value)} values, wanted {len(kinds)}")
    return tuple(
        from_plain(kind, item, f"{where}: [{index}]")
        for index, (kind, item) in enumerate(zip(kinds, value, strict=True))
    )


def _shown(value: Any) -> str:
    """The value in few words, whatever a file holds."""
    text = repr(value) if isinstance(value, str | int | float | NoneType) else type(value).__name__
    return text if len(text) <= 80 else text[:77] + "..."
