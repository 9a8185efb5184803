"""YAML as a tree in which everything knows its line, so that errors can name it.

Numbers and true, false and null are read as YAML 1.2 reads them; all else is text: ``2:4`` is no
number and ``no`` is no bool. Keys that occur twice, aliases and tags are errors.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, TypeAlias

Scalar: TypeAlias = str | int | float | bool | None

_INTEGER = re.compile(r"[-+]?[0-9]{1,18}")
_NUMBER = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS: dict[str, Scalar] = {"": None, "~": None, "null": None, "true": True, "false": False}
_DEEPEST = 16


@dataclass(frozen=True)
class Node:
    """One value of a file.

    Attributes
    ----------
    path : str
        The file, as errors call it.
    line : int
        Where the value begins; of one in a mapping, where its key stands. From 1.
    value : scalar, list of Node or dict of str to Node
        What it is.
    """

    path: str
    line: int
    value: Scalar | list[Node] | dict[str, Node]

    def error(self, message: str) -> ValueError:
        """An error that names the file and the line."""
        return ValueError(f"{self.path}:{self.line}: {message}")

    def describe(self) -> str:
        """What it is, in few words."""
        if isinstance(self.value, list):
            return "a list"
        if isinstance(self.value, dict):
            return "a mapping"
        return "nothing" if self.value is None else repr(self.value)

    def mapping(self, what: str, keys: Collection[str] | None = None) -> dict[str, Node]:
        """The values by key: each one of `keys`, where these are given."""
        if not isinstance(self.value, dict):
            names = f" with the keys {', '.join(keys)}" if keys else ""
            raise self.error(f"{what}: got {self.describe()}, wanted a mapping{names}")
        for key, child in self.value.items():
            if keys is not None and key not in keys:
                near = difflib.get_close_matches(key, keys, 1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise child.error(
                    f"{what}: unknown key {key!r}, wanted one of {', '.join(keys)}{hint}"
                )
        return self.value

    def items(self, what: str) -> list[Node]:
        """The values of a list, of which there must be some."""
        if not isinstance(self.value, list) or not self.value:
            came = "an empty list" if self.value == [] else self.describe()
            raise self.error(f"{what}: got {came}, wanted a list")
        return self.value


def parse(path: str, text: str) -> Node:
    """Read one YAML document.

    Parameters
    ----------
    path : str
        What errors call it.
    text : str
        The document.

    Returns
    -------
    Node
        The root.

    Raises
    ------
    ValueError
        For anything that is not YAML or not in the part of it that recipes use, with the line.
    RuntimeError
        Without PyYAML.
    """
    try:
        import yaml
    except ImportError as error:
        raise RuntimeError("yaml is not installed: pip install 'gossamer[cli]'") from error
    try:
        _refuse_the_unusual(path, yaml.parse(text, Loader=yaml.SafeLoader))
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise ValueError(f"{path}:{line}: is not YAML: {error.problem}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, int(error.position)) + 1
        raise ValueError(f"{path}:{line}: is not YAML: {error.reason}") from error
    if root is None:
        raise ValueError(f"{path}:1: is empty")
    return _node(path, root, root.start_mark.line + 1)


def _refuse_the_unusual(path: str, events: Any) -> None:
    """What would make the tree larger than the text, or deeper than a recipe can be."""
    import yaml

    depth = 0
    for event in events:
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"{path}:{line}: an alias (*{event.anchor}) is not allowed in recipes")
        tag = getattr(event, "tag", None)
        if tag not in (None, "!"):
            raise ValueError(f"{path}:{line}: a tag ({tag}) is not allowed in recipes")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > _DEEPEST:
            raise ValueError(f"{path}:{line}: is nested deeper than {_DEEPEST}")


def _node(path: str, node: Any, line: int) -> Node:
    """The tree of what PyYAML has composed."""
    import yaml

    if isinstance(node, yaml.MappingNode):
        return Node(path, line, _mapping(path, node))
    if isinstance(node, yaml.SequenceNode):
        children = [_node(path, child, child.start_mark.line + 1) for child in node.value]
        return Node(path, line, children)
    plain = node.style is None
    return Node(path, line, _scalar(node.value) if plain else node.value)


def _mapping(path: str, node: Any) -> dict[str, Node]:
    import yaml

    found: dict[str, Node] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise ValueError(f"{path}:{line}: a key is a list or a mapping, wanted a name")
        if key.value in found:
            first = found[key.value].line
            raise ValueError(
                f"{path}:{line}: key {key.value!r} occurs twice, first in line {first}"
            )
        found[key.value] = _node(path, value, line)
    return found


def _scalar(text: str) -> Scalar:
    """What a text without quotes stands for."""
    word = text.lower()
    if word in _WORDS:
        return _WORDS[word]
    if _INTEGER.fullmatch(text):
        return int(text)
    return float(text) if _NUMBER.fullmatch(text) else text
