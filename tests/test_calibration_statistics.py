"""Statistics of layer inputs against float64, for every layer and whatever a model does with it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from gossamer.calibration import Statistics, whole_model
from gossamer.folding import to_matrix

BFLOAT16 = 2.0**-7  # relative error of a product of two numbers that were rounded


def measure(model: nn.Module, modules: dict[str, nn.Module], batches: Any, **wanted: bool) -> Any:
    wanted = {"moments": True, **wanted}
    return whole_model(model, modules, batches, progress=False).statistics(**wanted)


def assert_right(found: Statistics, rows: Tensor) -> None:
    """Compare with rows [M, K]."""
    x = rows.double()
    assert found.rows == len(x)
    assert found.mean.dtype is found.squares.dtype is found.peak.dtype is torch.float32
    size = x.abs().mean(0)
    assert ((found.mean - x.mean(0)).abs() <= 1e-6 * size).all()
    assert torch.equal(found.peak, x.abs().amax(0).float())
    assert torch.allclose(found.squares.double(), x.square().mean(0), rtol=1e-6, atol=0)
    if found.moment is not None:
        assert found.moment.dtype is torch.float32
        assert torch.equal(found.moment, found.moment.T)
        exact = x.T @ x / len(x)
        norm = exact.diagonal().sqrt()
        assert ((found.moment - exact).abs() <= BFLOAT16 * norm[:, None] * norm).all()


def test_linear_over_all_leading_dimensions() -> None:
    layer = nn.Linear(7, 3)
    x = torch.randn(6, 50, 7) + torch.arange(7)
    found = measure(layer, {"a": layer}, [x[:1], x[1:]])["a"]
    assert_right(found, x.reshape(-1, 7))
    assert (found.low, found.high) == (x.min().item(), x.max().item())
    assert found.histogram is None


def test_parts_of_many_rows() -> None:
    layer = nn.Linear(130, 3)
    parts = [torch.randn(rows, 130) + 1 for rows in (4095, 1, 4097, 9000, 3)]
    assert_right(measure(layer, {"a": layer}, parts)["a"], torch.cat(parts))


def test_without_moments() -> None:
    layer = nn.Linear(7, 3)
    x = torch.randn(50, 7)
    found = measure(layer, {"a": layer}, [x], moments=False)["a"]
    assert found.moment is None
    assert_right(found, x)


def test_conv1d_of_transformers() -> None:
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D(3, 7)
    x = torch.randn(2, 5, 7)
    assert_right(measure(conv1d, {"a": conv1d}, [x])["a"], x.reshape(-1, 7))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes(dtype: torch.dtype) -> None:
    layer = nn.Linear(7, 3).to(dtype)
    x = torch.randn(300, 7).to(dtype)
    assert_right(measure(layer, {"a": layer}, [x])["a"], x)


CONVOLUTIONS = [
    {"kernel_size": 3},
    {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 0)},
    {"kernel_size": 3, "dilation": (1, 2), "padding": 2},
    {"kernel_size": 1, "stride": 2},
    {"kernel_size": (2, 3), "padding": "same", "dilation": (2, 1)},
    {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
    {"kernel_size": 3, "padding": "valid", "stride": 3},
]


def unfolded(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Rows [M, (height, width, channel)] by torch's unfold, which has channels first."""
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    x = functional.pad(x, conv._reversed_padding_repeated_twice, mode)
    columns = functional.unfold(x, conv.kernel_size, conv.dilation, 0, conv.stride)
    taps = columns.view(len(x), conv.in_channels, -1, columns.shape[-1])
    return taps.permute(0, 3, 2, 1).flatten(2).flatten(0, 1)


@pytest.mark.parametrize("settings", CONVOLUTIONS, ids=str)
def test_convolution_over_patches(settings: dict[str, Any]) -> None:
    conv = nn.Conv2d(3, 4, bias=False, **settings).double()
    x = torch.randn(5, 3, 9, 10, dtype=torch.float64)
    found = measure(conv, {"c": conv}, [x[:2], x[2:]])["c"]
    assert_right(found, unfolded(conv, x))
    # The rows are those that the layer's matrix multiplies: E[y yᵀ] = W E[x xᵀ] Wᵀ.
    W = to_matrix(conv, conv.weight.detach())
    y = conv(x).detach().movedim(1, -1).reshape(-1, 4)
    assert torch.allclose(W @ found.moment.double() @ W.T, y.T @ y / len(y), rtol=1e-4, atol=1e-5)
    assert torch.allclose(W @ found.mean.double(), y.mean(0), atol=1e-6)


