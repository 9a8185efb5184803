"""What ``layer.weight`` of gs.nn.Linear answers: free until its values are read."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import warnings
from typing import Any

import numpy as np
import pytest
import torch

from gossamer.nn import weight as lazy

from .linear_layers import make_layer

READ = "values of a packed weight were read"


class TestWeight:
    @pytest.fixture(autouse=True)
    def _warn_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(lazy, "_warned", False)

    def test_metadata_is_free(self, monkeypatch: pytest.MonkeyPatch) -> None:
        layer = make_layer()
        monkeypatch.delattr(lazy._ops, "dequantize_op")  # reading values would fail
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            weight = layer.weight
            assert weight.shape == weight.size() == (24, 70)
            assert (weight.dtype, weight.device.type, weight.ndim) == (torch.float32, "cpu", 2)
            assert weight.numel() * weight.element_size() == weight.nbytes == 24 * 70 * 4
            assert (weight.is_cuda, weight.requires_grad, len(weight)) == (False, False, 24)
            assert weight.data.dtype == weight.detach().dtype == torch.float32
            assert weight.is_floating_point()
            assert weight.is_contiguous()
            assert weight.stride() == (70, 1)
            assert "PackedWeight(shape=[24, 70], dtype=torch.float32)" in repr(weight)
            assert isinstance(weight, torch.Tensor)

    @pytest.mark.parametrize(
        "read",
        [
            lambda w: w.sum(),
            lambda w: w[3],
            lambda w: w + 1,
            lambda w: w.T,
            lambda w: w.data.float() * 2,
            lambda w: w.numpy(),
            lambda w: np.asarray(w),
            lambda w: w.tolist(),
            lambda w: w.to(torch.bfloat16),
            lambda w: w.clone(),
            lambda w: torch.nn.functional.linear(torch.ones(2, 70), w),
            lambda w: torch.linalg.vector_norm(w),
            lambda w: torch.cat([w, w]),
            lambda w: torch.empty(24, 70).copy_(w),
        ],
    )
    def test_values_are_those_of_the_layer_with_one_warning(self, read: Any) -> None:
        layer = make_layer()
        with pytest.warns(UserWarning, match=READ) as record:
            got, _ = read(layer.weight), read(layer.weight)
        assert len(record) == 1
        want = read(layer.dequantize())
        np.testing.assert_array_equal(
            *(torch.as_tensor(value).float().numpy() for value in (got, want))
        )
        assert not isinstance(got, lazy.PackedWeight)

    def test_one_warning_per_process(self) -> None:
        code = (
            "import torch, gossamer as gs, warnings; warnings.simplefilter('always')\n"
            "for _ in range(3):\n"
            "    gs.nn.Linear.from_dense(torch.nn.Linear(4, 4)).weight.sum()\n"
        )
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        assert result.stderr.count("values of a packed weight") == 1

    def test_explicit_dequantize_does_not_warn(self) -> None:
        layer = make_layer()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert layer.dequantize(torch.float16).dtype == torch.float16

    def test_values_follow_the_dtype_of_the_layer(self) -> None:
        layer = make_layer().to(torch.bfloat16)
        with pytest.warns(UserWarning, match=READ):
            assert torch.equal(layer.weight.clone(), layer.dequantize(torch.bfloat16))

    @pytest.mark.parametrize(
        "ask",
        [
            lambda w: w.requires_grad_(),
            lambda w: setattr(w, "requires_grad", True),
            lambda w: w.grad,
            lambda w: setattr(w, "grad", torch.ones(24, 70)),
            lambda w: w.retain_grad(),
            lambda w: w.register_hook(print),
            lambda w: torch.autograd.grad(torch.ones(1, requires_grad=True).sum(), w),
            lambda w: torch.nn.Parameter(w),
        ],
    )
    def test_asking_for_a_gradient_is_an_error(self, ask: Any) -> None:
        with pytest.raises(RuntimeError, match="packed weights have no gradient"):
            ask(make_layer().weight)

    def test_saying_that_it_has_none_is_not(self) -> None:
        weight = make_layer().weight
        assert weight.requires_grad_(False) is weight
        weight.requires_grad = False

    @pytest.mark.parametrize(
        "write",
        [
            lambda w: w.mul_(2),
            lambda w: w.data.fill_(0),
            lambda w: w.copy_(torch.ones(24, 70)),
            lambda w: w.__setitem__(0, 1.0),
            lambda w: setattr(w, "data", torch.ones(24, 70)),
            lambda w: torch.nn.init.normal_(w),
            lambda w: torch.add(torch.ones(24, 70), 1, out=w),
        ],
    )
    def test_writing_is_an_error(self, write: Any) -> None:
        layer = make_layer()
        packed = layer.packed.clone()
        with torch.no_grad(), pytest.raises(RuntimeError, match="cannot be written to"):
            write(layer.weight)
        assert torch.equal(layer.packed, packed)

    @pytest.mark.parametrize("value", [torch.nn.Parameter(torch.ones(24, 70)), None])
    def test_assigning_is_an_error(self, value: Any) -> None:
        with pytest.raises(AttributeError, match="weight: is packed and cannot be assigned"):
            make_layer().weight = value

    def test_gradients_flow_past_it(self) -> None:
        layer, x = make_layer(), torch.randn(2, 70, requires_grad=True)
        with pytest.warns(UserWarning, match=READ):
            torch.nn.functional.linear(x, layer.weight).sum().backward()
        assert torch.allclose(x.grad, layer.dequantize().sum(0).expand(2, -1), atol=1e-5)

    def test_copies_and_pickles(self) -> None:
        layer = make_layer()
        copied = copy.deepcopy(layer.weight)
        assert copied.shape == (24, 70)
        with pytest.warns(UserWarning, match=READ):
            loaded = pickle.loads(pickle.dumps(layer.weight))
        assert torch.equal(loaded, layer.dequantize())
        assert type(loaded) is torch.Tensor
