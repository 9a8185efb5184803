"""Low rank: a certified truncated SVD, what 4 bits lost given back, and a smaller model.

python examples/low_rank.py
"""

from __future__ import annotations

import torch
from torch import nn

import gossamer as gs

FEATURES = 1024


def make_layer() -> nn.Linear:
    """Always the same weights, with singular values that fall as those of trained layers do."""
    generator = torch.Generator().manual_seed(0)
    U, V = (
        torch.linalg.qr(torch.randn(FEATURES, FEATURES, generator=generator))[0] for _ in range(2)
    )
    layer = nn.Linear(FEATURES, FEATURES)
    layer.weight.data = (U * torch.arange(1, FEATURES + 1) ** -0.5) @ V.T
    return layer


def make_model() -> nn.Sequential:
    """Two such layers, with an activation between."""
    torch.manual_seed(0)
    return nn.Sequential(make_layer(), nn.GELU(), make_layer()).eval()


@torch.inference_mode()
def error(model: nn.Module, x: torch.Tensor, expected: torch.Tensor) -> float:
    """Of the output, relative, in the Euclidean norm."""
    return float((model(x) - expected).norm() / expected.norm())


def main() -> None:
    """Factorize a matrix, correct a quantized model, and factorize a model."""
    W = make_layer().weight.detach()
    for wanted in ({"rank": 32}, {"rel_error": 0.5}, {"energy": 0.9}):
        U, S, V, info = gs.truncated_svd(W, **wanted)
        found = torch.linalg.matrix_norm(W - (U * S) @ V.T) / torch.linalg.matrix_norm(W)
        print(
            f"{wanted}: rank {info.rank}, error at most {info.rel_error:.5f}, found {found:.5f}, "
            f"{info.seconds * 1e3:.1f} ms"
        )

    # Inputs in which few directions are strong, as those of trained models.
    mixing = torch.randn(FEATURES, FEATURES) * torch.logspace(0, -2, FEATURES)
    x = torch.randn(512, FEATURES) @ mixing
    calibration = list(x[:256].split(64))
    with torch.inference_mode():
        expected = make_model()(x)

    print("\n4 bits, and what a low-rank correction gives back:")
    scheme = gs.Quantize("int4-per-channel")
    for name, recipe, batches in (
        ("int4", [scheme], None),
        ("int4 + rank 32", [scheme, gs.LowRankCorrection(rank=32)], None),
        ("the same, for these inputs", [scheme, gs.LowRankCorrection(rank=32)], calibration),
    ):
        model = gs.compress(make_model(), recipe, calibration=batches)
        print(f"{name:28} output error {error(model, x, expected):.4f}")
    print(gs.report(model))

    print("\nHalf of the parameters:")
    for method in ("plain", "activation-aware"):
        batches = calibration if method == "activation-aware" else None
        model = gs.factorize(make_model(), parameters=0.5, method=method, calibration=batches)
        print(f"{method:28} output error {error(model, x, expected):.4f}")
    print(gs.report(model))


if __name__ == "__main__":
    main()
