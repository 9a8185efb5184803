"""Recurrent layers on packed weights: LSTM, GRU and RNN.

The input products of all time steps are one kernel call for each layer and direction. Every step
is then one product with ``weight_hh`` and the gates, in the dtype of the input.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence

from .. import _check
from ..schemes import Quantize, as_quantize
from .named_weights import NamedWeights
from .recurrent_cells import STEPS, State, Weights, checked_state, take_weights, weights_of

Recurrent = TypeVar("Recurrent", bound="_Recurrent")
_SETTINGS = (
    "mode",
    "input_size",
    "hidden_size",
    "num_layers",
    "bias",
    "batch_first",
    "dropout",
    "bidirectional",
    "proj_size",
)


def _scan(
    mode: str, weights: Weights, gates: Sequence[Tensor], state: State, reverse: bool
) -> tuple[list[Tensor], State]:
    """Run over time, from the last step to the first if `reverse`: h of every step, last state.

    A packed sequence has fewer rows the later the step. Forward, the rows that end leave the state;
    backward, the rows that begin enter it.
    """
    step = STEPS[mode]
    initial, ended, outputs = state, [], []
    state = tuple(part[: gates[-1].shape[0]] for part in initial) if reverse else initial
    for x in reversed(gates) if reverse else gates:
        before, now = state[0].shape[0], x.shape[0]
        if now < before:
            ended.append(tuple(part[now:] for part in state))
            state = tuple(part[:now] for part in state)
        elif now > before:
            begun = (part[before:now] for part in initial)
            state = tuple(map(torch.cat, zip(state, begun, strict=True)))
        state = step(x, weights, state)
        outputs.append(state[0])
    if ended:
        state = tuple(map(torch.cat, zip(state, *reversed(ended), strict=True)))
    return outputs[::-1] if reverse else outputs, state


class _Recurrent(NamedWeights):
    """What LSTM, GRU and RNN share: layers, directions and shapes of arguments."""

    _dense: ClassVar[type[nn.RNNBase]]
    _parts: ClassVar[int] = 1  # tensors in a state

    mode: str
    input_size: int
    hidden_size: int
    num_layers: int
    bias: bool
    batch_first: bool
    dropout: float
    bidirectional: bool
    proj_size: int

    def __init__(self, module: nn.RNNBase, scheme: str | Quantize = "int8") -> None:
        super().__init__()
        kind = type(self).__name__
        if not isinstance(module, self._dense):
            raise TypeError(
                f"{kind}.from_dense: module: got {type(module).__name__}, wanted nn.{kind}"
            )
        scheme = as_quantize(f"{kind}.from_dense", scheme)
        for name in _SETTINGS:
            setattr(self, name, getattr(module, name))
        self._directions = tuple(
            f"l{layer}{suffix}"
            for layer in range(self.num_layers)
            for suffix in ("", "_reverse")[: 2 if self.bidirectional else 1]
        )
        for direction in self._directions:
            take_weights(self, module, "_" + direction, scheme)
        self.train(module.training)

    @classmethod
    def from_dense(
        cls: type[Recurrent], module: nn.RNNBase, scheme: str | Quantize = "int8"
    ) -> Recurrent:
        """Quantize a dense layer.

        Parameters
        ----------
        module : nn.LSTM, nn.GRU or nn.RNN
            The torch layer of the same name; it is left as it is. The new one shares its biases.
        scheme : str or Quantize
            Such as "int8".

        Returns
        -------
        LSTM, GRU or RNN
            In the training mode of `module`.

        Raises
        ------
        TypeError, ValueError, RuntimeError
            For another module, an unknown scheme, or a weight with NaN or not on the CPU.
        """
        return cls(module, scheme)

    def flatten_parameters(self) -> None:
        """Do nothing: weights are packed already. It is here because code in the wild calls it."""

    def extra_repr(self) -> str:
        """The settings, for ``repr``.

        Returns
        -------
        str
            Without those that have their usual value.
        """
        usual = {
            "proj_size": 0,
            "num_layers": 1,
            "bias": True,
            "batch_first": False,
            "dropout": 0.0,
            "bidirectional": False,
        }
        settings = {name: getattr(self, name) for name in usual}
        unusual = [f"{k}={value}" for k, value in settings.items() if value != usual[k]]
        return ", ".join([f"{self.input_size}, {self.hidden_size}", *unusual])

    def forward(self, input: Any, hx: Any = None) -> tuple[Any, Any]:
        """Apply the layer to whole sequences.

        Parameters
        ----------
        input : Tensor or PackedSequence
            Shape (T, B, input_size), (B, T, input_size) if ``batch_first``, or (T, input_size);
            float32, bfloat16 or float16.
        hx : Tensor or tuple of Tensor, optional
            The states before the first step, zeros if None: h of shape (layers * directions, B,
            hidden_size or proj_size), for an LSTM (h, c); without B for input without it.

        Returns
        -------
        output : Tensor or PackedSequence
            h of the last layer at every step, both directions side by side.
        state : Tensor or tuple of Tensor
            As `hx`, after the last step.

        Raises
        ------
        TypeError, ValueError
            Where a shape or a dtype does not fit.
        """
        if isinstance(input, PackedSequence):
            x, sizes = input.data, input.batch_sizes.tolist()
            self._check_input(x, (2,))
            state = self._initial_state(x, hx, sizes[0], batched=True)
            y, state = self._layers(x, _permuted(state, input.sorted_indices), sizes)
            state = _permuted(state, input.unsorted_indices)
            return input._replace(data=y), state if self._parts > 1 else state[0]
        self._check_input(input, (2, 3))
        batched, batch_dim = input.dim() == 3, 0 if self.batch_first else 1
        x = input if batched else input.unsqueeze(batch_dim)
        if x.shape[1 - batch_dim] == 0:
            raise ValueError(f"{type(self).__name__}: input: got no time steps, wanted 1 or more")
        state = self._initial_state(x, hx, x.shape[batch_dim], batched)
        y, state = self._layers(x, state, None)
        if not batched:
            y, state = y.squeeze(batch_dim), tuple(part.squeeze(1) for part in state)
        return y, state if self._parts > 1 else state[0]

    def _check_input(self, x: Tensor, dims: tuple[int, ...]) -> None:
        kind = type(self).__name__
        _check.rows(kind, "input", x, self.input_size)
        if x.dim() not in dims:
            order = "B, T" if self.batch_first else "T, B"
            wanted = f"[{order}, {self.input_size}] or [T, {self.input_size}]"
            if dims == (2,):
                wanted = f"packed data [steps, {self.input_size}]"
            raise ValueError(f"{kind}: input: got {_check.describe(x)}, wanted {wanted}")

    def _initial_state(self, x: Tensor, hx: Any, batch: int, batched: bool) -> State:
        """The state before the first step, checked: each part [layers * directions, B, size]."""
        count = len(self._directions)
        sizes = (self.proj_size or self.hidden_size, self.hidden_size)[: self._parts]
        if hx is None:
            return tuple(x.new_zeros(count, batch, size) for size in sizes)
        shapes = [(count, batch, size) if batched else (count, size) for size in sizes]
        state = checked_state(type(self).__name__, hx, shapes, x)
        return state if batched else tuple(part.unsqueeze(1) for part in state)

    def _layers(self, x: Tensor, state: State, sizes: list[int] | None) -> tuple[Tensor, State]:
        """All layers; x is [T, B, K], [B, T, K], or the data of a packed sequence with `sizes`."""
        time_dim = 1 if self.batch_first else 0
        per_layer = 2 if self.bidirectional else 1
        finals: list[State] = []
        for layer in range(self.num_layers):
            if layer and self.dropout:
                x = functional.dropout(x, self.dropout, self.training)
            outputs: list[Tensor] = []
            for index in range(layer * per_layer, (layer + 1) * per_layer):
                weights = weights_of(self, "_" + self._directions[index])
                gates = weights.gates_of_input(x)
                steps = gates.unbind(time_dim) if sizes is None else torch.split(gates, sizes)
                before = tuple(part[index] for part in state)
                hs, after = _scan(self.mode, weights, steps, before, bool(index % per_layer))
                outputs.append(torch.stack(hs, time_dim) if sizes is None else torch.cat(hs))
                finals.append(after)
            x = outputs[0] if per_layer == 1 else torch.cat(outputs, -1)
        return x, tuple(torch.stack(parts) for parts in zip(*finals, strict=True))


class LSTM(_Recurrent):
    """Long short-term memory, as ``torch.nn.LSTM``, with packed weights.

    Each layer computes for every step::

        i, f, o = σ(Ŵ x + b + Û h + d)    g = tanh(Ŵ x + b + Û h + d)    (rows of Ŵ, Û by gate)
        c' = f * c + i * g                h' = o * tanh(c')               (times weight_hr, if any)

    Rows of x and of h are rounded as :class:`Linear` rounds them. The gates are in the dtype of x.

    Parameters
    ----------
    module : nn.LSTM
        The dense layer, with any of its options.
    scheme : str or Quantize
        Such as "int8".

    Attributes
    ----------
    input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size
        As of the dense layer.

    Notes
    -----
    ``state_dict`` has torch's names (``weight_ih_l0``, ``weight_ih_l0_scale``, ``bias_ih_l0``); a
    checkpoint of the dense layer loads and is quantized. The gradients of the input, the states and
    the biases exist, those of the weights do not.

    References
    ----------
    Hochreiter and Schmidhuber, "Long Short-Term Memory", 1997.

    Examples
    --------
    >>> layer = gs.nn.LSTM.from_dense(torch.nn.LSTM(8, 16, bidirectional=True), "int8")
    >>> output, (h, c) = layer(torch.randn(5, 2, 8))
    >>> output.shape, c.shape
    (torch.Size([5, 2, 32]), torch.Size([2, 2, 16]))
    """

    _dense = nn.LSTM
    _parts = 2


class GRU(_Recurrent):
    """Gated recurrent unit, as ``torch.nn.GRU``, with packed weights.

    Each layer computes for every step::

        r, z = σ(Ŵ x + b + Û h + d)        n = tanh(Ŵ x + b + r * (Û h + d))
        h' = (1 - z) * n + z * h

    Parameters
    ----------
    module : nn.GRU
        The dense layer, with any of its options.
    scheme : str or Quantize
        Such as "int8".

    Notes
    -----
    ``state_dict``, gradients and rounding are as of :class:`LSTM`.

    References
    ----------
    Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder", 2014.

    Examples
    --------
    >>> layer = gs.nn.GRU.from_dense(torch.nn.GRU(8, 16, batch_first=True), "int8")
    >>> output, h = layer(torch.randn(2, 5, 8))
    >>> output.shape, h.shape
    (torch.Size([2, 5, 16]), torch.Size([1, 2, 16]))
    """

    _dense = nn.GRU


class RNN(_Recurrent):
    """Elman network, as ``torch.nn.RNN``, with packed weights: h' = tanh(Ŵ x + b + Û h + d).

    Parameters
    ----------
    module : nn.RNN
        The dense layer, with any of its options; relu in place of tanh included.
    scheme : str or Quantize
        Such as "int8".

    Notes
    -----
    ``state_dict``, gradients and rounding are as of :class:`LSTM`.

    Examples
    --------
    >>> layer = gs.nn.RNN.from_dense(torch.nn.RNN(8, 16), "int8")
    >>> layer(torch.randn(5, 2, 8))[0].shape
    torch.Size([5, 2, 16])
    """

    _dense = nn.RNN

    @property
    def nonlinearity(self) -> str:
        """The activation: "tanh" or "relu"."""
        return self.mode.removeprefix("RNN_").lower()


def _permuted(state: State, indices: Tensor | None) -> State:
    return state if indices is None else tuple(part.index_select(1, indices) for part in state)