@pytest.mark.parametrize("batched", [True, False])
def test_convolution_in_one_dimension(batched: bool) -> None:
    conv = nn.Conv1d(3, 4, 3, stride=2, padding=2, dilation=2, bias=False)
    x = torch.randn(2, 3, 20) if batched else torch.randn(3, 20)
    found = measure(conv, {"c": conv}, [x])["c"]
    y = conv(x).detach().movedim(-2, -1).reshape(-1, 4)
    W = to_matrix(conv, conv.weight.detach())
    assert found.rows == len(y)
    assert torch.allclose(W @ found.mean, y.mean(0), atol=1e-5)
    assert torch.allclose(W @ found.moment @ W.T, y.T @ y / len(y), rtol=2e-2, atol=2e-2)


def test_convolution_in_groups() -> None:
    conv, x = nn.Conv2d(4, 6, 3, groups=2, bias=False), torch.randn(2, 4, 6, 6)
    found = measure(conv, {"c": conv}, [x])["c"]
    assert found.moment is None
    twin = nn.Conv2d(4, 6, 3)
    assert_right(found, unfolded(twin, x))
    # Each group of outputs sees its channels of K = (height, width, all channels).
    means = found.mean.view(9, 2, 2).movedim(1, 0).reshape(2, 18)
    W = to_matrix(conv, conv.weight.detach()).view(2, 3, 18)
    y = conv(x).detach().mean((0, 2, 3))
    assert torch.allclose((W @ means[..., None]).flatten(), y, atol=1e-5)


class Attention(nn.Module):
    """q, k and v of one input, or v of another one."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(12, 12) for _ in range(4))

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        v = self.v(input=x) if other is None else self.v(other)
        return self.out(self.q(x) + self.k(x) + v)


def named(model: Attention) -> dict[str, nn.Module]:
    return dict(model.named_children())


def test_layers_of_one_input_share_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    from gossamer.calibration import statistics

    products = []
    original = statistics._gram
    monkeypatch.setattr(statistics, "_gram", lambda *x: products.append(x) or original(*x))
    model, x = Attention(), torch.randn(2, 5, 12)
    found = measure(model, named(model), [x, x + 1])
    assert found["q"] is found["k"] is found["v"]
    assert found["out"] is not found["q"]
    assert_right(found["q"], torch.cat([x, x + 1]).reshape(-1, 12))
    assert len(products) == 2


def test_layers_that_part_ways_are_told_apart() -> None:
    model, x, other = Attention(), torch.randn(20, 12), 50 * torch.randn(20, 12)
    found = measure(model, named(model), [(x,), (x + 1, other)], histograms=True)
    assert found["q"] is found["k"] is not found["v"]
    assert_right(found["q"], torch.cat([x, x + 1]))
    assert_right(found["v"], torch.cat([x, other]))
    assert found["v"].high == torch.cat([x, other]).max()
    alone = measure(model.v, {"v": model.v}, [x, other], histograms=True)["v"]
    assert found["v"].limit == alone.limit > found["q"].limit
    assert torch.equal(found["v"].histogram, alone.histogram)


def test_an_input_written_to_between_two_layers() -> None:
    class Model(Attention):
        def forward(self, x: Tensor) -> Tensor:
            return self.q(x) + self.k(x.relu_())

    model, x = Model(), torch.randn(30, 12)
    found = measure(model, {"q": model.q, "k": model.k}, [x.clone()])
    assert_right(found["q"], x)
    assert_right(found["k"], x.relu())


def test_convolutions_share_where_they_see_the_same() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(2, 3, 3), nn.Conv2d(2, 4, 3)
            self.c = nn.Conv2d(2, 3, 3, stride=2)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x).sum() + self.b(x).sum() + self.c(x).sum()

    model = Model()
    found = measure(model, dict(model.named_children()), [torch.randn(2, 2, 7, 7)])
    assert found["a"] is found["b"] is not found["c"]
    assert (found["a"].rows, found["c"].rows) == (50, 18)


def test_one_row_and_fewer_rows_than_features() -> None:
    layer = nn.Linear(40, 3)
    for rows in (1, 7):
        x = torch.randn(rows, 40)
        assert_right(measure(layer, {"a": layer}, [x])["a"], x)


def test_a_constant_and_a_dead_input() -> None:
    layer, x = nn.Linear(3, 3), torch.tensor([[2.0, 0.0, -3.0]]).expand(10, 3)
    found = measure(layer, {"a": layer}, [x], histograms=True)["a"]
    assert_right(found, x)
    assert found.squares.tolist() == [4, 0, 9]


class Padded(nn.Module):
    """A layer over tokens, one over a token of each sample, and a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.first = nn.Linear(4, 4), nn.Linear(4, 4)
        self.conv = nn.Conv1d(4, 4, 1)

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        x = x.clone()
        return self.tokens(x).sum() + self.first(x[:, 0]).sum() + self.conv(x.mT.abs()).sum()


