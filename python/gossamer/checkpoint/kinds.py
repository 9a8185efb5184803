"""The modules that a checkpoint describes: what each is made with, and how it is made again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from .. import nn as packed_nn
from ..formats import Format
from ..nn.linear import Linear
from ..nn.named_weights import NamedWeight, NamedWeights
from ..nn.packed_conv import PackedConv
from ..nn.packed_table import PackedTable
from .manifest import StoredModule, StoredWeight
from .typed import from_plain

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Weight(NamedTuple):
    """A packed weight as it was read."""

    format: Format
    stored: StoredWeight


Weights = Mapping[str, Weight]
Build = Callable[[StoredModule, Weights], nn.Module]


@dataclass(frozen=True)
class Kind:
    """A class of modules that a checkpoint describes.

    Attributes
    ----------
    module : type
        The class.
    replaces : tuple of type
        Classes of the modules that it takes the place of in a dense model.
    settings : dict
        By name: the type of what JSON holds of it.
    build : callable
        Makes one.
    """

    module: type[nn.Module]
    replaces: tuple[type[nn.Module], ...]
    settings: dict[str, Any]
    build: Build


# --- settings ---

_LENGTHS = tuple[int, ...]
_LINEAR = {"in_features": int, "out_features": int, "activation": str, "from_conv1d": bool}
_ANY_CONV = {
    "in_channels": int,
    "out_channels": int,
    "kernel_size": _LENGTHS,
    "stride": _LENGTHS,
    "dilation": _LENGTHS,
    "groups": int,
}
_CONV = {**_ANY_CONV, "padding": str | _LENGTHS, "padding_mode": str}
_TRANSPOSED = {**_ANY_CONV, "padding": _LENGTHS, "output_padding": _LENGTHS}
_TABLE = {"num_embeddings": int, "embedding_dim": int, "padding_idx": int | None}
_BAG = {**_TABLE, "mode": str, "include_last_offset": bool}
_CELL = {"input_size": int, "hidden_size": int, "bias": bool}
_RECURRENT = {
    **_CELL,
    "num_layers": int,
    "batch_first": bool,
    "dropout": float,
    "bidirectional": bool,
}
_ATTENTION = {
    "embed_dim": int,
    "num_heads": int,
    "dropout": float,
    "bias": bool,
    "add_bias_kv": bool,
    "add_zero_attn": bool,
    "kdim": int,
    "vdim": int,
    "batch_first": bool,
}


def settings_of(module: nn.Module, kind: Kind) -> dict[str, Any]:
    """What a module was made with."""
    special: dict[str, Any] = {}
    if isinstance(module, Linear):
        special["from_conv1d"] = module._from_conv1d
    if isinstance(module, packed_nn.MultiheadAttention):
        special["bias"] = module.in_proj_bias is not None
        special["add_bias_kv"] = module.bias_k is not None
    if isinstance(module, nn.Sequential):
        special["length"] = len(module)
    return {
        name: special[name] if name in special else getattr(module, name) for name in kind.settings
    }


def checked_settings(stored: StoredModule, kind: Kind) -> dict[str, Any]:
    """The settings of a stored module, of the types that they must have."""
    missing = [name for name in kind.settings if name not in stored.settings]
    unknown = [name for name in stored.settings if name not in kind.settings]
    if missing or unknown:
        raise ValueError(f"settings: has no {missing}, and unknown {unknown}")
    return {
        name: from_plain(wanted, stored.settings[name], f"settings: {name}")
        for name, wanted in kind.settings.items()
    }


def why_different(module: nn.Module, settings: Mapping[str, Any]) -> str:
    """What a module of a model has other than the stored one; "" where nothing."""
    for name, value in settings.items():
        if name in ("activation", "bias", "dropout") or not hasattr(module, name):
            continue
        found = getattr(module, name)
        if (tuple(found) if isinstance(found, list | tuple) else found) != value:
            return f"{name} is {found}, in the checkpoint {value}"
    return ""


# --- packed weights ---


def packed_parts(module: nn.Module) -> dict[str, Linear | PackedConv]:
    """What holds the packed weights of a module itself, by the names that torch has for these."""
    if isinstance(module, NamedWeights):
        return {name: module._named_weight(child) for child, name in module._weight_names.items()}
    if isinstance(module, PackedTable):
        return {"weight": module._holder}
    if isinstance(module, Linear | PackedConv):
        return {"weight": module}
    return {}


def stored_weight(part: Linear | PackedConv) -> StoredWeight:
    """What the manifest says of a packed weight."""
    batch = part._batch if part._batch is None or isinstance(part._batch, tuple) else (part._batch,)
    return StoredWeight(
        part.format,
        part._matrix_shape[1],
        part.group_size,
        part.activations,
        str(part.dtype).removeprefix("torch."),
        part.weight_error,
        part.dense_bytes,
        batch,
        part.input_scale,
    )


def tensor_name(weight: str, key: str) -> str:
    """The name that the ``state_dict`` of a module has for a canonical tensor of a weight."""
    if weight == "weight":
        return key
    return weight + key.removeprefix("weight") if key.startswith("weight") else f"{weight}_{key}"


def _how(stored: StoredWeight) -> dict[str, Any]:
    """Arguments of the layer that holds a weight."""
    if stored.dtype not in DTYPES:
        raise ValueError(f"dtype: got {stored.dtype!r}, wanted one of {', '.join(DTYPES)}")
    return {
        "dtype": DTYPES[stored.dtype],
        "activations": stored.activations,
        "input_scale": stored.input_scale,
    }


def _remember(part: Linear | PackedConv, stored: StoredWeight) -> None:
    part.weight_error, part.dense_bytes = stored.weight_error, stored.dense_bytes
    if stored.batch is not None:
        part._pack_for(stored.batch)


def _only(weights: Weights) -> Weight:
    if list(weights) != ["weight"]:
        raise ValueError(f"weights: got {', '.join(weights)}, wanted weight")
    return weights["weight"]


def _named_weight(weight: Weight) -> NamedWeight:
    N, K = weight.format.shape
    part = NamedWeight(
        K,
        N,
        weight=weight.format,
        **_how(weight.stored),
    )
    _remember(part, weight.stored)
    return part


# --- making modules; parameters are filled in later ---


def _linear(stored: StoredModule, weights: Weights) -> nn.Module:
    weight, settings = _only(weights), dict(stored.settings)
    from_conv1d = settings.pop("from_conv1d")
    layer = Linear(
        **settings,
        weight=weight.format,
        **_how(weight.stored),
    )
    layer._from_conv1d = from_conv1d
    _remember(layer, weight.stored)
    return layer


def _conv(stored: StoredModule, weights: Weights) -> nn.Module:
    weight = _only(weights)
    make: Any = KINDS[stored.kind].module
    layer: PackedConv = make(
        **stored.settings,
        weight=weight.format,
        **_how(weight.stored),
    )
    _remember(layer, weight.stored)
    return layer


def _table(stored: StoredModule, weights: Weights) -> nn.Module:
    make: Any = KINDS[stored.kind].module
    table: nn.Module = make(**stored.settings, weight=_named_weight(_only(weights)))
    return table


def tied_table(stored: StoredModule, head: nn.Module) -> nn.Module:
    """An embedding that reads the packed weight of another layer."""
    make: Any = KINDS[stored.kind].module
    table: nn.Module = make(**stored.settings, weight=head)
    return table


def _recurrent(stored: StoredModule, weights: Weights) -> nn.Module:
    settings = stored.settings
    layers = settings["num_layers"] * (2 if settings["bidirectional"] else 1)
    if layers * (3 if settings.get("proj_size") else 2) != len(weights):  # before one is made
        raise ValueError(f"weights: got {len(weights)} for {layers} layers and directions")
    return _from_twin(stored, weights)


def _attention(stored: StoredModule, weights: Weights) -> nn.Module:
    settings = stored.settings | {"add_bias_kv": False, "device": "meta"}
    twin = nn.MultiheadAttention(**settings)
    if stored.settings["add_bias_kv"]:  # torch's would be random, which on meta takes seconds
        for name in ("bias_k", "bias_v"):
            bias = torch.empty(1, 1, twin.embed_dim, device="meta")
            setattr(twin, name, nn.Parameter(bias))
    return _packed_twin(twin, KINDS[stored.kind], weights)


def _from_twin(stored: StoredModule, weights: Weights) -> nn.Module:
    kind: Any = KINDS[stored.kind]
    return _packed_twin(kind.replaces[0](**stored.settings, device="meta"), kind, weights)


def _packed_twin(twin: nn.Module, kind: Any, weights: Weights) -> nn.Module:
    """A module with several weights, made from torch's: its weights are zeros, without memory."""
    own = {name: tuple(p.shape) for name, p in twin.named_parameters(recurse=False)}
    wanted = {name: shape for name, shape in own.items() if "bias" not in name}
    found = {name: weight.format.shape for name, weight in weights.items()}
    if wanted != found:
        raise ValueError(f"weights: got {found}, wanted {wanted}")
    for module in twin.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                zeros = torch.zeros(()).expand(parameter.shape)
                module._parameters[name] = nn.Parameter(zeros, requires_grad=False)
    packed: NamedWeights = kind.module.from_dense(twin, "int8")
    for child, name in packed._weight_names.items():
        packed._modules[child] = _named_weight(weights[name])
    return packed


