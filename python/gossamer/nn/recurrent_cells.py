"""One time step of recurrent layers on packed weights: LSTMCell, GRUCell and RNNCell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from .. import _check
from ..schemes import Quantize, as_quantize
from .named_weights import NamedWeight, NamedWeights

State = tuple[Tensor, ...]  # (h,), or (h, c) of an LSTM
Cell = TypeVar("Cell", bound="_Cell")


@dataclass(frozen=True)
class Weights:
    """The weights of one direction of one layer, or of a cell."""

    ih: NamedWeight
    hh: NamedWeight
    bias_ih: Tensor | None
    bias_hh: Tensor | None
    hr: NamedWeight | None

    def gates_of_input(self, x: Tensor) -> Tensor:
        """Ŵ x + b, of any number of steps."""
        return self.ih.product(x, self.bias_ih)

    def gates_of_state(self, h: Tensor) -> Tensor:
        """Û h + d."""
        return self.hh.product(h, self.bias_hh)


# --- one time step: gates of the input, and the state before it, to the state after it ---


def _lstm_step(x: Tensor, weights: Weights, state: State) -> State:
    """i, f, o = σ(...), g = tanh(...); c' = f c + i g; h' = o tanh(c'), projected if so wanted."""
    h, c = state
    i, f, g, o = (weights.gates_of_state(h) + x).unsafe_chunk(4, -1)  # views to be written to
    i.sigmoid_()
    f.sigmoid_()
    g.tanh_()
    o.sigmoid_()
    c = (f * c).addcmul_(i, g)
    h = o * c.tanh()
    return (h if weights.hr is None else weights.hr.product(h, None)), c


def _gru_step(x: Tensor, weights: Weights, state: State) -> State:
    """r, z = σ(...); n = tanh(x_n + r h_n); h' = (1 - z) n + z h."""
    (h,) = state
    r_x, z_x, n_x = x.chunk(3, -1)
    r_h, z_h, n_h = weights.gates_of_state(h).chunk(3, -1)
    r, z = (r_x + r_h).sigmoid_(), (z_x + z_h).sigmoid_()
    n = torch.addcmul(n_x, r, n_h).tanh_()
    return (torch.addcmul(n, z, h - n),)


def _rnn_tanh_step(x: Tensor, weights: Weights, state: State) -> State:
    return ((weights.gates_of_state(state[0]) + x).tanh_(),)


def _rnn_relu_step(x: Tensor, weights: Weights, state: State) -> State:
    return ((weights.gates_of_state(state[0]) + x).relu_(),)


STEPS = {
    "LSTM": _lstm_step,
    "GRU": _gru_step,
    "RNN_TANH": _rnn_tanh_step,
    "RNN_RELU": _rnn_relu_step,
}


# --- modules ---


class _Cell(NamedWeights):
    """What LSTMCell, GRUCell and RNNCell share."""

    _dense: ClassVar[type[nn.RNNCellBase]]
    _parts: ClassVar[int] = 1

    def __init__(self, module: nn.RNNCellBase, scheme: str | Quantize = "int8") -> None:
        super().__init__()
        kind = type(self).__name__
        if not isinstance(module, self._dense):
            raise TypeError(
                f"{kind}.from_dense: module: got {type(module).__name__}, wanted nn.{kind}"
            )
        self.input_size, self.hidden_size = module.input_size, module.hidden_size
        self.bias = module.bias
        self.mode = kind.removesuffix("Cell")
        if isinstance(module, nn.RNNCell):
            self.nonlinearity = module.nonlinearity
            self.mode = f"RNN_{module.nonlinearity.upper()}"
        take_weights(self, module, "", as_quantize(f"{kind}.from_dense", scheme))
        self.train(module.training)

    @classmethod
    def from_dense(
        cls: type[Cell], module: nn.RNNCellBase, scheme: str | Quantize = "int8"
    ) -> Cell:
        """Quantize a dense cell.

        Parameters
        ----------
        module : nn.LSTMCell, nn.GRUCell or nn.RNNCell
            The torch cell of the same name; it is left as it is. The new one shares its biases.
        scheme : str or Quantize
            Such as "int8".

        Returns
        -------
        LSTMCell, GRUCell or RNNCell
            In the training mode of `module`.

        Raises
        ------
        TypeError, ValueError, RuntimeError
            For another module, an unknown scheme, or a weight with NaN or not on the CPU.
        """
        return cls(module, scheme)

    def extra_repr(self) -> str:
        """The settings, for ``repr``.

        Returns
        -------
        str
            The sizes, and what is unusual.
        """
        text = f"{self.input_size}, {self.hidden_size}" + ("" if self.bias else ", bias=False")
        return text + (", nonlinearity=relu" if self.mode == "RNN_RELU" else "")

    def forward(self, input: Tensor, hx: Any = None) -> Any:
        """Apply the cell to one time step.

        Parameters
        ----------
        input : Tensor
            Shape (B, input_size) or (input_size,), float32, bfloat16 or float16.
        hx : Tensor or tuple of Tensor, optional
            The state before the step, zeros if None: h of shape (B, hidden_size) or (hidden_size,),
            for an LSTMCell (h, c).

        Returns
        -------
        Tensor or tuple of Tensor
            As `hx`, after the step.

        Raises
        ------
        TypeError, ValueError
            Where a shape or a dtype does not fit.
        """
        kind, K, size = type(self).__name__, self.input_size, self.hidden_size
        _check.rows(kind, "input", input, K)
        if input.dim() > 2:
            raise ValueError(
                f"{kind}: input: got {_check.describe(input)}, wanted [B, {K}] or [{K}]"
            )
        shape = (*input.shape[:-1], size)
        if hx is None:
            state: State = tuple(input.new_zeros(shape) for _ in range(self._parts))
        else:
            state = checked_state(kind, hx, [shape] * self._parts, input)
        weights = weights_of(self, "")
        state = STEPS[self.mode](weights.gates_of_input(input), weights, state)
        return state if self._parts > 1 else state[0]


class LSTMCell(_Cell):
    """One step of an :class:`LSTM`, as ``torch.nn.LSTMCell``, with packed weights.

    Parameters
    ----------
    module : nn.LSTMCell
        The dense cell.
    scheme : str or Quantize
        Such as "int8".

    Examples
    --------
    >>> cell = gs.nn.LSTMCell.from_dense(torch.nn.LSTMCell(8, 16), "int8")
    >>> h, c = cell(torch.randn(2, 8))
    >>> h.shape, c.shape
    (torch.Size([2, 16]), torch.Size([2, 16]))
    """

    _dense = nn.LSTMCell
    _parts = 2


class GRUCell(_Cell):
    """One step of a :class:`GRU`, as ``torch.nn.GRUCell``, with packed weights.

    Parameters
    ----------
    module : nn.GRUCell
        The dense cell.
    scheme : str or Quantize
        Such as "int8".

    Examples
    --------
    >>> gs.nn.GRUCell.from_dense(torch.nn.GRUCell(8, 16), "int8")(torch.randn(2, 8)).shape
    torch.Size([2, 16])
    """

    _dense = nn.GRUCell


class RNNCell(_Cell):
    """One step of an :class:`RNN`, as ``torch.nn.RNNCell``, with packed weights.

    Parameters
    ----------
    module : nn.RNNCell
        The dense cell.
    scheme : str or Quantize
        Such as "int8".

    Examples
    --------
    >>> gs.nn.RNNCell.from_dense(torch.nn.RNNCell(8, 16), "int8")(torch.randn(2, 8)).shape
    torch.Size([2, 16])
    """

    _dense = nn.RNNCell


# --- weights and states by name ---


def take_weights(to: NamedWeights, module: nn.Module, suffix: str, scheme: Quantize) -> None:
    """Quantize the weights of `module` whose names end in `suffix`, and share its biases."""
    for kind in ("ih", "hh", "hr"):
        dense = getattr(module, f"weight_{kind}{suffix}", None)
        if dense is not None:
            to._add_weight(f"weight_{kind}{suffix}", dense, scheme)
    for kind in ("ih", "hh"):
        to._add_bias(f"bias_{kind}{suffix}", getattr(module, f"bias_{kind}{suffix}", None))


def weights_of(module: NamedWeights, suffix: str) -> Weights:
    """The weights whose names end in `suffix`, past nn.Module.__getattr__, which is slow."""
    modules, parameters = module._modules, module._parameters
    return Weights(
        modules["ih" + suffix],  # type: ignore[arg-type]
        modules["hh" + suffix],  # type: ignore[arg-type]
        parameters.get("bias_ih" + suffix),
        parameters.get("bias_hh" + suffix),
        modules.get("hr" + suffix),  # type: ignore[arg-type]
    )


def checked_state(kind: str, hx: Any, shapes: Sequence[tuple[int, ...]], x: Tensor) -> State:
    """A state that the user gave, with a dtype and shapes that fit."""
    state = (hx,) if isinstance(hx, Tensor) else tuple(hx)
    if len(state) != len(shapes):
        wanted = "a tensor" if len(shapes) == 1 else "a pair (h, c)"
        raise ValueError(f"{kind}: hx: got {len(state)} tensor(s), wanted {wanted}")
    for part, shape in zip(state, shapes, strict=True):
        if not isinstance(part, Tensor) or tuple(part.shape) != shape:
            raise ValueError(f"{kind}: hx: got {_check.describe(part)}, wanted {list(shape)}")
        if part.dtype is not x.dtype and not torch.is_autocast_enabled("cpu"):
            raise TypeError(f"{kind}: hx: got {part.dtype}, wanted {x.dtype} as the input")
    return state
