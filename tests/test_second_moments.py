"""E[x xᵀ] against float64, whatever calls a module gets; and a model that is left as it was."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from gossamer.calibration import second_moments


def mean_product(x: Tensor) -> Tensor:
    x = x.double().reshape(-1, x.shape[-1])
    return x.T @ x / len(x)


def assert_close(found: Tensor, exact: Tensor) -> None:
    assert found.dtype is torch.float32
    scale = exact.diagonal().sqrt()
    assert ((found - exact).abs() <= 2e-6 * scale[:, None] * scale).all()


class Attention(nn.Module):
    """q, k and v of one input; `out` of two different ones."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(12, 12) for _ in range(3))
        self.out = nn.Linear(12, 5)
        self.unused = nn.Linear(12, 12)
        self.swap = False

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        self.seen = x
        q, k = self.q(x), self.k(x)
        v = self.v(k if self.swap else input_of(x))
        self.v_seen = k if self.swap else x
        return self.out(q + k) + self.out(input=v)


def input_of(x: Tensor) -> Tensor:
    return x


def test_linear_over_all_leading_dimensions() -> None:
    layer = nn.Linear(7, 3)
    x = torch.randn(6, 50, 7) + 3
    found = second_moments(layer, {"a": layer}, [x[:2], x[2:]])
    assert list(found) == ["a"]
    assert torch.equal(found["a"], found["a"].T)
    assert_close(found["a"], mean_product(x))


def test_many_rows_do_not_lose_digits() -> None:
    layer = nn.Linear(3, 1)
    x = 1 + 1e-3 * torch.randn(300_000, 3)
    assert_close(second_moments(layer, {"a": layer}, [x] * 3)["a"], mean_product(x))
    exact = mean_product(x)
    found = second_moments(layer, {"a": layer}, [x])["a"]
    assert ((found - exact).abs() / exact).max() < 3e-7


def test_an_input_of_several_modules_is_multiplied_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from gossamer.calibration import statistics

    model, products = Attention(), []
    original = statistics._gram
    monkeypatch.setattr(statistics, "_gram", lambda *x: products.append(x) or original(*x))
    names = {name: getattr(model, name) for name in ("q", "k", "v", "out")}
    x = torch.randn(4, 9, 12)
    found = second_moments(model, names, [(x,), {"x": x + 1}])
    assert len(products) == 2  # one for q, k and v; one for the four calls of out
    assert found["q"] is found["k"] is found["v"]
    assert_close(found["q"], mean_product(torch.cat([x, x + 1])))


def test_modules_that_part_ways_are_told_apart() -> None:
    model = Attention()
    inputs, v_inputs = [], []

    class Batches(list[Tensor]):
        def __iter__(self):  # type: ignore[no-untyped-def]
            for number, x in enumerate(super().__iter__()):
                model.swap = number == 1
                yield x
                inputs.append(model.seen)
                v_inputs.append(model.v_seen)

    names = {"q": model.q, "k": model.k, "v": model.v}
    found = second_moments(model, names, Batches(torch.randn(3, n, 12) for n in (2, 5, 3)))
    assert found["q"] is found["k"] or torch.equal(found["q"], found["k"])
    assert_close(found["q"], mean_product(torch.cat([x.reshape(-1, 12) for x in inputs])))
    assert_close(found["v"], mean_product(torch.cat([x.reshape(-1, 12) for x in v_inputs])))


def test_an_input_written_to_between_two_modules() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            return y + self.b(x.relu_())

    model, x = Model(), torch.randn(30, 4)
    found = second_moments(model, {"a": model.a, "b": model.b}, [x.clone()])
    assert_close(found["a"], mean_product(x))
    assert_close(found["b"], mean_product(x.relu()))


def test_convolution_over_channels() -> None:
    x = torch.randn(2, 3, 9, 7)
    wide, strided = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1, stride=2)
    assert_close(second_moments(wide, {"c": wide}, [x])["c"], mean_product(x.movedim(1, -1)))
    seen = x[:, :, ::2, ::2].movedim(1, -1)
    assert_close(second_moments(strided, {"c": strided}, [x])["c"], mean_product(seen))
    assert_close(second_moments(strided, {"c": strided}, [x[0]])["c"], mean_product(seen[0]))


def test_bfloat16_inputs_and_generators() -> None:
    layer = nn.Linear(5, 5).bfloat16()
    x = torch.randn(64, 5).bfloat16()
    found = second_moments(layer, {"a": layer}, (x for _ in range(2)))
    assert_close(found["a"], mean_product(x))


@pytest.mark.parametrize("failing", [False, True])
def test_the_model_is_left_as_it_was(failing: bool) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(), nn.Linear(4, 4)).train()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    modes = []
    model[2].register_forward_hook(
        lambda *_: modes.append((model.training, torch.is_grad_enabled()))
    )
    if failing:
        model[2].register_forward_hook(lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            second_moments(model, {"0": model[0], "2": model[2]}, [torch.randn(2, 4)])
    else:
        second_moments(model, {"0": model[0], "2": model[2]}, [torch.randn(2, 4)])
    assert modes == [(False, False)]
    assert [module.training for module in model] == [True, False, True]
    assert not model[0]._forward_pre_hooks
    assert not model[2]._forward_pre_hooks


def test_errors() -> None:
    model = Attention()
    x = torch.randn(3, 12)
    with pytest.raises(ValueError, match="'unused' was given no row"):
        second_moments(model, {"unused": model.unused, "q": model.q}, [x])
    bad = x.clone()
    bad[1, 2] = float("nan")
    with pytest.raises(ValueError, match="input of 'q' holds NaN"):
        second_moments(model, {"q": model.q}, [x, bad])
    bad[1, 2] = float("inf")
    with pytest.raises(ValueError, match="input of 'k' holds NaN or infinity"):
        second_moments(model, {"k": model.k}, [bad])
    assert not model.q._forward_pre_hooks
    with pytest.raises(ValueError, match="calibration: is empty"):
        second_moments(model, {"q": model.q}, [])
    with pytest.raises(ValueError, match="calibration: is empty"):
        second_moments(model, {"q": model.q}, iter(()))
    with pytest.raises(ValueError, match="given no row"):
        second_moments(model, {"q": model.q}, [x[:0]])
    with pytest.raises(TypeError, match="iterable of batches"):
        second_moments(model, {"q": model.q}, x)
    with pytest.raises(TypeError, match="batch of int"):
        second_moments(model, {"q": model.q}, [3])
    with pytest.raises(TypeError, match="'n' is LayerNorm"):
        second_moments(model, {"n": nn.LayerNorm(3)}, [x])
