"""Recurrent layers and cells, packed, each with its dense twin."""

from __future__ import annotations

from typing import Any

from torch import nn

from gossamer.nn.recurrent import GRU, LSTM, RNN
from gossamer.nn.recurrent_cells import GRUCell, LSTMCell, RNNCell

from .torch_twin import twin

LAYERS = {"LSTM": LSTM, "GRU": GRU, "RNN": RNN}
CELLS = {"LSTMCell": LSTMCell, "GRUCell": GRUCell, "RNNCell": RNNCell}


def make(kind: str = "LSTM", *sizes: int, **options: Any) -> tuple[Any, Any]:
    """A packed layer, and its dense twin."""
    dense = getattr(nn, kind)(*(sizes or (6, 5)), **options)
    layer = (LAYERS | CELLS)[kind].from_dense(dense, "int8")
    return layer, twin(dense, layer)
