"""MultiheadAttention: equal to torch's with the same weights, alone and inside transformers."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Iterator
from typing import Any
from unittest import mock

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

import gossamer as gs
from gossamer.nn.attention import MultiheadAttention

from .torch_twin import SCHEMES, exact_products, one_thread, twin

E, HEADS = 24, 4


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


def make(**options: Any) -> tuple[MultiheadAttention, Any]:
    """A packed layer with biases other than zero, and its dense twin."""
    dense = nn.MultiheadAttention(E, HEADS, **options)
    for name, parameter in dense.named_parameters():
        if "bias" in name:
            nn.init.normal_(parameter)
    layer = MultiheadAttention.from_dense(dense, "int8")
    return layer, twin(dense, layer)


def replace(module: nn.Module) -> nn.Module:
    """The module with packed layers, replaced by hand."""
    module = copy.deepcopy(module)
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.MultiheadAttention):
                setattr(parent, name, MultiheadAttention.from_dense(child))
            elif type(child) is nn.Linear:
                setattr(parent, name, gs.nn.Linear.from_dense(child))
    return module


def draw_mask(draw: Any, shape: tuple[int, ...], kind: str) -> Tensor:
    """A random mask, bool or float, that leaves the first key to every query."""
    seed = draw(st.integers(0, 10**6))
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.rand(shape, generator=generator) < 0.4
    hidden[..., 0] = False
    if kind == "bool":
        return hidden
    values = torch.randn(shape, generator=generator)
    return values.masked_fill(hidden, -torch.inf)


class TestSameAsTorch:
    @hypothesis.settings(max_examples=150)
    @hypothesis.given(data=st.data())
    def test_layer(self, data: st.DataObject) -> None:
        draw, flag = data.draw, st.booleans()
        names = ("bias", "add_bias_kv", "add_zero_attn", "batch_first")
        options: dict[str, Any] = {name: draw(flag) for name in names}
        if draw(flag):
            options |= {"kdim": draw(st.sampled_from([10, E])), "vdim": 12}
        layer, dense = make(**options)
        B, L, S = draw(st.integers(1, 3)), draw(st.integers(1, 5)), draw(st.integers(1, 5))
        inputs = self.draw_inputs(draw, layer, B, L, S)
        batched, S = inputs[0].dim() == 3, inputs[1].shape[1 if layer.batch_first else 0]
        if not batched:
            B, S = 1, inputs[1].shape[0]
        shape = draw(st.sampled_from([None, (L, S), (B * HEADS, L, S)]))
        causal = shape == (L, S) and draw(flag)
        kind = "bool" if causal else draw(st.sampled_from(["bool", "float"]))
        call: dict[str, Any] = {
            "attn_mask": None if shape is None else draw_mask(draw, shape, kind),
            "need_weights": draw(flag),
            "average_attn_weights": draw(flag),
        }
        if draw(flag):
            call["key_padding_mask"] = draw_mask(draw, (B, S) if batched else (S,), kind)
        if causal:
            call["is_causal"] = True
            call["attn_mask"] = torch.ones(L, S, dtype=torch.bool).triu(1)
        grad = draw(flag)  # torch computes self-attention without gradients in another way
        layer.eval()
        dense.eval()
        with torch.set_grad_enabled(grad), exact_products():
            got, want = layer(*inputs, **call), dense(*inputs, **call)
        assert_close(got[0], want[0])
        assert (got[1] is None) == (want[1] is None)
        if got[1] is not None:
            assert_close(got[1], want[1])

    @staticmethod
    def draw_inputs(
        draw: Any, layer: MultiheadAttention, B: int, L: int, S: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        batched = draw(st.booleans())

        def tensor(length: int, width: int) -> Tensor:
            if not batched:
                return torch.randn(length, width)
            return torch.randn(*((B, length) if layer.batch_first else (length, B)), width)

        query, key = tensor(L, E), tensor(S, layer.kdim)
        value = tensor(S, layer.vdim)
        same = draw(st.sampled_from(["all", "key and value", "query and key", "none"]))
        if layer._qkv_same_embed_dim and same == "all":
            return query, query, query
        if layer._qkv_same_embed_dim and same == "key and value":
            return query, key, key
        if layer.kdim == E and same == "query and key":
            return query, query, tensor(L, layer.vdim)
        return query, key, value

    @pytest.mark.parametrize("need_weights", [False, True])
    def test_dropout(self, need_weights: bool) -> None:
        layer, dense = make(dropout=0.5)
        x = torch.randn(5, 3, E)
        outputs = []
        for module in (layer, dense):
            torch.manual_seed(3)
            with exact_products():
                outputs.append(module(x, x, x, need_weights=need_weights))
        for got, want in zip(*outputs, strict=True):
            assert_close(got, want)
        with exact_products():
            assert not torch.allclose(outputs[0][0], layer.eval()(x, x, x)[0])

    @pytest.mark.parametrize("need_weights", [False, True])
    @pytest.mark.parametrize("cross", [False, True])
    def test_gradients(self, need_weights: bool, cross: bool) -> None:
        layer, dense = make(add_bias_kv=True)
        grads = []
        for module in (layer, dense):
            torch.manual_seed(1)
            x, y = (torch.randn(4, 2, E, requires_grad=True) for _ in range(2))
            mask = torch.randn(4, 4, requires_grad=True)
            with exact_products():
                out, _ = module(x, y if cross else x, y if cross else x, None, need_weights, mask)
            out.square().sum().backward()
            biases = [p.grad for name, p in module.named_parameters() if "bias" in name]
            assert len(biases) == 4
            grads.append([x.grad, mask.grad, *([y.grad] if cross else []), *biases])
        names = [sorted(n for n, _ in m.named_parameters() if "bias" in n) for m in (layer, dense)]
        assert names[0] == names[1]
        for got, want in zip(*grads, strict=True):
            assert_close(got, want)


class TestPackedProducts:
    def test_inputs_that_are_the_same_share_a_product(self) -> None:
        layer, _ = make()
        x, y, z = (torch.randn(3, 2, E) for _ in range(3))
        for inputs, blocks in (
            ((x, x, x), [3, 1]),
            ((x, y, y), [1, 2, 1]),
            ((x, x, y), [2, 1, 1]),
            ((x, y, z), [1, 1, 1, 1]),
            ((x, y, x), [1, 1, 1, 1]),
        ):
            with exact_products() as calls:
                layer(*inputs)
            assert [call.args[4].out_features // E for call in calls.call_args_list] == blocks

    def test_blocks_are_packed_once_and_give_the_rows_of_the_whole(self) -> None:
        layer, _ = make()
        x, y = torch.randn(3, 2, E), torch.randn(4, 2, E)
        with torch.no_grad():
            parts = layer._project(x, y, y)
            block = layer._row_blocks[1, 3]
            assert layer._project(x, y, y)
            assert layer._row_blocks[1, 3] is block
            whole = [layer._project(z, z, z) for z in (x, y)]
        assert_close(parts, [whole[0][0], whole[1][1], whole[1][2]], rtol=1e-6, atol=1e-6)

    def test_a_format_that_cannot_be_divided(self) -> None:
        layer, dense = make()
        x, y = torch.randn(3, 2, E), torch.randn(4, 2, E)
        divide = mock.patch.object(type(layer.in_proj), "rows", side_effect=ValueError)
        with divide, exact_products():
            assert_close(layer(x, y, y)[0], dense(x, y, y)[0])

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("need_weights", [False, True])
    def test_stays_close_to_dense(self, dtype: torch.dtype, need_weights: bool) -> None:
        dense = nn.MultiheadAttention(96, 4, batch_first=True, add_bias_kv=True).eval()
        layer = MultiheadAttention.from_dense(copy.deepcopy(dense)).to(dtype)
        x, mask = torch.randn(2, 20, 96), torch.zeros(2, 20)
        mask[1, 10:] = -torch.inf
        with torch.no_grad():
            want = dense(x, x, x, mask, need_weights)[0]
            y = layer(*[x.to(dtype)] * 3, mask.to(dtype), need_weights)[0]
            assert y.dtype == dtype
            assert 0 < float((y.float() - want).norm() / want.norm()) < 0.03
            with torch.autocast("cpu", torch.bfloat16):
                y = layer(x, x, x, mask, need_weights)[0]
            assert float((y.float() - want).norm() / want.norm()) < 0.05

    @pytest.mark.parametrize("scheme", SCHEMES)
    def test_every_format(self, scheme: str) -> None:
        dense, other = (nn.MultiheadAttention(160, 4, batch_first=True) for _ in range(2))
        layer = MultiheadAttention.from_dense(dense, scheme)
        same, other = twin(dense, layer), MultiheadAttention.from_dense(other, scheme)
        other.load_state_dict(layer.state_dict())
        x, z = torch.randn(2, 5, 160), torch.randn(2, 4, 160)
        for inputs in ((x, x, x), (x, z, z), (x, x, x + 1)):
            with torch.no_grad():
                y, want = layer(*inputs)[0], same(*inputs)[0]
                assert float((y - want).norm() / want.norm()) < 0.03
                for new in (other, copy.deepcopy(layer)):
                    assert torch.equal(new(*inputs)[0], y)
                with exact_products():
                    assert_close(layer(*inputs)[0], want)

    def test_compiles(self) -> None:
        layer, _ = make(batch_first=True)
        x, y = torch.randn(2, 3, E), torch.randn(2, 4, E)
        with torch.no_grad():
            compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
            assert_close(compiled(x, x, x)[0], layer(x, x, x)[0])
            assert_close(compiled(x, y, y)[0], layer(x, y, y)[0])


class TestModule:
    @pytest.mark.parametrize("widths", [{}, {"kdim": 10, "vdim": 12}])
    def test_state_dict_has_the_names_of_torch(self, widths: dict[str, int]) -> None:
        (layer, dense), (other, _) = (make(add_bias_kv=True, **widths) for _ in range(2))
        inputs = [torch.randn(3, 2, n) for n in (E, layer.kdim, layer.vdim)]
        other(*inputs)  # so that blocks of rows exist, and must be made again
        state, names = layer.state_dict(), list(dense.state_dict())
        assert set(state) == {*names, *(f"{n}_scale" for n in names if n.endswith("weight"))}
        assert str(other.load_state_dict(state)) == "<All keys matched successfully>"
        assert torch.equal(other(*inputs)[0], layer(*inputs)[0])
        other.load_state_dict(make(add_bias_kv=True, **widths)[1].state_dict())
        assert not torch.equal(other(*inputs)[0], layer(*inputs)[0])
        assert str(other.load_state_dict(dense.state_dict())) == "<All keys matched successfully>"
        assert_close(other.state_dict(), state)
        with pytest.raises(RuntimeError, match=r'Missing key.*"(in|k)_proj_weight_scale"'):
            other.load_state_dict({k: v for k, v in state.items() if "proj_weight_sc" not in k})

    def test_copies(self) -> None:
        layer, _ = make()
        x, y = torch.randn(3, 2, E), torch.randn(4, 2, E)
        want = layer(x, y, y)[0]
        for new in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert new._row_blocks == {}
            assert torch.equal(new(x, y, y)[0], want)
            assert repr(new) == repr(layer)

    def test_attributes(self) -> None:
        dense = nn.MultiheadAttention(E, HEADS, dropout=0.1, kdim=10, batch_first=True).eval()
        layer = MultiheadAttention.from_dense(dense)
        for name in (
            *("embed_dim", "kdim", "vdim", "num_heads", "head_dim", "dropout", "batch_first"),
            *("add_zero_attn", "_qkv_same_embed_dim", "training", "bias_k", "in_proj_weight"),
        ):
            assert getattr(layer, name) == getattr(dense, name)
        assert layer.in_proj_bias is dense.in_proj_bias
        assert layer.out_proj.bias is dense.out_proj.bias
        assert layer.k_proj_weight.shape == (E, 10)
        assert make()[0].q_proj_weight is None
        assert repr(layer).startswith(
            f"MultiheadAttention(\n  {E}, num_heads={HEADS}, batch_first=True\n"
        )


class TestTransformers:
    @pytest.mark.parametrize("norm_first", [False, True])
    @pytest.mark.parametrize("batch_first", [False, True])
    @pytest.mark.parametrize("train", [False, True])
    @pytest.mark.parametrize("masks", ["none", "padding", "causal", "both"])
    def test_encoder(self, norm_first: bool, batch_first: bool, train: bool, masks: str) -> None:
        options = {"norm_first": norm_first, "batch_first": batch_first}
        # Batch first, torch's attention gives another memory order, in which dropout then draws.
        dropout = 0.3 if train and not batch_first else 0.0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch says why it will not use nested tensors
            dense: Any = nn.TransformerEncoder(
                nn.TransformerEncoderLayer(E, HEADS, 48, dropout, **options), 2
            )
        model = replace(dense.train(train))
        call: dict[str, Any] = {}
        if masks in ("padding", "both"):
            call["src_key_padding_mask"] = torch.arange(5) >= torch.tensor([[5], [3]])
        if masks in ("causal", "both"):
            call["mask"] = torch.ones(5, 5, dtype=torch.bool).triu(1)
        dense = twin(dense, model)
        x = torch.randn(2, 5, E) if batch_first else torch.randn(5, 2, E)
        outputs = []
        for module in (model, dense):
            torch.manual_seed(4)
            with torch.set_grad_enabled(train), exact_products(), warnings.catch_warnings():
                warnings.simplefilter("error")  # such as for reading packed weights
                warnings.filterwarnings("ignore", "The PyTorch API of nested tensors")
                outputs.append(module(x, **call))
        if masks == "padding" and not train:  # torch's fast path gives zeros for what is padded
            keep = ~call["src_key_padding_mask"]
            outputs = [y[keep] if batch_first else y.transpose(0, 1)[keep] for y in outputs]
        assert_close(*outputs)

    @pytest.mark.parametrize("train", [False, True])
    def test_whole_transformer(self, train: bool) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dense: Any = nn.Transformer(E, HEADS, 2, 2, 48, 0.0, batch_first=True).train(train)
        model = replace(dense)
        assert not any(isinstance(m, nn.MultiheadAttention) for m in model.modules())
        dense = twin(dense, model)
        source, target = torch.randn(2, 5, E), torch.randn(2, 4, E)
        call = {
            "tgt_mask": nn.Transformer.generate_square_subsequent_mask(4),
            "tgt_is_causal": True,
            "memory_key_padding_mask": torch.zeros(2, 5).masked_fill_(torch.eye(2, 5) > 0, -1e9),
        }
        with torch.set_grad_enabled(train), exact_products():
            assert_close(model(source, target, **call), dense(source, target, **call))
        with torch.no_grad():
            want = dense(source, target, **call)
            error = (model(source, target, **call) - want).norm() / want.norm()
        assert 0 < float(error) < 0.03


class TestErrors:
    @pytest.mark.parametrize(
        ("shapes", "message"),
        [
            (((3, 2, 25), (3, 2, 24), (3, 2, 24)), r"query: got .*\[3, 2, 25\], wanted .*24"),
            (((3, 2, 24), (3, 2, 23), (3, 2, 24)), r"key: got .*\[3, 2, 23\], wanted .*24"),
            (((3, 2, 24), (3, 24), (3, 24)), r"key: got .*\[3, 24\], wanted \[L, B, 24\]"),
            (((24,), (24,), (24,)), r"query: got .*\[24\], wanted \[L, B, 24\] or \[L, 24\]"),
            (((3, 2, 24), (4, 2, 24), (5, 2, 24)), r"value: got .*\[5, 2, 24\], wanted .*\[4, 2\]"),
            (((3, 2, 24), (4, 1, 24), (4, 1, 24)), "key: got .*wanted the batch of query, 2"),
        ],
    )
    def test_of_inputs(self, shapes: tuple[tuple[int, ...], ...], message: str) -> None:
        layer, _ = make()
        with pytest.raises(ValueError, match="MultiheadAttention: " + message):
            layer(*(torch.ones(shape) for shape in shapes))

    @pytest.mark.parametrize(
        ("call", "error", "message"),
        [
            ({"is_causal": True}, ValueError, "is_causal: is a hint about attn_mask"),
            ({"attn_mask": torch.ones(3, 4)}, ValueError, r"attn_mask: .*wanted \[3, 3\] or \[8, "),
            ({"key_padding_mask": torch.ones(3, 2)}, ValueError, r"key_padding.*wanted \[2, 3\]"),
            ({"attn_mask": torch.ones(3, 3).long()}, TypeError, "attn_mask: got dtype torch.int64"),
        ],
    )
    def test_of_masks(self, call: dict[str, Any], error: type[Exception], message: str) -> None:
        layer, _ = make()
        x = torch.ones(3, 2, E)
        with pytest.raises(error, match=message):
            layer(x, x, x, **call)

    def test_of_dtypes_and_modules(self) -> None:
        layer, _ = make()
        with pytest.raises(TypeError, match=r"MultiheadAttention: query: .*float32, bfloat16 or"):
            layer(*[torch.ones(3, 2, E).double()] * 3)
        nested = torch.nested.nested_tensor([torch.ones(2, E), torch.ones(3, E)])
        with pytest.raises(TypeError, match="query: is a nested tensor"):
            layer(nested, nested, nested)
        with pytest.raises(TypeError, match=r"from_dense: module: got Linear, wanted nn.Multihead"):
            MultiheadAttention.from_dense(nn.Linear(3, 3))
        with pytest.raises(AttributeError, match="MultiheadAttention: in_proj_weight: is packed"):
            layer.in_proj_weight = nn.Parameter(torch.ones(3 * E, E))
