"""write_compressed_tensors(): a packed model as transformers loads it."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import _check
from ..checkpoint.pretrained import save_configuration, save_tokenizer
from ..nn.linear import Linear
from ..nn.named_weights import NamedWeight
from ..nn.packed_conv import PackedConv
from ..nn.packed_table import PackedTable
from ..placing import is_packed
from .compressed_tensors_layers import LayerScheme, stored_layer
from .shards import write_shards
from .tensor_files import json_file

_VERSION = "0.15.0"  # of compressed-tensors, the oldest that is meant


def write_compressed_tensors(
    model: nn.Module,
    folder: str | Path,
    *,
    source: Any = None,
    expand: bool = False,
    max_shard_bytes: int = 1 << 30,
) -> None:
    """Write a packed model as a compressed-tensors checkpoint, which transformers loads.

    Parameters
    ----------
    model : nn.Module
        A model of transformers with packed linear layers; it is left as it is.
    folder : str or Path
        A new folder, or an empty one. It appears when all is written.
    source : str, Path or tokenizer, optional
        The folder that the model came from, whose tokenizer files are copied; or a tokenizer.
    expand : bool
        Write packed layers that compressed-tensors cannot hold dense, in the dtype of the layer;
        otherwise they are an error.
    max_shard_bytes : int
        Tensors are distributed over files of this size at most; a larger tensor has one for itself.

    Returns
    -------
    None

    Raises
    ------
    ValueError
        Where the folder holds something; for a layer that compressed-tensors cannot hold (nf4,
        sparse weights, sums, convolutions, ...), which is named; for a tensor without values.
    TypeError
        Where the model is something else.

    Notes
    -----
    int4 becomes "pack-quantized"; int8 "int-quantized" or, where x is not rounded, "pack-quantized"
    of 8 bits, as llm-compressor has it; fp8 (float8_e4m3fn) "float-quantized". Codes, zero points
    and scales are those of the layer, bit for bit. Where the last group of a weight is short, its
    groups are divided into smaller ones with equal scales, which divide K.

    Scales keep their dtype. transformers casts them to that of the model when it loads them: load
    with ``dtype=torch.float32`` where the last bits matter. Packed embeddings, and output heads
    that are tied to one, are written dense.

    The peak of memory is the model and one file.

    Examples
    --------
    >>> import tempfile
    >>> model = gs.compress(torch.nn.Sequential(torch.nn.Linear(64, 8)), "int4-g32")
    >>> folder = tempfile.mkdtemp()
    >>> gs.write_compressed_tensors(model, folder)
    >>> [(entry.name, type(entry.value).__name__) for entry in gs.interop.read(folder)]
    [('0.bias', 'Tensor'), ('0.weight', 'Int4')]
    """
    if not isinstance(model, nn.Module):
        name = "write_compressed_tensors: model"
        raise TypeError(f"{name}: got {_check.describe(model)}, wanted nn.Module")
    schemes: dict[LayerScheme, list[str]] = defaultdict(list)
    with _new_folder(Path(folder)) as partial, torch.no_grad():
        write_shards(partial, _tensors(model, expand, schemes), max_shard_bytes)
        save_configuration(model, partial)
        save_tokenizer(source, partial)
        _write_config(partial, model, schemes)


def _tensors(
    model: nn.Module, expand: bool, schemes: dict[LayerScheme, list[str]]
) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the checkpoint once, by name; fills in the layers of each scheme."""
    tables = [module for module in model.modules() if isinstance(module, PackedTable)]
    heads = {id(head) for table in tables for head in table._tied}
    seen: set[int] = set()
    packed = ""  # the name of the packed module that we are in
    for name, module in model.named_modules():
        if packed and name.startswith(packed + "."):
            continue  # how it holds its weight
        if is_packed(module):
            packed = name
            if id(module) not in heads:
                for own, tensor in _packed_tensors(name, module, expand, schemes).items():
                    yield _full(name, own), tensor
        for own, tensor in _own_tensors(module):
            if tensor.device.type == "meta":
                raise ValueError(
                    f"write_compressed_tensors: model: {_full(name, own)!r}: is on meta and has no "
                    "values"
                )
            if id(tensor) not in seen:
                seen.add(id(tensor))
                yield _full(name, own), tensor.detach()


def _full(module: str, name: str) -> str:
    return f"{module}.{name}" if module else name


def _own_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and persistent buffers of a module itself."""
    for name, parameter in module._parameters.items():
        if parameter is not None:
            yield name, parameter
    for name, buffer in module._buffers.items():
        if buffer is not None and name not in module._non_persistent_buffers_set:
            yield name, buffer


def _packed_tensors(
    name: str, module: nn.Module, expand: bool, schemes: dict[LayerScheme, list[str]]
) -> dict[str, Tensor]:
    """The tensors of a packed module, without its bias."""
    if isinstance(module, PackedTable):
        return {"weight": module.dequantize(module.dtype)}
    try:
        if not isinstance(module, Linear) or module._from_conv1d:
            raise ValueError(
                f"compressed-tensors has no packed {type(module).__name__}, wanted Linear"
            )
        scheme, tensors = stored_layer(module.quantized(), module.activations)
        if module.input_scale is not None:
            scheme = replace(scheme, static=True)
            tensors["input_scale"] = torch.tensor([module.input_scale])
    except ValueError as error:
        if expand and isinstance(module, Linear | PackedConv):
            weight = module.dequantize(module.dtype)
            from_conv1d = isinstance(module, Linear) and module._from_conv1d
            return {"weight": weight.T.contiguous() if from_conv1d else weight}
        raise ValueError(f"write_compressed_tensors: model: layer {name!r}: {error}") from error
    schemes[scheme].append(name)
    return tensors


def _write_config(folder: Path, model: nn.Module, schemes: dict[LayerScheme, list[str]]) -> None:
    """Add the quantization_config to config.json, and the dtype, which need not be in it."""
    file = folder / "config.json"
    config = json_file(file) if file.exists() else {}
    dtypes = [p.dtype for p in model.parameters() if p.dtype in _check.DTYPES]
    if dtypes:
        config["dtype"] = str(dtypes[0]).removeprefix("torch.")
    config["quantization_config"] = _quantization_config(model, schemes)
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _quantization_config(model: nn.Module, schemes: dict[LayerScheme, list[str]]) -> dict[str, Any]:
    """One group of all linear layers but those ignored; or several, each with names."""
    if not schemes:
        raise ValueError("write_compressed_tensors: model: has no packed layers to be written")
    forms = {scheme.form for scheme in schemes}
    is_one = len(schemes) == 1
    packed = {name for names in schemes.values() for name in names}
    dense = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Linear)
        and not isinstance(module, NamedWeight)
        and name not in packed
    ]
    return {
        "quant_method": "compressed-tensors",
        "version": _VERSION,
        "format": forms.pop() if len(forms) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "config_groups": {
            f"group_{index}": scheme.config_group(["Linear"] if is_one else names)
            for index, (scheme, names) in enumerate(schemes.items())
        },
        "ignore": dense if is_one else [],
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }


@contextmanager
def _new_folder(wanted: Path) -> Iterator[Path]:
    """A folder beside the wanted one, which takes its name at the end, or goes."""
    if wanted.exists() and (not wanted.is_dir() or any(wanted.iterdir())):
        raise ValueError(f"write_compressed_tensors: folder: {wanted} is not empty")
    wanted = wanted.absolute()
    partial = wanted.with_name(f".{wanted.name}.partial")
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.replace(wanted)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
