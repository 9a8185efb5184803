"""Models of transformers: their configuration, their tokenizer, and empty ones to be filled."""

from __future__ import annotations

import copy
import importlib
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

_COPIED = (".json", ".txt", ".model", ".jinja", ".tiktoken")
# Of a model's folder: what describes weights, and what is written from the model itself.
_NOT_COPIED = ("config.json", "generation_config.json", "gossamer.json")


def architecture_of(model: nn.Module) -> str | None:
    """The name that transformers has for the class of a model; None for classes of others."""
    transformers: Any = sys.modules.get("transformers")
    kind = type(model)
    if transformers is None or kind.__module__.split(".")[0] != "transformers":
        return None
    is_known = isinstance(model, transformers.PreTrainedModel)
    return kind.__name__ if is_known and hasattr(transformers, kind.__name__) else None


def save_configuration(model: nn.Module, folder: Path) -> None:
    """Write config.json, and generation_config.json where there is one."""
    transformers: Any = sys.modules.get("transformers")
    if transformers is None or not isinstance(model, transformers.PreTrainedModel):
        return
    config: Any = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    # Not save_pretrained: that refuses settings of generation which it finds odd.
    config.to_json_file(folder / "config.json")
    generation: Any = getattr(model, "generation_config", None)
    if generation is not None:
        generation.to_json_file(folder / "generation_config.json")


def save_tokenizer(source: Any, folder: Path) -> None:
    """Copy the tokenizer files of a folder, or let a tokenizer write them."""
    if source is None:
        return
    if hasattr(source, "save_pretrained"):
        source.save_pretrained(folder)
        return
    if not isinstance(source, str | Path) or not Path(source).is_dir():
        raise ValueError(f"save: source: got {source!r}, wanted a folder or a tokenizer")
    for file in sorted(Path(source).iterdir()):
        wanted = file.suffix in _COPIED and ".index." not in file.name
        if wanted and file.is_file() and file.name not in _NOT_COPIED:
            shutil.copyfile(file, folder / file.name)


def empty_model(architecture: str, folder: Path) -> nn.Module:
    """A model of a class of transformers, in eval mode, whose parameters are on meta.

    Buffers are computed as always: those that no ``state_dict`` holds are right.

    Parameters
    ----------
    architecture : str
        Name of the class.
    folder : Path
        Where config.json is.

    Returns
    -------
    nn.Module
        Without values in its parameters; tied ones are tied.

    Raises
    ------
    ValueError
        Where transformers has no such model, or the configuration is wrong.
    RuntimeError
        Where transformers is not installed.
    """
    try:
        transformers: Any = importlib.import_module("transformers")
    except ImportError as error:
        raise RuntimeError(
            f"load: {folder}: is a {architecture} of transformers, which is not installed: "
            "pip install 'gossamer[hf]'"
        ) from error
    kind: Any = getattr(transformers, architecture, None)
    is_class = isinstance(kind, type)
    if not is_class or not issubclass(kind, transformers.PreTrainedModel):
        raise ValueError(
            f"load: {folder}: architecture: transformers {transformers.__version__} has no model "
            f"{architecture!r}; make the model and give it as load(folder, model)"
        )
    file = folder / "config.json"
    if not file.is_file():
        raise ValueError(f"load: {folder}: has no config.json")
    try:
        config = kind.config_class.from_pretrained(folder, local_files_only=True)
        with _parameters_on_meta():
            model: nn.Module = kind(config)
        if (folder / "generation_config.json").is_file():
            generation = transformers.GenerationConfig
            model.generation_config = generation.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # of whatever kind the classes of transformers raise
        raise ValueError(f"load: {file}: {type(error).__name__}: {error}") from error
    return model.eval()


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Parameters that this thread registers go to meta; their memory was never touched."""
    register, thread = nn.Module.register_parameter, threading.get_ident()

    def register_on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        register(module, name, parameter)
        here = threading.get_ident() == thread
        if here and parameter is not None and parameter.device.type != "meta":
            empty = parameter.detach().to("meta")
            module._parameters[name] = nn.Parameter(empty, requires_grad=parameter.requires_grad)

    nn.Module.register_parameter = register_on_meta  # type: ignore[assignment,method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]
