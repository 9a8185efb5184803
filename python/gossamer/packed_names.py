"""The packed weights of a model, by the names that torch has for them."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from .nn.linear import Linear
from .nn.named_weights import NamedWeights
from .nn.packed_conv import PackedConv
from .nn.packed_table import PackedTable


def packed_weights(model: nn.Module) -> Iterator[tuple[str, Linear | PackedConv]]:
    """Every packed weight once, by the name of the module that torch has it in.

    Modules with several weights, such as ``nn.LSTM``, give that of the weight.
    """
    names: dict[int, str] = {}
    for name, module in model.named_modules():
        if isinstance(module, PackedTable):
            names.update((id(table), name) for table in module.children())
        elif isinstance(module, NamedWeights):
            for child, weight in module._weight_names.items():
                names[id(module._modules[child])] = f"{name}.{weight}" if name else weight
        elif isinstance(module, Linear | PackedConv):
            yield names.get(id(module), name), module
