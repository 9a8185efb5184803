"""Layers whose weight is stored in another way: torch.nn.utils.prune, masked and sparse tensors."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import gossamer as gs

from .sparse_models import dense_matrix, formats, kept, mlp, with_zeros


class TestTorchPrune:
    @pytest.fixture(params=["local", "global", "structured", "twice"])
    def pruned(self, request: pytest.FixtureRequest) -> nn.Sequential:
        model = mlp()
        layers = [model[0], model[2], model[3]]
        if request.param == "global":
            tensors = [(layer, "weight") for layer in layers]
            prune.global_unstructured(tensors, prune.L1Unstructured, amount=0.9)
        for layer in layers:
            if request.param in ("local", "twice"):
                prune.l1_unstructured(layer, "weight", amount=0.9)
            if request.param == "twice":
                prune.random_unstructured(layer, "weight", amount=0.2)
                prune.l1_unstructured(layer, "bias", amount=0.5)
            if request.param == "structured":
                prune.ln_structured(layer, "weight", amount=0.9, n=2, dim=1)
        return model

    @pytest.mark.parametrize("scheme", ["int8", "sparse-int8", "sparse-fp32"])
    def test_masks_are_folded(self, pruned: nn.Sequential, scheme: str) -> None:
        x = torch.randn(7, 96)
        weight, bias = dense_matrix(pruned[0]), pruned[0].bias.detach().clone()
        with torch.no_grad():
            expected = pruned(x)
            gs.compress(pruned, scheme)
            got = pruned(x)
        assert set(formats(pruned).values()) == {scheme}
        assert float((got - expected).norm() / expected.norm()) < 0.03
        for module in pruned.modules():
            assert not module._forward_pre_hooks
        assert bool((pruned[0].dequantize()[weight == 0] == 0).all())
        assert torch.equal(pruned[0].bias, bias)
        names = set(pruned.state_dict())
        assert not [name for name in names if name.endswith("_orig")]

    def test_the_kept_dense_are_folded(self) -> None:
        model, x = mlp(), torch.randn(3, 96)
        prune.l1_unstructured(model[0], "weight", amount=0.1)
        expected = model(x)
        gs.compress(model, "sparse-fp32")
        assert type(model[0]) is nn.Linear
        assert isinstance(model[0].weight, nn.Parameter)
        assert not model[0]._forward_pre_hooks
        assert torch.equal(model(x), expected)

    def test_layers_left_alone_and_failures_keep_their_masks(self) -> None:
        model = mlp()
        for i in (0, 2):
            prune.l1_unstructured(model[i], "weight", amount=0.9)
        with torch.no_grad():
            model[3].weight[0, 0] = torch.nan
        with pytest.raises(ValueError, match="NaN"):
            gs.compress(model, "sparse-int8")
        assert "weight_orig" in dict(model[0].named_parameters())
        gs.compress(model, "sparse-int8", ignore=["0", "3"])
        assert "weight_orig" in dict(model[0].named_parameters())
        assert len(model[0]._forward_pre_hooks) == 1
        assert formats(model) == {"2": "sparse-int8"}

    def test_other_hooks_stay(self) -> None:
        model, seen = mlp(), []
        handle = model[0].register_forward_pre_hook(lambda *args: seen.append("mine"))
        prune.l1_unstructured(model[0], "weight", amount=0.9)
        gs.compress(model, "sparse-int8")
        model(torch.randn(1, 96))
        handle.remove()
        model(torch.randn(1, 96))
        assert seen == ["mine"]

    def test_layers_with_several_weights(self) -> None:
        model = nn.ModuleDict({"lstm": nn.LSTM(64, 256), "attention": nn.MultiheadAttention(64, 4)})
        for name in ("weight_ih_l0", "weight_hh_l0"):
            prune.l1_unstructured(model["lstm"], name, amount=0.9)
        for layer, name in (
            (model["attention"], "in_proj_weight"),
            (model["attention"].out_proj, "weight"),
        ):
            prune.l1_unstructured(layer, name, amount=0.9)
        x = torch.randn(4, 2, 64)
        with torch.no_grad():
            expected = model["lstm"](x)[0], model["attention"](x, x, x)[0]
            gs.compress(model, "sparse-fp32")
            got = model["lstm"](x)[0], model["attention"](x, x, x)[0]
        assert set(formats(model).values()) == {"sparse-fp32"}
        for y, wanted in zip(got, expected, strict=True):
            torch.testing.assert_close(y, wanted, rtol=1e-4, atol=1e-5)


def masked(weight: Tensor) -> nn.Parameter:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a prototype, says torch
        return nn.Parameter(torch.masked.masked_tensor(weight.clone(), weight != 0))


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
@pytest.mark.parametrize(
    "stored",
    [masked, Tensor.to_sparse_csr, Tensor.to_sparse, Tensor.to_sparse_csc],
    ids=["masked", "csr", "coo", "csc"],
)
@pytest.mark.parametrize("scheme", ["int8", "sparse-int8", gs.Prune(0.9, "layer")])
def test_masked_and_sparse_parameters(stored: Callable[[Tensor], Tensor], scheme: Any) -> None:
    plain = with_zeros(mlp(), 0.9)
    other = copy.deepcopy(plain)
    for i in (0, 2):
        weight = stored(other[i].weight.detach())
        other[i].weight = weight if isinstance(weight, nn.Parameter) else nn.Parameter(weight)
    gs.compress(plain, scheme)
    gs.compress(other, scheme)
    x = torch.randn(3, 96)
    assert formats(other) == formats(plain)
    assert torch.equal(other(x), plain(x))


def test_sparse_parameters_of_layers_that_stay_become_dense() -> None:
    model = mlp()
    model[0].weight = nn.Parameter(model[0].weight.detach().to_sparse_csr())
    gs.compress(model, "sparse-fp32")
    assert model[0].weight.layout is torch.strided
    assert kept(model)["0"].startswith("0% ")
