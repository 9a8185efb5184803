"""load(): a model of transformers whose weights come from somebody else's checkpoint."""

from __future__ import annotations

import importlib
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import _check
from .._progress import Progress
from ..checkpoint.pretrained import empty_model
from .filling import Filling, some
from .gguf import checked_architecture
from .gguf_config import CLASSES, config_settings
from .gguf_file import GGUFFile
from .sources import Source, open_source
from .tensor_files import json_file

_ACTIVATIONS = ("int8", "int8-group", "exact")


def load(
    path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    activations: str | None = None,
    progress: bool | None = None,
) -> nn.Module:
    """Load a quantized model of transformers that others have published.

    Parameters
    ----------
    path : str or Path
        A folder of GPTQ, AWQ (version "gemm") or compressed-tensors, with its config.json, or a
        GGUF file of the Llama family. Nothing is downloaded.
    dtype : torch.dtype, optional
        Of everything that is not quantized, and so of activations: float32, bfloat16 or float16.
        None: what config.json says, and float32 for GGUF.
    activations : str, optional
        What quantized layers do to x: "int8", "int8-group" or "exact", as far as the format of a
        layer offers it. None: what the checkpoint says, which for most is "exact"; "int8" is
        faster.
    progress : bool, optional
        Show a bar on stderr: True, False, or where it is a terminal, after a second (None).

    Returns
    -------
    nn.Module
        In eval mode. Quantized linear layers are :class:`gossamer.nn.Linear`, quantized embeddings
        :class:`gossamer.nn.Embedding`.

    Raises
    ------
    ValueError
        Where something in the checkpoint is missing, wrong or damaged, or of a kind that is not
        read; it names the file and the tensor or layer.
    RuntimeError
        Where transformers is not installed; for some types of GGUF, where gguf is not.

    Warns
    -----
    UserWarning
        Where no format of ours can hold the weight of a layer bit for bit and it was rounded once
        more, to int8 in groups of 32, with the largest relative error of that; and where the
        checkpoint has tensors that the model has no place for.
    """
    if dtype is not None and dtype not in _check.DTYPES:
        raise TypeError(f"load: dtype: got {dtype!r}, wanted float32, bfloat16 or float16")
    if activations is not None:
        _check.activations("load", activations, _ACTIVATIONS)
    source = open_source(path)
    model = _empty_model(source)
    config: Any = model.config
    config.dtype = dtype or _own_dtype(config, source)
    filling = Filling(source.path, model, config.dtype, activations)
    with Progress("loading weights", len(filling.places), progress) as shown:
        for entry in source.entries:
            filling.take(entry)
            shown.advance(1)
    filling.finish()
    if source.gguf is not None:
        _apply_rope_factors(model, source.gguf)
    _warn(source.path, filling)
    return model


def _empty_model(source: Source) -> nn.Module:
    """The model without weights, and without the settings of the quantization in its config."""
    if source.gguf is not None:
        return _empty_gguf_model(source.gguf)
    names = json_file(source.path / "config.json").get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise ValueError(f"{source.path}: config.json: architectures: got {names!r}, wanted a name")
    model = empty_model(names[0], source.path)
    config: Any = model.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    return model


def _empty_gguf_model(file: GGUFFile) -> nn.Module:
    try:
        transformers: Any = importlib.import_module("transformers")
    except ImportError as error:
        raise RuntimeError(
            f"load: {file.path}: needs transformers: pip install 'gossamer[hf]'"
        ) from error
    architecture = checked_architecture(file)
    config_class, model_class = CLASSES[architecture]
    settings = config_settings(file)
    try:
        config = getattr(transformers, config_class)(**settings)
    except Exception as error:  # of whatever kind transformers raises
        raise ValueError(f"{file.path}: metadata: {type(error).__name__}: {error}") from error
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        return empty_model(model_class, Path(folder))


def _own_dtype(config: Any, source: Source) -> torch.dtype:
    found: torch.dtype | None = config.dtype if source.gguf is None else None
    return found if found in _check.DTYPES else torch.float32


def _apply_rope_factors(model: nn.Module, file: GGUFFile) -> None:
    """Divide the frequencies of rotary embeddings by the factors of Llama 3.1 and later."""
    name = "rope_freqs.weight"
    if name not in file.tensors:
        return
    if file.tensors[name].type != "F32":
        raise ValueError(f"{file.path}: tensor {name!r}: got {file.tensors[name].type}, wanted F32")
    factors = file.rows(name).view(torch.float32).flatten()
    for buffer, frequencies in model.named_buffers():
        if buffer.endswith("inv_freq"):
            if factors.shape != frequencies.shape:
                raise ValueError(
                    f"{file.path}: tensor {name!r}: got shape {list(factors.shape)}, "
                    f"wanted {list(frequencies.shape)}"
                )
            frequencies.div_(factors)


def _warn(path: Path, filling: Filling) -> None:
    errors = filling.errors
    if errors:
        names = sorted(errors, key=errors.__getitem__, reverse=True)
        warnings.warn(
            f"load: {path}: {len(names)} of {len(filling.packed)} quantized layers cannot be held "
            f"bit for bit; they were rounded to int8 in groups of 32, with a relative error of at "
            f"most {errors[names[0]]:.2g}: {some(names)}",
            stacklevel=3,
        )
    if filling.unused:
        warnings.warn(
            f"load: {path}: the model has no place for {len(filling.unused)} tensors: "
            f"{some(filling.unused)}",
            stacklevel=3,
        )
