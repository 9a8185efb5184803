"""Zeros into speed and bytes: prune, compress, and see which layers gained.

    python examples/sparse.py

Takes a model pruned with torch.nn.utils.prune, and one pruned by gossamer.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import prune

import gossamer as gs


def make_model() -> nn.Sequential:
    """Always the same weights."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(1024, 1024), nn.GELU(), nn.Linear(1024, 1024), nn.GELU(), nn.Linear(1024, 128)
    ).eval()


@torch.inference_mode()
def run(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The output, without gradients."""
    return model(x)


def error(y: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative, in the Euclidean norm."""
    return float((y - expected).norm() / expected.norm())


def main() -> None:
    """Compress three models, and show their reports."""
    x = torch.randn(8, 1024)

    print("Pruned by torch, 90 % of all weights; the last layer is left dense by its owner:")
    model = make_model()
    tensors = [(model[0], "weight"), (model[2], "weight")]
    prune.global_unstructured(tensors, prune.L1Unstructured, amount=0.9)
    expected = run(model, x)
    gs.compress(model, "sparse-int8")  # the masks are folded; the dense layer stays dense int8
    print(gs.report(model, measure=True))
    print(f"rounding to int8 changes the output by {error(run(model, x), expected):.1%}\n")

    print("Pruned here, half of the weights of each row, in int4:")
    model = make_model()
    expected = run(model, x)
    gs.compress(model, [gs.Prune(0.5, scope="row"), "int4"])
    print(gs.report(model))
    print(f"pruning and rounding change the output by {error(run(model, x), expected):.1%}\n")

    print("Pruned here, what is left in float32, for batches of 64:")
    model = gs.compress(make_model(), gs.Prune(0.95), batch=64)
    print(gs.report(model))


if __name__ == "__main__":
    main()
