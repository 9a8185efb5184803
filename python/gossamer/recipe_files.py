"""Recipes as YAML files, in the vocabulary of Python; and those that are shipped, by name."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from . import _check
from .factorization.correction import LowRankCorrection
from .pruning import ALLOCATIONS as ALLOCATIONS_OF_SPARSITY
from .pruning import METHODS as PRUNING_METHODS
from .pruning import Prune
from .quantization import METHODS as QUANTIZATION_METHODS
from .recipe import Step, as_recipe
from .recipe_yaml import Node, Scalar, parse
from .schemes import Quantize
from .sparse_choice import Batch, check_batch

Steps: TypeAlias = tuple[Step, ...]
T = TypeVar("T")

_FOLDER = Path(__file__).parent / "recipes"
_SUFFIXES = (".yaml", ".yml")
_STEPS: dict[str, type] = {"prune": Prune, "quantize": Quantize, "correct": LowRankCorrection}
# Fields that take a name, or a name with settings; and whether they take a list of these.
_CHOICES: dict[tuple[type, str], tuple[Mapping[str, type], bool]] = {
    (Prune, "method"): (PRUNING_METHODS, False),
    (Prune, "allocation"): (ALLOCATIONS_OF_SPARSITY, False),
    (Quantize, "method"): (QUANTIZATION_METHODS, True),
}
_KINDS: dict[str, tuple[type, str]] = {
    "int": (int, "a whole number"),
    "float": (float, "a number"),
    "str": (str, "text"),
    "bool": (bool, "true or false"),
    "None": (type(None), "nothing"),
}


@dataclass(frozen=True)
class TextCalibration:
    """Calibration data from a text.

    Parameters
    ----------
    text : str, optional
        A text file; None where it is given elsewhere.
    windows : int
        How many pieces of the text, from 1.
    tokens : int
        In each piece, from 1.
    seed : int
        Of the choice of pieces, from 0.

    Raises
    ------
    ValueError
        For a number out of range.
    """

    text: str | None = None
    windows: int = 128
    tokens: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("windows", 1), ("tokens", 1), ("seed", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(
                    f"TextCalibration: {name}: got {_check.describe(value)}, wanted a whole number "
                    f">= {least}"
                )


@dataclass(frozen=True)
class RecipeFile:
    """What a recipe file says, as :func:`gossamer.compress` takes it.

    Attributes
    ----------
    path : str
        Of the file; the name of one that is shipped.
    steps : tuple
        ``gs.Prune``, ``gs.Quantize`` and ``gs.LowRankCorrection``.
    targets : tuple of str or None
        Patterns of the layers that are meant; None: all.
    ignore : tuple of str or None
        Patterns of the layers that are not.
    overrides : dict of str to tuple
        By pattern: the steps for these layers.
    calibration : TextCalibration or None
        What the methods are fitted to; its text is a path that starts from the file's folder.
    batch : int, "large", a tuple of these or None
        Rows of x that the model is for.
    """

    path: str
    steps: Steps
    targets: tuple[str, ...] | None = None
    ignore: tuple[str, ...] | None = None
    overrides: dict[str, Steps] = dataclasses.field(default_factory=dict)
    calibration: TextCalibration | None = None
    batch: Batch | None = None


def recipe_names() -> tuple[str, ...]:
    """The recipes that are shipped.

    Returns
    -------
    tuple of str
        For :func:`load_recipe`.

    Examples
    --------
    >>> recipe_names()
    ('balanced', 'fast', 'smallest')
    """
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.yaml")))


def is_recipe(scheme: object) -> bool:
    """Whether this is the name of a shipped recipe, or a path that ends as recipe files do.

    Parameters
    ----------
    scheme : object
        Anything.

    Returns
    -------
    bool
        False for the names of schemes, such as "int8".

    Examples
    --------
    >>> is_recipe("balanced"), is_recipe("int8")
    (True, False)
    """
    if isinstance(scheme, Path):
        return True
    return isinstance(scheme, str) and (scheme in recipe_names() or scheme.endswith(_SUFFIXES))


def load_recipe(source: str | Path) -> RecipeFile:
    """Read a recipe.

    Parameters
    ----------
    source : str or Path
        A YAML file, or the name of a recipe that is shipped: "fast", "balanced" or "smallest".

    Returns
    -------
    RecipeFile
        The steps, and what else :func:`gossamer.compress` is to be given.

    Raises
    ------
    ValueError
        Where there is no such file or name; for every mistake in the file, with its line.
    RuntimeError
        Without PyYAML, of the extra ``cli``.

    Examples
    --------
    >>> load_recipe("fast").steps == (gs.Quantize("int8"),)
    True
    """
    if source in recipe_names():
        return _recipe(parse(str(source), (_FOLDER / f"{source}.yaml").read_text()), Path())
    path = Path(source)
    if not path.is_file():
        near = difflib.get_close_matches(str(source), recipe_names(), 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(
            f"load_recipe: source: {str(source)!r} is no file and none of "
            f"{', '.join(recipe_names())}{hint}"
        )
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        line = path.read_bytes().count(b"\n", 0, error.start) + 1
        raise ValueError(f"{source}:{line}: is not YAML: is not UTF-8") from error
    return _recipe(parse(str(source), text), path.parent)


def _recipe(root: Node, folder: Path) -> RecipeFile:
    """What a file says, all of it checked."""
    keys = ("steps", "targets", "ignore", "overrides", "calibration", "batch")
    found = root.mapping("recipe", keys)
    if "steps" not in found:
        raise root.error("recipe: has no steps, wanted steps: and a list")

    def read(key: str, function: Callable[[Node], T]) -> T | None:
        return function(found[key]) if key in found else None

    calibration = read("calibration", lambda node: _settings(TextCalibration, node))
    if calibration and calibration.text:
        text = str(folder / calibration.text)
        calibration = dataclasses.replace(calibration, text=text)
    return RecipeFile(
        root.path,
        _steps(found["steps"]),
        read("targets", lambda node: _patterns("targets", node)),
        read("ignore", lambda node: _patterns("ignore", node)),
        read("overrides", _overrides) or {},
        calibration,
        read("batch", _batch),
    )


def _steps(node: Node) -> Steps:
    """The steps, which must go together."""
    steps = tuple(_step(item) for item in node.items("steps"))
    _checked(node, lambda: as_recipe("compress", steps, None))
    return steps


def _step(node: Node) -> Step:
    """``int8``, ``prune: 0.5`` or ``quantize: {...}``."""
    if isinstance(node.value, str):
        return _settings(Quantize, node)
    found = node.mapping("step", _STEPS)
    if len(found) != 1:
        raise node.error(f"step: got {len(found)} keys, wanted one of {', '.join(_STEPS)}")
    ((name, settings),) = found.items()
    step: Step = _settings(_STEPS[name], settings)
    return step


def _overrides(node: Node) -> dict[str, Steps]:
    """By pattern: a scheme, a step or a list of steps."""
    return {
        pattern: _steps(child if isinstance(child.value, list) else _listed(child))
        for pattern, child in node.mapping("overrides").items()
    }


def _listed(node: Node) -> Node:
    return Node(node.path, node.line, [node])


def _patterns(key: str, node: Node) -> tuple[str, ...]:
    """One pattern, or a list of them."""
    found = []
    for item in node.items(key) if isinstance(node.value, list) else [node]:
        if not isinstance(item.value, str):
            raise item.error(f"{key}: got {item.describe()}, wanted a pattern")
        found.append(item.value)
    return tuple(found)


def _batch(node: Node) -> Batch:
    sizes = node.items("batch") if isinstance(node.value, list) else [node]
    return _checked(node, lambda: check_batch("compress", tuple(size.value for size in sizes)))


# --- settings: a dataclass from a mapping of its fields ---


def _settings(kind: type[T], node: Node) -> T:
    """The dataclass with these settings; a single value is that of its first field."""
    fields = {each.name: each for each in dataclasses.fields(kind) if each.init}  # type: ignore[arg-type]
    children: dict[str, Node] = {}
    if node.value is not None:
        single = not isinstance(node.value, list | dict) and fields
        children = {next(iter(fields)): node} if single else node.mapping(kind.__name__, fields)
    arguments = {}
    for key, child in children.items():
        choice = _CHOICES.get((kind, key))
        what = f"{kind.__name__}: {key}"
        if choice is not None:
            arguments[key] = _choice(what, child, *choice)
        else:
            arguments[key] = _plain(what, child, str(fields[key].type))
    return _checked(node, lambda: kind(**arguments), children)


def _choice(what: str, node: Node, kinds: Mapping[str, type], several: bool) -> Any:
    """``gptq``, ``{gptq: {damping: 0.1}}``, or a list of these."""
    if isinstance(node.value, list) and several:
        return tuple(_choice(what, item, kinds, False) for item in node.items(what))
    if not isinstance(node.value, list | dict):
        return node.value
    found = node.mapping(what, kinds)
    if len(found) != 1:
        raise node.error(f"{what}: got {len(found)} keys, wanted one of {', '.join(kinds)}")
    ((name, settings),) = found.items()
    return _settings(kinds[name], settings)


def _plain(what: str, node: Node, annotation: str) -> Any:
    """A value without settings, if it is of the kinds that the annotation names."""
    kinds = [kind.strip() for kind in annotation.split("|")]
    if isinstance(node.value, list):
        if set(kinds) <= set(_KINDS):
            raise node.error(f"{what}: got a list, wanted {_wanted(kinds)}")
        return tuple(_plain(what, item, "Any") for item in node.value)
    if isinstance(node.value, dict):
        raise node.error(f"{what}: got a mapping, wanted {_wanted(kinds)}")
    if set(kinds) <= set(_KINDS) and not any(_is_a(node.value, kind) for kind in kinds):
        raise node.error(f"{what}: got {node.describe()}, wanted {_wanted(kinds)}")
    return node.value


def _is_a(value: Scalar, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "bool"
    return isinstance(value, _KINDS[kind][0]) or (kind == "float" and isinstance(value, int))


def _wanted(kinds: Sequence[str]) -> str:
    return " or ".join(_KINDS[kind][1] for kind in kinds if kind in _KINDS) or "a value"


def _checked(node: Node, make: Callable[[], T], children: Mapping[str, Node] | None = None) -> T:
    """What is made; its errors name the line of the field that they are about."""
    try:
        return make()
    except (TypeError, ValueError) as error:
        message = str(error)
        about = message.split(": ", 2)[1] if message.count(": ") else ""
        raise (children or {}).get(about, node).error(message) from error
