"""gs.nn.Linear as a torch module: making, state_dict, copies, pickling, .to()."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

import gossamer as gs

from .linear_layers import make_layer


def same(a: gs.nn.Linear, b: gs.nn.Linear) -> bool:
    """Equal bytes, settings and outputs."""
    x = torch.randn(3, a.in_features)
    with torch.no_grad():
        return torch.equal(a.packed, b.packed) and repr(a) == repr(b) and torch.equal(a(x), b(x))


class TestMaking:
    @hypothesis.given(
        N=st.integers(1, 60),
        K=st.integers(1, 200),
        M=st.integers(1, 5),
        group_size=st.sampled_from([None, 32, 64, 128]),
        bias=st.booleans(),
    )
    def test_from_dense_is_close_to_dense(
        self, N: int, K: int, M: int, group_size: int | None, bias: bool
    ) -> None:
        dense = torch.nn.Linear(K, N, bias=bias)
        layer = gs.nn.Linear.from_dense(dense, gs.Quantize("int8", group_size))
        x = torch.randn(M, K)
        with torch.no_grad():
            error = (layer(x) - dense(x)).abs()
            # Half a step of each operand: |w| <= amax_w, |x| <= amax_x, each off by amax / 254.
            step = dense.weight.abs().amax(1)[None] * x.abs().amax(1)[:, None] / 254
            bound = K * step * (2 + 1 / 254) + 1e-5 * K
        assert bool((error <= bound).all())

    def test_keeps_bias_mode_and_dtype(self) -> None:
        dense = torch.nn.Linear(8, 4, dtype=torch.bfloat16).eval()
        dense.bias.requires_grad_(False)
        layer = gs.nn.Linear.from_dense(dense)
        assert layer.bias is dense.bias
        assert not layer.training
        assert layer.dtype == layer.weight.dtype == torch.bfloat16
        assert layer.dense_bytes == 64

    def test_weight_error_is_the_relative_frobenius_norm(self) -> None:
        dense = torch.nn.Linear(70, 24)
        layer = gs.nn.Linear.from_dense(dense)
        W = dense.weight.detach()
        want = (layer.dequantize() - W).norm() / W.norm()
        assert layer.weight_error == pytest.approx(float(want), rel=1e-4)
        torch.nn.init.zeros_(dense.weight)
        assert gs.nn.Linear.from_dense(dense).weight_error == 0

    def test_from_a_format(self) -> None:
        weight = gs.formats.Int8.quantize(torch.randn(4, 6))
        layer = gs.nn.Linear(6, 4, weight=weight, bias=torch.ones(4), activation="relu")
        assert isinstance(layer.bias, torch.nn.Parameter)
        assert layer.weight_error is None
        assert torch.equal(layer.dequantize(), weight.dequantize())
        x = torch.randn(2, 6)
        assert torch.equal(layer(x), gs.kernels.matmul(x, weight, torch.ones(4), "relu"))
        assert repr(layer) == (
            "Linear(in_features=6, out_features=4, bias=True, format=int8, activation=relu)"
        )

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ({"weight": torch.randn(4, 6)}, TypeError, "Linear: weight: .*from_dense"),
            (
                {"in_features": 7},
                ValueError,
                r"Linear: weight: got shape \(4, 6\), wanted \(4, 7\)",
            ),
            ({"bias": torch.ones(5)}, ValueError, r"Linear: bias: .*wanted \[4\]"),
            ({"activation": "elu"}, ValueError, "Linear: activation: got 'elu'"),
        ],
    )
    def test_wrong_arguments(
        self, arguments: dict[str, Any], error: type[Exception], message: str
    ) -> None:
        weight = gs.formats.Int8.quantize(torch.randn(4, 6))
        with pytest.raises(error, match=message):
            gs.nn.Linear(**{"in_features": 6, "out_features": 4, "weight": weight, **arguments})

    def test_from_dense_of_something_else(self) -> None:
        with pytest.raises(TypeError, match=r"Linear.from_dense: linear: got Conv2d"):
            gs.nn.Linear.from_dense(torch.nn.Conv2d(3, 4, 3))
        with pytest.raises(ValueError, match=r"Quantize: scheme: got 'int3'"):
            gs.nn.Linear.from_dense(torch.nn.Linear(2, 2), "int3")

    def test_hooks_run(self) -> None:
        layer, seen = make_layer(), []
        layer.register_forward_hook(lambda module, args, output: seen.append(output.shape))
        layer(torch.randn(2, 70))
        assert seen == [(2, 24)]


class TestStateDict:
    @pytest.mark.parametrize("group_size", [None, 32, 64, 128])
    @pytest.mark.parametrize("bias", [True, False])
    def test_round_trip(self, group_size: int | None, bias: bool) -> None:
        layer = make_layer(group_size=group_size, bias=bias)
        state = layer.state_dict()
        assert list(state) == ["weight", "weight_scale"] + ["bias"] * bias
        assert state["weight"].dtype == torch.int8
        assert state["weight_scale"].dtype == torch.float32
        other = make_layer(group_size=group_size, bias=bias)
        assert str(other.load_state_dict(state)) == "<All keys matched successfully>"
        assert same(layer, other)

    def test_through_safetensors(self, tmp_path: Any) -> None:
        safetensors = pytest.importorskip("safetensors.torch")
        layer, other = make_layer(group_size=32), make_layer(group_size=32)
        safetensors.save_file(layer.state_dict(), tmp_path / "layer.safetensors")
        other.load_state_dict(safetensors.load_file(tmp_path / "layer.safetensors"))
        assert same(layer, other)

    def test_loading_takes_the_group_size_of_what_is_loaded(self) -> None:
        layer, other = make_layer(group_size=32), make_layer()
        other.load_state_dict(layer.state_dict())
        assert same(layer, other)

    def test_loading_a_dense_checkpoint_quantizes_it(self) -> None:
        dense = torch.nn.Sequential(torch.nn.Linear(70, 24), torch.nn.Linear(24, 5))
        model = gs.compress(copy.deepcopy(dense), "int8")
        for parameter in dense.parameters():
            torch.nn.init.normal_(parameter)
        assert str(model.load_state_dict(dense.state_dict())) == "<All keys matched successfully>"
        want = gs.compress(dense, "int8")
        assert same(model[0], want[0])
        assert model[0].weight_error == want[0].weight_error

    def test_loaded_int8_has_no_known_error(self) -> None:
        layer = make_layer()
        layer.load_state_dict(make_layer().state_dict())
        assert layer.weight_error is None

    def test_inside_a_model_with_assign(self) -> None:
        models = [torch.nn.Sequential(make_layer(), torch.nn.Linear(24, 3)) for _ in range(2)]
        models[1].load_state_dict(models[0].state_dict(), assign=True)
        assert same(models[0][0], models[1][0])

    def test_output_follows_what_was_loaded(self) -> None:
        layer, other, x = make_layer(), make_layer(), torch.randn(2, 70)
        before = layer(x)
        layer.load_state_dict(other.state_dict())
        assert not torch.equal(layer(x), before)
        assert torch.equal(layer(x), other(x))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"weight": None}, "Missing key.*0.weight"),
            ({"weight_scale": None}, "Missing key.*0.weight_scale"),
            ({"bias": None}, "Missing key.*0.bias"),
            ({"other": torch.ones(1)}, "Unexpected key.*0.other"),
            ({"weight": torch.ones(24, 71, dtype=torch.int8)}, r"0.weight: got shape \[24, 71\]"),
            ({"weight": torch.ones(24, 70)}, "0.weight: Int8: values: .*float32"),
            ({"weight_scale": torch.ones(24, 9)}, "0.weight: Int8: scales: got shape"),
            ({"weight_scale": torch.ones(24)}, "0.weight: Int8: scales: got shape"),
            ({"weight_scale": -torch.ones(24, 1)}, "0.weight: Int8: scales: some are negative"),
            ({"bias": torch.ones(25)}, "0.bias"),
        ],
    )
    def test_errors_name_the_key_and_leave_the_weight(
        self, change: dict[str, torch.Tensor | None], message: str
    ) -> None:
        model = torch.nn.Sequential(make_layer())
        state, packed = model.state_dict(), model[0].packed.clone()
        for name, tensor in change.items():
            state["0." + name] = tensor  # type: ignore[assignment]
            if tensor is None:
                del state["0." + name]
        with pytest.raises(RuntimeError, match=message):
            model.load_state_dict(state)
        assert torch.equal(model[0].packed, packed)

    def test_partial_loading_leaves_the_weight(self) -> None:
        layer = make_layer()
        packed = layer.packed.clone()
        missing = layer.load_state_dict({"bias": torch.ones(24)}, strict=False).missing_keys
        assert missing == ["weight", "weight_scale"]
        assert torch.equal(layer.packed, packed)
        assert bool((layer.bias == 1).all())


class TestCopies:
    def test_deepcopy(self) -> None:
        layer = make_layer(activation="gelu", group_size=32).eval()
        layer.extra = [1]
        new = copy.deepcopy(layer)
        assert same(layer, new)
        assert (new.weight_error, new.dense_bytes) == (layer.weight_error, layer.dense_bytes)
        assert new.packed.untyped_storage().data_ptr() != layer.packed.untyped_storage().data_ptr()
        assert new.bias is not layer.bias
        assert new.extra is not layer.extra
        del layer
        assert torch.equal(new(torch.ones(1, 70)), copy.deepcopy(new)(torch.ones(1, 70)))

    def test_deepcopy_keeps_sharing(self) -> None:
        layer = make_layer(70, 70)
        model = copy.deepcopy(torch.nn.ModuleDict({"a": layer, "b": layer, "c": make_layer()}))
        assert model["a"] is model["b"]
        assert model["a"] is not layer

    def test_copy(self) -> None:
        layer = make_layer()
        assert same(layer, copy.copy(layer))

    @pytest.mark.parametrize("protocol", [2, pickle.HIGHEST_PROTOCOL])
    def test_pickle(self, protocol: int) -> None:
        layer = make_layer(activation="silu", group_size=64)
        data = pickle.dumps(layer, protocol)
        new = pickle.loads(data)
        assert same(layer, new)
        assert new.weight_error == layer.weight_error
        assert b"GOSSAMER" not in data  # canonical tensors, not the packed form

    def test_torch_save(self) -> None:
        model, file = torch.nn.Sequential(make_layer(), torch.nn.ReLU()), io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        assert same(model[0], torch.load(file, weights_only=False)[0])

    def test_shared_memory_and_other_processes(self) -> None:
        layer = make_layer()
        want = layer(torch.ones(1, 70))
        layer.share_memory()
        assert layer.packed.is_shared()
        assert torch.equal(layer(torch.ones(1, 70)), want)
        layer = make_layer()
        want = layer(torch.ones(1, 70))
        layer.packed.share_memory_()  # behind the module's back: the bytes move
        assert torch.equal(layer(torch.ones(1, 70)), want)


class TestTo:
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
    def test_dtype_changes_bias_and_what_weight_says(self, dtype: torch.dtype) -> None:
        layer = make_layer()
        packed = layer.packed
        assert layer.to(dtype) is layer
        assert layer.packed is packed
        assert layer.bias.dtype == layer.weight.dtype == layer.dtype == dtype
        x = torch.randn(3, 70)
        for input_dtype in (dtype, torch.float32):
            assert layer(x.to(input_dtype)).dtype == input_dtype

    def test_half_and_type_and_cpu(self) -> None:
        layer = make_layer()
        want = layer.dequantize()
        for call in (layer.half, layer.bfloat16, layer.float, layer.cpu):
            call()
            assert torch.equal(layer.dequantize(), want)
        layer.type(torch.float16)
        assert layer.bias.dtype == torch.float16
        assert torch.equal(layer.dequantize(), want)

    def test_round_trip_of_dtype_keeps_scales_exact(self) -> None:
        layer = make_layer()
        scales = layer.state_dict()["weight_scale"]
        layer.to(torch.bfloat16)
        assert torch.equal(layer.state_dict()["weight_scale"], scales)
        assert layer.state_dict()["bias"].dtype == torch.bfloat16

    def test_other_devices_and_dtypes_are_refused(self) -> None:
        model = torch.nn.Sequential(make_layer())
        x = torch.randn(2, 70)
        want = model(x)
        with pytest.raises(RuntimeError, match=r"Linear.to: device: got meta"):
            model.to("meta")
        with pytest.raises(TypeError, match=r"Linear.to: dtype: got torch.float64"):
            model.double()
        assert torch.equal(model(x), want)

    def test_to_empty_leaves_a_valid_layer(self) -> None:
        layer = make_layer().to_empty(device="cpu")
        layer.load_state_dict(make_layer().state_dict())
        assert layer(torch.randn(2, 70)).shape == (2, 24)

    def test_zero_grad_parameters_and_buffers(self) -> None:
        layer = make_layer()
        assert [name for name, _ in layer.named_parameters()] == ["bias"]
        assert [name for name, _ in layer.named_buffers()] == ["packed"]
        layer.requires_grad_(False).train().zero_grad()
        assert not layer(torch.randn(2, 70)).requires_grad
