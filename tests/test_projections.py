"""Layers that share one product: bits, what is kept between calls, gradients, graphs."""

from __future__ import annotations

import copy
import gc
import threading
import weakref
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.backends.common import aot_autograd

import gossamer as gs
from gossamer.nn.projections import share

from .fusion_models import (
    bert_attention,
    made,
    through_torch_save,
)

ONE_OF_EACH_FORMAT = (
    *("int8-g64", "int8-weight-only", "int4", "int4-asym", "nf4", "fp4", "mxfp4"),
    *("fp8", "fp8-block", "bf16"),
)


class TestSiblings:
    """Layers q, k, v with 64, 32 and 16 rows, one without a bias."""

    def layers(self) -> list[gs.nn.Linear]:
        dense = [nn.Linear(48, 64), nn.Linear(48, 32, bias=False), nn.Linear(48, 16)]
        return [gs.nn.Linear.from_dense(layer) for layer in dense]

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("M", [1, 3, 16, 70])
    def test_bits(self, dtype: torch.dtype, M: int, isa: str) -> None:
        plain = self.layers()
        siblings = share(plain)
        x = torch.randn(M, 48).to(dtype)
        with torch.no_grad():
            for want, got in zip(plain, siblings, strict=True):
                assert torch.equal(got(x), want(x))

    @pytest.mark.parametrize("scheme", ONE_OF_EACH_FORMAT)
    def test_formats(self, scheme: str) -> None:
        dense = [nn.Linear(192, N) for N in (256, 128, 48)]
        plain = [gs.nn.Linear.from_dense(layer, scheme) for layer in dense]
        for x in torch.randn(1, 192), torch.randn(20, 192).bfloat16():
            siblings = share(plain)
            for want, got in zip(plain, siblings, strict=True):
                assert torch.equal(got(x), want(x))
        for again in (copy.deepcopy(siblings), through_torch_save(siblings)):
            for want, got in zip(plain, again, strict=True):
                assert got.shares
                assert torch.equal(got(x), want(x))
                assert torch.equal(got.dequantize(), want.dequantize())
                wanted = want.state_dict()
                assert wanted.keys() == got.state_dict().keys()
                assert all(torch.equal(got.state_dict()[key], wanted[key]) for key in wanted)

    def test_any_order_and_any_number_of_times(self) -> None:
        plain = self.layers()
        siblings = share(plain)
        x, y = torch.randn(2, 5, 48)
        for index, source in [(2, x), (2, x), (0, y), (1, y), (0, x), (2, y), (1, x), (0, y)]:
            assert torch.equal(siblings[index](source), plain[index](source))

    def test_nothing_is_kept_when_all_have_theirs(self) -> None:
        siblings = share(self.layers())
        x = torch.randn(3, 48)
        held = [weakref.ref(layer(x)) for layer in siblings]
        assert [ref() for ref in held] == [None] * 3
        assert siblings[0]._shared._pending.value is None

    def test_nothing_outlives_x(self) -> None:
        siblings = share(self.layers())
        x = torch.randn(3, 48)
        siblings[1](x)
        outputs = siblings[0]._shared._pending.value[2]
        assert [output is None for output in outputs] == [False, True, False]
        gc.disable()  # by counting references alone
        try:
            del x
        finally:
            gc.enable()
        assert outputs == []

    def test_x_written_to_between_the_calls(self) -> None:
        plain = self.layers()
        siblings = share(plain)
        x = torch.randn(3, 48)
        with torch.no_grad():
            siblings[0](x)
            x.mul_(2)
            assert torch.equal(siblings[1](x), plain[1](x))

    def test_modes_that_change_between_the_calls(self) -> None:
        plain = self.layers()
        siblings = share(plain)
        x = torch.randn(3, 48)
        with torch.no_grad():
            siblings[0](x)
        assert siblings[2](x).requires_grad
        with torch.inference_mode():
            siblings[0](x)
        assert not siblings[1](x).is_inference()
        with torch.autocast("cpu", torch.bfloat16):
            siblings[0](x)
        assert siblings[1](x).dtype == torch.float32
        with torch.autocast("cpu", torch.bfloat16):
            for want, got in zip(plain, siblings, strict=True):
                assert torch.equal(got(x), want(x))

    def test_outputs_can_be_written_to(self) -> None:
        plain = self.layers()
        siblings = share(plain)
        x = torch.randn(3, 48, requires_grad=True)
        outputs = [layer(x).mul_(2).relu_() for layer in siblings]
        for layer, output in zip(plain, outputs, strict=True):
            assert torch.equal(output, layer(x).mul(2).relu())
        sum(output.sum() for output in outputs).backward()
        assert x.grad is not None

    def test_inference_tensors_and_strides(self) -> None:
        plain = self.layers()
        siblings = share(plain)
        with torch.inference_mode():
            x = torch.randn(48, 7).T
            for want, got in zip(plain, siblings, strict=True):
                assert torch.equal(got(x), want(x))

    def test_gradients(self) -> None:
        plain = self.layers()
        siblings = share(copy.deepcopy(plain))
        grads = []
        for layers in (plain, siblings):
            x = torch.linspace(-1, 1, 96).view(2, 48).requires_grad_()
            sum((layer(x) ** 2).sum() for layer in layers).backward()
            grads.append([x.grad, *(each.bias.grad for each in layers if each.bias is not None)])
        for want, got in zip(*grads, strict=True):
            torch.testing.assert_close(got, want)

    def test_trained_biases_count(self) -> None:
        plain = self.layers()
        siblings = share(plain)
        x = torch.randn(3, 48)
        with torch.no_grad():
            siblings[0](x), siblings[1](x), siblings[2](x)
            plain[2].bias.data.add_(1)
            assert siblings[2].bias is plain[2].bias
            assert torch.equal(siblings[2](x), plain[2](x))

    def test_threads(self) -> None:
        plain = self.layers()
        siblings = share(plain)
        x = torch.randn(2, 48)
        wants = [layer(x) for layer in plain]
        start, wrong = threading.Barrier(4), []

        def work() -> None:
            start.wait()
            with torch.no_grad():
                for _ in range(200):
                    for want, layer in zip(wants, siblings, strict=True):
                        if not torch.equal(layer(x), want):
                            wrong.append(layer)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []

    def test_vmap(self) -> None:
        plain = self.layers()
        siblings = share(plain)
        x = torch.randn(4, 3, 48)
        with torch.no_grad():
            got = torch.vmap(lambda row: tuple(layer(row) for layer in siblings))(x)
            for want, output in zip(plain, got, strict=True):
                torch.testing.assert_close(output, want(x))

    @pytest.mark.filterwarnings("ignore:the values of a packed weight")
    def test_weight(self) -> None:
        plain = self.layers()
        for want, got in zip(plain, share(plain), strict=True):
            assert (got.weight.shape, got.weight.dtype) == (want.weight.shape, torch.float32)
            assert torch.equal(got.weight.detach() + 0, want.dequantize())
            assert torch.equal(got.dequantize(torch.bfloat16), want.dequantize(torch.bfloat16))
            assert torch.equal(got.quantized().values, want.quantized().values)
            assert torch.equal(copy.deepcopy(got.weight) + 0, want.dequantize())

    def test_layers_that_do_not_fit(self) -> None:
        a, b = gs.nn.Linear.from_dense(nn.Linear(48, 8)), gs.nn.Linear.from_dense(nn.Linear(40, 8))
        with pytest.raises(ValueError):
            share([a, b])
        with pytest.raises(ValueError, match="share: layers: one has the activation 'relu'"):
            share([a, gs.nn.Linear.from_dense(nn.Linear(48, 8), activation="relu")])