def _dense_conv(stored: StoredModule, weights: Weights) -> nn.Module:
    settings: dict[str, Any] = stored.settings
    return nn.Conv2d(**settings, bias=False, device="meta")


def _sequential(stored: StoredModule, weights: Weights) -> nn.Module:
    length = stored.settings["length"]
    if not 1 <= length <= _LONGEST:
        raise ValueError(f"settings: length: got {length}, wanted 1 to {_LONGEST}")
    return nn.Sequential(*(nn.Identity() for _ in range(length)))


SEQUENTIAL = "torch.Sequential"
DENSE = (SEQUENTIAL, "torch.Conv2d")  # what factorize() makes of a convolution
_LONGEST = 3  # convolutions that factorize() makes of one
KINDS: dict[str, Kind] = {
    "Linear": Kind(Linear, (nn.Linear,), _LINEAR, _linear),
    "Conv1d": Kind(packed_nn.Conv1d, (nn.Conv1d,), _CONV, _conv),
    "Conv2d": Kind(packed_nn.Conv2d, (nn.Conv2d,), _CONV, _conv),
    "ConvTranspose1d": Kind(packed_nn.ConvTranspose1d, (nn.ConvTranspose1d,), _TRANSPOSED, _conv),
    "ConvTranspose2d": Kind(packed_nn.ConvTranspose2d, (nn.ConvTranspose2d,), _TRANSPOSED, _conv),
    "Embedding": Kind(packed_nn.Embedding, (nn.Embedding,), _TABLE, _table),
    "EmbeddingBag": Kind(packed_nn.EmbeddingBag, (nn.EmbeddingBag,), _BAG, _table),
    "LSTM": Kind(packed_nn.LSTM, (nn.LSTM,), {**_RECURRENT, "proj_size": int}, _recurrent),
    "GRU": Kind(packed_nn.GRU, (nn.GRU,), _RECURRENT, _recurrent),
    "RNN": Kind(packed_nn.RNN, (nn.RNN,), {**_RECURRENT, "nonlinearity": str}, _recurrent),
    "LSTMCell": Kind(packed_nn.LSTMCell, (nn.LSTMCell,), _CELL, _from_twin),
    "GRUCell": Kind(packed_nn.GRUCell, (nn.GRUCell,), _CELL, _from_twin),
    "RNNCell": Kind(packed_nn.RNNCell, (nn.RNNCell,), {**_CELL, "nonlinearity": str}, _from_twin),
    "MultiheadAttention": Kind(
        packed_nn.MultiheadAttention, (nn.MultiheadAttention,), _ATTENTION, _attention
    ),
    SEQUENTIAL: Kind(nn.Sequential, (nn.Conv2d,), {"length": int}, _sequential),
    DENSE[1]: Kind(nn.Conv2d, (), _CONV, _dense_conv),
}


def kind_of(module: nn.Module, parent: str | None) -> str | None:
    """The name of a module's kind in one of another; None where only its tensors are held."""
    if isinstance(module, NamedWeight):
        return None  # a part of the module around it
    if isinstance(module, nn.Sequential):
        is_factorized = 1 <= len(module) <= _LONGEST and all(
            isinstance(child, nn.Conv2d | packed_nn.Conv2d) for child in module
        )
        return SEQUENTIAL if is_factorized else None
    for base in type(module).__mro__:
        for name, kind in KINDS.items():
            if kind.module is base and (base is not nn.Conv2d or parent == SEQUENTIAL):
                return name
    return None
