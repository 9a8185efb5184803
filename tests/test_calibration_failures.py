"""Streams that end early, or cannot go on, leave the model as it was and say why."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from gossamer.calibration import Block, Call

from .calibration_models import blocks, plain, rows


def hooks_of(model: nn.Module) -> int:
    return sum(
        len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules()
    )


def modes_of(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


@pytest.mark.parametrize("at", range(9))
def test_interruption_leaves_the_model_as_it_was(at: int) -> None:
    """Wherever the model is at: in the trace, in the capture, in a block."""
    model = plain().train()
    model[2].eval()
    count = 0

    class Interrupting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            nonlocal count
            count += 1
            if count == at + 1:
                raise KeyboardInterrupt
            return x

    model[3] = Interrupting()
    modes = modes_of(model)

    def work() -> None:
        for block in blocks(model, rows(), keep_dense=True):
            assert not any(modes_of(model))
            assert torch.is_grad_enabled()
            block.statistics(moments=False)
            if block.name == "4":
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert hooks_of(model) == 0
    assert modes_of(model) == modes


def test_interruption_of_a_forward_that_sets_attributes() -> None:
    class Flagged(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before, self.layers, self.busy = nn.Identity(), plain(), False

        def forward(self, x: Tensor) -> Tensor:
            assert not self.busy
            self.busy = True
            y = self.layers(self.before(x))
            self.busy = False
            return y

    model, calls = Flagged(), []

    def interrupt(*_: object) -> None:
        calls.append(None)
        if len(calls) == 3:  # the trace, a batch, and then
            raise KeyboardInterrupt

    handle = model.before.register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        next(blocks(model, rows()))
    handle.remove()
    assert not model.busy
    assert hooks_of(model) == 0


def test_leaving_the_loop_and_failing_in_it() -> None:
    model = plain().train()

    def work(number: int) -> float:
        for _ in blocks(model, rows()):
            return 1 / number
        return 0.0

    assert work(1) == 1
    assert modes_of(model) == [True] * len(modes_of(model))
    with pytest.raises(ZeroDivisionError):
        work(0)
    assert modes_of(model) == [True] * len(modes_of(model))
    assert hooks_of(model) == 0


def test_errors() -> None:
    model = plain()
    with pytest.raises(ValueError, match="calibration: is empty"):
        blocks(model, [])
    with pytest.raises(TypeError, match="iterable of batches"):
        blocks(model, torch.randn(2, 6))
    with pytest.raises(TypeError, match="batch of int"):
        next(blocks(model, [3]))
    with pytest.raises(TypeError, match="batch of int"):
        next(blocks(model, [torch.randn(2, 6), 3]))
    bad = [torch.randn(2, 6), torch.full((2, 6), float("nan"))]
    with pytest.raises(ValueError, match="input of '0' holds NaN"):
        next(blocks(model, bad)).statistics(moments=True)
    assert hooks_of(model) == 0
    block = Block("", nn.LSTM(3, 3), {}, [Call((torch.randn(2, 3),), {})])
    assert block.outputs(block.calls)[0].shape == (2, 3)
    block = Block("", nn.Identity(), {}, [Call(("text",), {})])
    with pytest.raises(TypeError, match="'the model' returned"):
        block.outputs(block.calls)


def test_batches_that_take_another_path() -> None:
    class Choosing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))

        def forward(self, x: Tensor, skip: bool = False) -> Tensor:
            return x if skip else self.layers(x)

    model, x = Choosing(), torch.randn(2, 4)
    with pytest.raises(ValueError, match=r"does not call 'layers.0' for one batch"):
        list(blocks(model, [x, (x, True)]))
    model.layers[0].unused = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"'layers.0.unused' was given no row"):
        next(blocks(model, [x])).statistics(moments=True)