class TestCompiled:
    @pytest.mark.parametrize("name", ["Bert", "Llama"])
    def test_same_output_without_breaks(self, name: str) -> None:
        torch._dynamo.reset()
        model = made(name)[2]
        block = model.encoder.layer[0] if name == "Bert" else model.model.layers[0].mlp
        x = torch.randn(2, 5, 64)
        with torch.no_grad():
            want = block(x)
            got = torch.compile(block, backend="aot_eager", fullgraph=True)(x)
        torch.testing.assert_close(got, want)

    @pytest.mark.parametrize("indices", [(0, 1, 2), (2, 0), (1, 2, 0, 0, 2, 1)])
    @pytest.mark.parametrize("grad", [False, True])
    def test_one_call_in_the_graph(self, indices: tuple[int, ...], grad: bool) -> None:
        torch._dynamo.reset()
        layers, seen = share([gs.nn.Linear.from_dense(nn.Linear(64, N)) for N in (64, 32, 16)]), []

        def backend(graph: torch.fx.GraphModule, example: Any) -> Any:
            seen.append(sum("gossamer.linear" in str(node.target) for node in graph.graph.nodes))
            return graph

        def called(x: torch.Tensor) -> list[torch.Tensor]:
            return [layers[index](x) for index in indices]

        compiled = torch.compile(called, backend=aot_autograd(fw_compiler=backend), fullgraph=True)
        with torch.set_grad_enabled(grad):
            for _ in range(3):
                x = torch.randn(2, 64)
                for want, got in zip(called(x), compiled(x), strict=True):
                    assert torch.equal(got, want)
        assert set(seen) == {-(-len(indices) // 3)}
        if len(indices) % 3 == 0:
            assert layers[0]._shared.traced is None

    def test_exported(self) -> None:
        attention = bert_attention()
        x = torch.randn(2, 64)
        exported = torch.export.export(Three(attention), (x,)).module()
        for want, got in zip(Three(attention)(x), exported(x), strict=True):
            assert torch.equal(got, want)


class Three(nn.Module):
    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.attention.query(x), self.attention.key(x), self.attention.value(x)