@pytest.mark.parametrize("kind", [torch.int64, torch.bool, torch.float32])
@pytest.mark.parametrize("by_name", [True, False])
def test_padding_is_left_out(kind: torch.dtype, by_name: bool) -> None:
    model, x = Padded(), torch.randn(3, 5, 4)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 0, 1, 1]])
    x[1, 3] = 100
    batch = {"x": x, "attention_mask": mask.to(kind)} if by_name else (x, mask.to(kind))
    found = measure(model, dict(model.named_children()), [batch, x[:, :3]])
    assert_right(found["tokens"], torch.cat([x[mask.bool()], x[:, :3].reshape(-1, 4)]))
    assert found["tokens"].high < 100
    assert_right(found["first"], torch.cat([x[:, 0], x[:, 0]]))
    assert found["conv"].rows == 15 + 9


def test_nan_in_padding_does_not_matter() -> None:
    model, x = Padded(), torch.randn(1, 5, 4)
    x[0, 4] = float("nan")
    mask = torch.tensor([[1, 1, 1, 1, 0]])
    found = measure(model, {"tokens": model.tokens}, [{"x": x, "attention_mask": mask}])
    assert_right(found["tokens"], x[0, :4])


def test_masks_of_other_shapes_are_not_of_tokens() -> None:
    model, x = Padded(), torch.randn(2, 5, 4)
    batch = {"x": x, "attention_mask": torch.zeros(2, 1, 5, 5)}
    assert measure(model, {"a": model.tokens}, [batch])["a"].rows == 10


@pytest.mark.parametrize("first", [0.0, 1e-3, 1.0, 300.0])
def test_histogram_of_magnitudes(first: float) -> None:
    """Whatever comes first, the bins are those that all of the data together would give."""
    layer = nn.Linear(30, 3)
    parts = [first * torch.randn(7, 30), torch.randn(50, 30), 100 * torch.randn(20, 30)]
    found = measure(layer, {"a": layer}, parts, histograms=True)["a"]
    magnitudes = torch.cat(parts).abs().flatten()
    assert found.limit / 2 <= magnitudes.max() < found.limit
    assert found.limit == 2 ** round(torch.tensor(found.limit).log2().item())
    bins = (magnitudes.double() / found.limit * 2048).long()
    assert torch.equal(found.histogram, torch.bincount(bins, minlength=2048).double())


def test_errors() -> None:
    model, x = Attention(), torch.randn(3, 12)
    bad = x.clone()
    for value in (float("nan"), float("inf"), float("-inf")):
        bad[1, 2] = value
        with pytest.raises(ValueError, match="input of 'q' holds NaN or infinity"):
            measure(model, {"q": model.q}, [x, bad])
    with pytest.raises(ValueError, match="beyond float32"):
        measure(model, {"q": model.q}, [1e25 * x])
    with pytest.raises(ValueError, match="'lost' was given no row of x"):
        measure(model, {"q": model.q, "lost": nn.Linear(3, 3)}, [x])
    with pytest.raises(ValueError, match="'q' was given no row of x"):
        measure(model, {"q": model.q}, [x[:0]])
    with pytest.raises(TypeError, match="'n' is LayerNorm, wanted"):
        measure(model, {"n": nn.LayerNorm(3)}, [x])
    with pytest.raises(TypeError, match="batch of int"):
        measure(model, {"q": model.q}, [3])
    assert not model.q._forward_pre_hooks
