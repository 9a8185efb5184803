"""gs.nn.Embedding and gs.nn.EmbeddingBag against torch on the expanded table."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

import gossamer as gs
from gossamer import _ops_embedding

# One of each format and of each kind of scale; tests/cpp/test_embedding.cpp has all group sizes.
SCHEMES = (
    "int8",
    "int8-g32",
    "int8-weight-only",
    "int4",
    "int4-g16-asym",
    "int4-per-channel",
    "nf4",
    "fp4",
    "mxfp4",
    "fp8",
    "fp8-e5m2",
    "fp8-block",
    "bf16",
)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
N, K = 50, 70


def make(scheme: str = "int8", **options: Any) -> gs.nn.Embedding:
    return gs.nn.Embedding.from_dense(torch.nn.Embedding(N, K, **options), scheme)


def make_bag(scheme: str = "int8", **options: Any) -> gs.nn.EmbeddingBag:
    return gs.nn.EmbeddingBag.from_dense(torch.nn.EmbeddingBag(N, K, **options), scheme)


def same(a: gs.nn.Embedding, b: gs.nn.Embedding) -> bool:
    index = torch.arange(N)
    return (
        torch.equal(a.packed, b.packed) and repr(a) == repr(b) and torch.equal(a(index), b(index))
    )


class TestEmbedding:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("scheme", SCHEMES)
    def test_gives_the_rows_of_the_table(self, scheme: str, dtype: torch.dtype) -> None:
        layer = make(scheme).to(dtype)
        index = torch.randint(0, N, (4, 9))
        y = layer(index)
        assert y.dtype is dtype
        assert torch.equal(y, functional.embedding(index, layer.dequantize().to(dtype)))

    @pytest.mark.parametrize("scheme", SCHEMES)
    def test_is_close_to_the_dense_one(self, scheme: str) -> None:
        dense = torch.nn.Embedding(N, K)
        layer = gs.nn.Embedding.from_dense(dense, scheme)
        index = torch.arange(N)
        error = (layer(index) - dense(index)).norm() / dense.weight.norm()
        assert error < 0.2
        assert layer.weight_error == pytest.approx(error.item(), rel=1e-3)

    @pytest.mark.parametrize("index_dtype", [torch.int64, torch.int32])
    @pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0, 2), (2, 3, 4)])
    def test_shapes(self, shape: tuple[int, ...], index_dtype: torch.dtype) -> None:
        layer = make()
        index = torch.randint(0, N, shape, dtype=index_dtype)
        y = layer(index)
        assert y.shape == (*shape, K)
        assert y.is_contiguous()
        assert torch.equal(y, functional.embedding(index, layer.dequantize()))

    def test_strides(self) -> None:
        layer, index = make(), torch.randint(0, N, (6, 10))
        for view in (index.T, index[:, ::3], index[:1].expand(4, 10)):
            assert torch.equal(layer(view), layer(view.contiguous()))

    def test_the_same_for_every_number_of_threads(self) -> None:
        layer, index = make("int4"), torch.randint(0, N, (3000,))
        before = torch.get_num_threads()
        try:
            torch.set_num_threads(1)
            alone = layer(index)
            torch.set_num_threads(3)
            assert torch.equal(layer(index), alone)
        finally:
            torch.set_num_threads(before)

    @pytest.mark.parametrize("wrong", [N, -1, 2**40])
    def test_indices_out_of_range(self, wrong: int) -> None:
        dense = torch.nn.Embedding(N, K)
        index = torch.tensor([1, wrong, 2])
        with pytest.raises(IndexError) as torchs:
            dense(index)
        with pytest.raises(IndexError) as ours:
            gs.nn.Embedding.from_dense(dense)(index)
        assert str(ours.value) == str(torchs.value)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.int16, torch.uint8, torch.bool])
    def test_wrong_index_dtypes(self, dtype: torch.dtype) -> None:
        with pytest.raises(TypeError, match=r"embedding: input: got .*, wanted dtype int64 or int"):
            make()(torch.zeros(3, dtype=dtype))

    def test_keeps_settings(self) -> None:
        dense = torch.nn.Embedding(N, K, padding_idx=-3, dtype=torch.bfloat16).eval()
        layer = gs.nn.Embedding.from_dense(dense, "int8")
        assert (layer.num_embeddings, layer.embedding_dim, layer.padding_idx) == (N, K, N - 3)
        assert not layer.training
        assert layer(torch.tensor(0)).dtype is torch.bfloat16
        assert not layer(torch.tensor(N - 3)).any()
        assert repr(layer).startswith("Embedding(\n  50, 70, padding_idx=47, format=int8\n")

    def test_max_norm_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"max_norm: got 1\.0; a lookup would write"):
            make(max_norm=1.0)
        with pytest.raises(ValueError, match=r"max_norm: got 2\.0"):
            make_bag(max_norm=2.0)

    def test_other_modules_are_refused(self) -> None:
        class Scaled(torch.nn.Embedding):
            def forward(self, input: Tensor) -> Tensor:
                return super().forward(input) * 2

        class Plain(torch.nn.Embedding):
            pass

        for module in (Scaled(N, K), torch.nn.Linear(3, 3), torch.nn.EmbeddingBag(N, K)):
            with pytest.raises(TypeError, match=r"wanted nn\.Embedding"):
                gs.nn.Embedding.from_dense(module)
        assert gs.nn.Embedding.from_dense(Plain(N, K)).num_embeddings == N

    def test_constructor_errors(self) -> None:
        weight = gs.formats.Int8.quantize(torch.randn(N, K))
        with pytest.raises(ValueError, match=r"Embedding: weight: got shape \(50, 70\)"):
            gs.nn.Embedding(N, K + 1, weight=weight)
        with pytest.raises(TypeError, match=r"Embedding: weight: got a torch\.float32 tensor"):
            gs.nn.Embedding(N, K, weight=torch.randn(N, K))  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="Embedding: padding_idx: got 50, wanted -50 to 49"):
            gs.nn.Embedding(N, K, weight=weight, padding_idx=N)
        with pytest.raises(ValueError, match="EmbeddingBag: mode: got 'min'"):
            gs.nn.EmbeddingBag(N, K, weight=weight, mode="min")

    def test_no_gradient_for_the_table(self) -> None:
        layer = make()
        assert not layer(torch.tensor([1, 2])).requires_grad
        assert list(layer.parameters()) == []
        with pytest.raises(RuntimeError, match="no gradient"):
            _ = layer.weight.grad
        with pytest.raises(AttributeError, match="Embedding: weight: is packed"):
            layer.weight = torch.nn.Parameter(torch.randn(N, K))

    def test_weight_answers(self) -> None:
        layer = make().to(torch.float16)
        assert layer.weight.shape == (N, K)
        assert layer.weight.dtype is torch.float16
        assert not isinstance(layer.weight, torch.nn.Parameter)

    def test_moving(self) -> None:
        layer = make()
        packed = layer.packed
        assert layer.half()(torch.tensor(1)).dtype is torch.float16
        assert layer.packed is packed
        with pytest.raises(RuntimeError, match="device"):
            layer.to("meta")
        with pytest.raises(TypeError, match="dtype"):
            layer.double()

    def test_autocast_leaves_the_dtype(self) -> None:
        with torch.autocast("cpu", torch.bfloat16):
            assert make()(torch.tensor([1])).dtype is torch.float32


class TestSaving:
    @pytest.mark.parametrize("scheme", SCHEMES)
    def test_state_dict_and_copies(self, scheme: str) -> None:
        layer = make(scheme, padding_idx=2)
        state = layer.state_dict()
        assert tuple(state) == tuple(layer.quantized().state())
        other = make(scheme, padding_idx=2)
        assert not same(layer, other)
        other.load_state_dict(state)
        assert same(layer, other)
        assert same(layer, copy.deepcopy(layer))
        file = io.BytesIO()
        torch.save(layer, file)
        file.seek(0)
        assert same(layer, torch.load(file, weights_only=False))

    @pytest.mark.parametrize("scheme", ["int8", "int4-g16-asym", "bf16"])
    def test_dense_checkpoints_are_quantized(self, scheme: str) -> None:
        dense = torch.nn.Embedding(N, K)
        layer = make(scheme)
        layer.load_state_dict(dense.state_dict())
        assert same(layer, gs.nn.Embedding.from_dense(dense, scheme))

    def test_errors_of_loading(self) -> None:
        layer = make()
        before = layer.packed.clone()
        with pytest.raises(RuntimeError, match=r'Missing key.*"weight", "weight_scale"'):
            layer.load_state_dict({})
        with pytest.raises(RuntimeError, match=r"weight: got shape \[3, 70\], wanted \[50, 70\]"):
            layer.load_state_dict({"weight": torch.randn(3, K)})
        with pytest.raises(RuntimeError, match=r'Unexpected key.*"bias"'):
            layer.load_state_dict({"weight": torch.randn(N, K), "bias": torch.randn(3)})
        layer = make()
        state = {f"0.{key}": value for key, value in layer.state_dict().items()}
        torch.nn.Sequential(make()).load_state_dict(state)
        with pytest.raises(RuntimeError, match=r'Unexpected key.*"0\.table\.packed"'):
            torch.nn.Sequential(make()).load_state_dict({**state, "0.table.packed": before})

    def test_pickle(self) -> None:
        layer = make("int4", padding_idx=1).half()
        assert same(layer, pickle.loads(pickle.dumps(layer)))

    def test_bag(self) -> None:
        bag = make_bag(mode="max", padding_idx=1, include_last_offset=True)
        for other in (copy.deepcopy(bag), pickle.loads(pickle.dumps(bag))):
            assert repr(other) == repr(bag)
            index = torch.randint(0, N, (3, 4))
            assert torch.equal(other(index), bag(index))


class TestCompilers:
    def test_ops(self) -> None:
        layer = make()
        index = torch.tensor([[1, 2], [3, 4]])
        torch.library.opcheck(_ops_embedding.embedding_op, (index, layer.packed, K, torch.float16))
        weights = torch.rand(4, requires_grad=True)
        args = (index.flatten(), layer.packed, torch.tensor([0, 1, 4]), weights, K)
        torch.library.opcheck(_ops_embedding.embedding_bag_op, (*args, torch.float32, "sum", 3))

    def test_compile(self) -> None:
        model = torch.nn.Sequential(make("int4"), gs.nn.Linear.from_dense(torch.nn.Linear(K, 8)))
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        for length in (3, 5):
            index = torch.randint(0, N, (2, length))
            assert torch.equal(compiled(index), model(index))

    def test_compile_bag(self) -> None:
        bag = make_bag(mode="mean")
        compiled = torch.compile(bag, backend="aot_eager", fullgraph=True)
        index, offsets = torch.randint(0, N, (9,)), torch.tensor([0, 2, 2])
        assert torch.equal(compiled(index, offsets), bag(index, offsets))
        assert torch.equal(compiled(index.view(3, 3)), bag(index.view(3, 3)))

    def test_export(self) -> None:
        layer, index = make(), torch.randint(0, N, (2, 3))
        program = torch.export.export(layer, (index,))
        assert torch.equal(program.module()(index), layer(index))

    def test_vmap(self) -> None:
        layer, index = make(), torch.randint(0, N, (3, 4))
        assert torch.equal(torch.vmap(layer)(index), layer(index))


@st.composite
def bags(draw: st.DrawFn) -> tuple[Tensor, Tensor, bool]:
    """Indices, offsets, and whether the last one ends the last bag."""
    lengths = draw(st.lists(st.integers(0, 6), min_size=1, max_size=6))
    last = draw(st.booleans())
    spare = draw(st.integers(0, 3)) if last else 0
    ends = torch.tensor([0, *lengths]).cumsum(0)
    index = torch.tensor(
        draw(st.lists(st.integers(0, N - 1), min_size=sum(lengths) + spare, max_size=99)),
        dtype=draw(st.sampled_from([torch.int64, torch.int32])),
    )
    index = index[: sum(lengths) + spare] if last else index[: sum(lengths)]
    return index, (ends if last else ends[:-1]).to(index.dtype), last


class TestBags:
    @hypothesis.settings(max_examples=60)
    @hypothesis.given(
        bags=bags(),
        scheme=st.sampled_from(["int8", "int4-g32", "fp8"]),
        mode=st.sampled_from(["sum", "mean", "max"]),
        padding_idx=st.one_of(st.none(), st.integers(0, 5), st.just(-2)),
        weighted=st.booleans(),
        dtype=st.sampled_from(DTYPES),
    )
    def test_as_torch(
        self,
        bags: tuple[Tensor, Tensor, bool],
        scheme: str,
        mode: str,
        padding_idx: int | None,
        weighted: bool,
        dtype: torch.dtype,
    ) -> None:
        index, offsets, last = bags
        dense = torch.nn.EmbeddingBag(
            N, K, mode=mode, padding_idx=padding_idx, include_last_offset=last
        )
        layer = gs.nn.EmbeddingBag.from_dense(dense, scheme).to(dtype)
        weights = torch.randn(index.shape) if weighted and mode == "sum" else None
        dense.weight.data = layer.dequantize()
        # What comes after the last offset is in no bag; torch is not of one mind about it.
        count = int(offsets[-1]) if last else len(index)
        wanted = dense(index[:count], offsets, None if weights is None else weights[:count])
        y = layer(index, offsets, weights)
        assert y.dtype is dtype
        torch.testing.assert_close(y.float(), wanted, rtol=2 * torch.finfo(dtype).eps, atol=3e-5)

    @pytest.mark.parametrize("mode", ["sum", "mean", "max"])
    def test_two_dimensions(self, mode: str) -> None:
        for last in (False, True):
            dense = torch.nn.EmbeddingBag(N, K, mode=mode, include_last_offset=last)
            layer = gs.nn.EmbeddingBag.from_dense(dense, "int8")
            dense.weight.data = layer.dequantize()
            index = torch.randint(0, N, (4, 5))
            torch.testing.assert_close(layer(index), dense(index))
            torch.testing.assert_close(layer(index.T), dense(index.T))
        weights = torch.randn(4, 5) if mode == "sum" else None
        torch.testing.assert_close(layer(index, None, weights), dense(index, None, weights))

    def test_no_bags_and_empty_bags(self) -> None:
        layer = make_bag(mode="max")
        none = torch.empty(0, dtype=torch.int64)
        assert layer(torch.tensor([1, 2]), none).shape == (0, K)
        assert torch.equal(layer(none, torch.tensor([0, 0])), torch.zeros(2, K))
        assert torch.equal(layer(torch.empty(3, 0, dtype=torch.int32)), torch.zeros(3, K))
        assert layer(torch.empty(0, 3, dtype=torch.int32)).shape == (0, K)

    def test_padding_alone_gives_zeros(self) -> None:
        for mode in ("sum", "mean", "max"):
            layer = make_bag(mode=mode, padding_idx=4)
            assert not layer(torch.tensor([[4, 4]])).any()

    @pytest.mark.parametrize("padding_idx", [None, 3])
    def test_gradient_of_the_weights(self, padding_idx: int | None) -> None:
        dense = torch.nn.EmbeddingBag(
            N, K, mode="sum", padding_idx=padding_idx, include_last_offset=True
        )
        layer = gs.nn.EmbeddingBag.from_dense(dense, "int8")
        dense.weight.data = layer.dequantize()
        index, offsets = torch.tensor([1, 3, 5, 3, 9, 2]), torch.tensor([0, 2, 2, 5])
        ours, theirs = torch.arange(6.0).requires_grad_(), torch.arange(5.0).requires_grad_()
        layer(index, offsets, ours).square().sum().backward()
        dense(index[:5], offsets, theirs).square().sum().backward()
        assert ours.grad is not None
        assert theirs.grad is not None
        torch.testing.assert_close(ours.grad[:5], theirs.grad, rtol=1e-4, atol=1e-4)
        assert ours.grad[5] == 0

    @pytest.mark.parametrize("wrong", [N, -1])
    @pytest.mark.parametrize("mode", ["sum", "mean", "max"])
    def test_indices_out_of_range(self, mode: str, wrong: int) -> None:
        dense = torch.nn.EmbeddingBag(N, K, mode=mode)
        for module in (dense, gs.nn.EmbeddingBag.from_dense(dense)):
            with pytest.raises(RuntimeError, match=str(wrong)):
                module(torch.tensor([1, wrong]), torch.tensor([0]))

    @pytest.mark.parametrize(
        ("offsets", "error", "message"),
        [
            (torch.tensor([1, 2]), ValueError, "offsets: must begin with 0"),
            (torch.tensor([0, 7]), ValueError, "got 0 to 4, falling in between"),
            (torch.tensor([0, 3, 1]), ValueError, "got 0 to 4, falling in between"),
            (torch.tensor([[0]]), ValueError, r"got .* shape \[4\] and .* shape \[1, 1\]"),
            (None, ValueError, "and None, wanted two dimensions and None"),
            (torch.tensor([0.0]), TypeError, "offsets: got .* wanted dtype int64 or int32"),
        ],
    )
    def test_wrong_offsets(
        self, offsets: Tensor | None, error: type[Exception], message: str
    ) -> None:
        with pytest.raises(error, match=message):
            make_bag()(torch.tensor([1, 2, 3, 4]), offsets)

    def test_other_errors(self) -> None:
        index, offsets = torch.tensor([1, 2, 3, 4]), torch.tensor([0, 2])
        bag = make_bag(mode="sum")
        with pytest.raises(ValueError, match="wanted None where input has 2 dimensions"):
            bag(index.view(2, 2), offsets)
        with pytest.raises(ValueError, match="wanted two dimensions"):
            bag(index.view(1, 2, 2))
        with pytest.raises(ValueError, match=r"per_sample_weights: got .*, wanted the shape of"):
            bag(index, offsets, torch.ones(3))
        with pytest.raises(TypeError, match=r"per_sample_weights: got dtype torch\.int64"):
            bag(index, offsets, index)
        with pytest.raises(ValueError, match="they exist for 'sum' only"):
            make_bag(mode="mean")(index, offsets, torch.ones(4))
        with pytest.raises(ValueError, match="at least one, where the last bag ends"):
            make_bag(include_last_offset=True)(index, offsets[:0])
