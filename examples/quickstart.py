"""Replace the layers of a model by compressed ones: smaller, faster, and nearly the same."""

from __future__ import annotations

import copy

import torch

import gossamer as gs


def show_mlp() -> None:
    """Two linear layers, in int8 and in int4."""
    model = torch.nn.Sequential(
        torch.nn.Linear(384, 1536), torch.nn.GELU(), torch.nn.Linear(1536, 384)
    ).eval()
    x = torch.randn(16, 384)
    with torch.inference_mode():
        dense = model(x)
        for scheme in ("int8", "int4-g32"):
            light = gs.compress(copy.deepcopy(model), scheme)
            error = (light(x) - dense).norm() / dense.norm()
            print(gs.report(light))
            print(f"{scheme}: relative error of the output {error:.4f}\n")


def show_fusion() -> None:
    """A small Llama: q, k, v compute as one product, and so do gate and up."""
    try:
        import transformers
    except ImportError:
        print("the example of fusion needs transformers: pip install 'gossamer[hf]'")
        return
    config = transformers.LlamaConfig(
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=1,
        num_attention_heads=4,
        vocab_size=1000,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    tokens = torch.arange(24).reshape(1, -1)
    with torch.inference_mode():
        plain = gs.compress(copy.deepcopy(model), "int8", fuse=False)(tokens).logits
        fused = gs.compress(model, "int8")(tokens).logits
    print(gs.report(model))
    print(f"fused and unfused give the same logits: {torch.equal(plain, fused)}")


if __name__ == "__main__":
    torch.manual_seed(0)
    show_mlp()
    show_fusion()
