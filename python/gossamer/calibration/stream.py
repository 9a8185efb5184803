"""The blocks of a model one after the other, each with the inputs that those before it give it."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .. import _check
from .._progress import Progress
from .batches import Batches, arguments, evaluating, sized, token_mask
from .blocks import Chain, find_chains
from .calls import Call, first_tensor, tensors_of
from .capture import Captured, capture
from .statistics import Gathering, Statistics

__all__ = ["Block", "Call", "block_names", "stream", "whole_model"]

_FUNCTION = "stream"


@dataclass
class Clock:
    """How long blocks have run.

    Attributes
    ----------
    runs : int
        Calls of blocks so far.
    timed : int
        Of these, the calls in which nothing was measured.
    seconds : float
        That those took.
    """

    runs: int = 0
    timed: int = 0
    seconds: float = 0.0

    @property
    def total(self) -> float:
        """Seconds of all runs, those in which something was measured without that."""
        return self.runs * self.seconds / self.timed if self.timed else 0.0


@dataclass(eq=False)
class Block:
    """A part of a model that is called once for each batch, with the calls that it gets.

    Attributes
    ----------
    name : str
        Of the block in the model; "" for the whole model.
    model : nn.Module
        What the name is looked up in.
    layers : dict of str to nn.Module
        Those of the layers asked for that are in the block, by their names.
    calls : list of Call
        One for each batch. The next block gets the same list with other calls.
    dense_calls : list of Call or None
        What the block of the unchanged model gets, where ``keep_dense`` was given; None for the
        block that is the whole model.
    dense_outputs : list of Tensor or None
        What the unchanged block makes of ``dense_calls``: its hidden states.
    masks : list of Tensor or None
        For each call, bool of shape (B, S), False where a token is padding, or None.
    writes_input : bool
        Whether the block changes its hidden states in place: it is then given copies.
    bf16 : bool
        Whether it runs under ``torch.autocast`` to bfloat16.
    progress : bool, optional
        Whether ``statistics`` shows a bar: True, False, or on a terminal, after a second (None).
    clock : Clock
        Counts the runs of all blocks of a stream.
    """

    name: str
    model: nn.Module
    layers: dict[str, nn.Module]
    calls: list[Call]
    dense_calls: list[Call] | None = None
    dense_outputs: list[Tensor] | None = None
    masks: Sequence[Tensor | None] | None = None
    writes_input: bool = False
    bf16: bool = False
    progress: bool | None = False
    clock: Clock = field(default_factory=Clock)

    @property
    def module(self) -> nn.Module:
        """The block as it is now."""
        return self.model.get_submodule(self.name)

    def statistics(
        self, *, moments: bool, histograms: bool = False, rows: int | None = None
    ) -> dict[str, Statistics]:
        """Run the block, as it is now, over its calls and measure what its layers are given.

        Parameters
        ----------
        moments : bool
            Whether to measure E[x xᵀ]: K² multiplications for each row of x.
        histograms : bool
            Whether to count magnitudes, for scales of whole tensors.
        rows : int, optional
            So many of x are enough for each layer: calls are then taken at random, always the same.

        Returns
        -------
        dict of str to Statistics
            By layer. Layers that were given the same tensors have one object between them.

        Raises
        ------
        ValueError
            Where a layer is never called; for NaN or infinity in an input.
        TypeError
            For a layer that is no linear layer and no convolution.
        """
        count, seed = len(self.calls), torch.Generator().manual_seed(0)
        order = range(count) if rows is None else torch.randperm(count, generator=seed).tolist()
        gathering = Gathering(_FUNCTION, self.layers, moments=moments, histograms=histograms)
        shown = Progress("measuring", count, self.progress)
        with shown, gathering, evaluating(self.module), torch.no_grad():
            for index in order:
                gathering.mask = self.masks[index] if self.masks else None
                self._run(self.calls[index])
                gathering.close()
                shown.advance(1)
                if rows is not None and gathering.least_rows() >= rows:
                    break
        return gathering.results()

    def outputs(self, calls: Sequence[Call]) -> list[Tensor]:
        """Run the block, as it is now, without gradients.

        Parameters
        ----------
        calls : sequence of Call
            What it is called with.

        Returns
        -------
        list of Tensor
            The hidden states for each call: the output, or the first element of several.

        Raises
        ------
        TypeError
            For an output that is no tensor.
        """
        with evaluating(self.module):
            return [self.output(call) for call in calls]

    def output(self, call: Call) -> Tensor:
        """As :meth:`outputs`, of one call; the block is in the mode that it is in."""
        start = time.perf_counter()
        with torch.no_grad():
            output = self._run(call)
        self.clock.timed += 1
        self.clock.seconds += time.perf_counter() - start
        hidden = first_tensor(output)
        if hidden is None:
            raise TypeError(
                f"{_FUNCTION}: {self.name or 'the model'!r} returned {_check.describe(output)}, "
                "wanted a tensor, or a tuple whose first element is one"
            )
        return hidden.float() if self.bf16 and hidden.dtype is torch.bfloat16 else hidden

    def _run(self, call: Call) -> Any:
        args = call.args
        self.clock.runs += 1
        if self.writes_input:
            args = (args[0].clone(), *args[1:])
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            return self.module(*args, **call.kwargs)


def stream(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    batches: Batches,
    *,
    keep_dense: bool = False,
    bf16: bool = False,
    progress: bool | None = None,
) -> Iterator[Block]:
    """The blocks of a model in order, each with what the blocks before it, as changed, give it.

    A block is a child of an ``nn.ModuleList`` or ``nn.Sequential`` whose children hand their output
    to the next one as it is. Such a chain is found by running the model on the largest batch; there
    may be several (an encoder and a decoder, the stages of a CNN). For each, the model runs over
    the batches up to the first block; from then on only the block at hand does: once the consumer
    has changed it (its weights, or modules in it), it runs over its calls, and its outputs replace
    them as the calls of the next. Layers outside of all chains come last, in one block that is the
    whole model and has the batches as its calls.

    Parameters
    ----------
    model : nn.Module
        Runs in eval mode and without gradients, and stays in eval mode until the stream ends; each
        module then has the mode that it had.
    layers : mapping of str to nn.Module
        What the consumer wants to change, by name. Blocks without any are run, not yielded.
    batches : iterable
        Each a tensor, a tuple or list of arguments, or a dict of keyword arguments. One that has no
        ``len()`` is read into a list first. With an ``attention_mask`` of shape (B, S), tokens that
        are padding are left out of statistics.
    keep_dense : bool
        Whether to run the unchanged blocks too, over what unchanged blocks give.
    bf16 : bool
        Whether blocks run under ``torch.autocast`` to bfloat16: faster where the processor
        multiplies it, and what layers are given is then rounded to it.
    progress : bool, optional
        Show a bar on stderr: True, False, or where it is a terminal, after a second (None).

    Yields
    ------
    Block
        It is good until the next one is asked for.

    Raises
    ------
    ValueError
        Without a batch; where batches take other paths through the model than the largest.
    TypeError
        For a batch of another kind.

    Notes
    -----
    Memory: the model, the hidden states of all batches once (with ``keep_dense`` those of all
    chains at first, and three times: inputs, and dense inputs and outputs), and the temporaries of
    one batch. Iterate over it in a for statement: leaving that ends the stream and the bar.

    Examples
    --------
    >>> from gossamer.calibration import stream
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False), torch.nn.Linear(2, 1))
    >>> layers = {"0": model[0], "1": model[1]}
    >>> for block in stream(model, layers, [torch.ones(1, 2)]):
    ...     print(block.name, block.calls[0].args[0])
    ...     _ = torch.nn.init.ones_(block.module.weight)
    0 tensor([[1., 1.]])
    1 tensor([[2., 2.]])
    """
    return _Stream(model, layers, sized(_FUNCTION, batches), keep_dense, bf16).blocks(progress)


def whole_model(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    batches: Batches,
    *,
    bf16: bool = False,
    progress: bool | None = None,
) -> Block:
    """A model as one block, for statistics of all its layers in one pass.

    Parameters
    ----------
    model, layers, batches, bf16, progress
        As for :func:`stream`.

    Returns
    -------
    Block
        Of the whole model.

    Raises
    ------
    ValueError
        Without a batch.
    TypeError
        For a batch of another kind.
    """
    found = sized(_FUNCTION, batches)
    calls = [Call(*arguments(_FUNCTION, batch)) for batch in found]
    masks = [token_mask(model, batch) for batch in found]
    return Block("", model, dict(layers), calls, masks=masks, bf16=bf16, progress=progress)


def block_names(
    model: nn.Module, layers: Mapping[str, nn.Module], batches: Batches
) -> dict[str, str]:
    """The blocks that :func:`stream` would find; the model runs on the largest batch only.

    Parameters
    ----------
    model, layers, batches
        As for :func:`stream`.

    Returns
    -------
    dict of str to str
        For each layer the name of its block: "" for those outside of all chains.

    Raises
    ------
    ValueError
        Without a batch.
    TypeError
        For a batch of another kind.
    """
    with evaluating(model):
        chains = find_chains(_FUNCTION, model, layers, _largest(sized(_FUNCTION, batches)))
    names = dict.fromkeys(layers, "")
    for chain in reversed(chains):  # the first of those that share a layer has it
        for name, inside in reversed(list(zip(chain.names, chain.layers, strict=True))):
            names.update(dict.fromkeys(inside, name))
    return names


def _largest(batches: Collection[Any]) -> Any:
    """The batch with the most numbers: short ones may need no mask where long ones do."""

    def size(batch: Any) -> int:
        return sum(tensor.numel() for tensor in tensors_of(arguments(_FUNCTION, batch)))

    return max(batches, key=size)


class _Stream:
    """One pass over a model."""

    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[str, nn.Module],
        batches: Collection[Any],
        keep_dense: bool,
        bf16: bool,
    ) -> None:
        self._model = model
        self._left = dict(layers)  # not yet yielded
        self._batches = batches
        self._keep_dense, self._bf16, self._clock = keep_dense, bf16, Clock()
        self._masks = [token_mask(model, batch) for batch in batches]

    def blocks(self, progress: bool | None) -> Iterator[Block]:
        """Those of all chains, then the whole model."""
        model, batches = self._model, self._batches
        with evaluating(model):
            chains = find_chains(_FUNCTION, model, self._left, _largest(batches))
            inside = {name for chain in chains for layers in chain.layers for name in layers}
            steps = sum(len(chain.names) for chain in chains) + (len(inside) < len(self._left))
            dense: list[Captured | None] = [None] * len(chains)
            with Progress("calibrating", steps * len(batches), progress) as shown:
                if self._keep_dense:
                    dense = [capture(_FUNCTION, model, batches, chain) for chain in chains]
                for index, chain in enumerate(chains):
                    yield from self._along(chain, dense[index], index == 0, shown)
                    dense[index] = None
                if self._left:
                    yield whole_model(model, self._left, batches, bf16=self._bf16, progress=False)
                    shown.advance(len(batches))

    def _along(
        self, chain: Chain, dense: Captured | None, first: bool, shown: Progress
    ) -> Iterator[Block]:
        """The blocks of a chain."""
        if first and dense is not None:
            now = dense.copy()
        else:
            now = capture(_FUNCTION, self._model, self._batches, chain)
        for index, name in enumerate(chain.names):
            layers = {key: self._left.pop(key) for key in chain.layers[index] if key in self._left}
            writes_input = chain.writes_input[index]
            block = Block(
                name,
                self._model,
                layers,
                now.calls,
                masks=self._masks,
                writes_input=writes_input,
                bf16=self._bf16,
                clock=self._clock,
            )
            if dense is not None:
                block.dense_calls = dense.calls
                block.dense_outputs = block.outputs(dense.calls)
            if layers:
                yield block
            if index + 1 < len(chain.names):
                self._move_on(block, index + 1, now, dense, shown)
            else:
                shown.advance(len(self._batches))

    def _move_on(
        self, block: Block, following: int, now: Captured, dense: Captured | None, shown: Progress
    ) -> None:
        """Replace the calls of a block by those of the one that follows."""
        for index, call in enumerate(now.calls):
            now.calls[index] = now.call(index, following, block.output(call))
            if dense is not None and block.dense_outputs is not None:
                dense.calls[index] = dense.call(index, following, block.dense_outputs[index])
            shown.advance(1)
