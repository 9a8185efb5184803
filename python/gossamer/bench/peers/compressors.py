"""Other libraries that compress models with calibration text, for ``gossamer bench quality``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from gossamer.bench.methods import Method

_WINDOW = 512


def compress(
    model: nn.Module, tokenizer: Any, method: Method, batches: Sequence[Any], ignore: Sequence[str]
) -> nn.Module:
    """A model compressed by the tool that a method names, in the way that its users call it.

    Raises
    ------
    ImportError
        Where the tool is not installed.
    ValueError
        Where there is no such tool.
    """
    if method.tool not in _TOOLS:
        raise ValueError(f"compress: method: no tool {method.tool!r}; there are {list(_TOOLS)}")
    return _TOOLS[method.tool](model, tokenizer, method, batches, ignore)


def _windows(batches: Sequence[Any]) -> torch.Tensor:
    """Token ids [windows, 512]."""
    return torch.cat([batch["input_ids"] for batch in batches])


def _llm_compressor(
    model: nn.Module, tokenizer: Any, method: Method, batches: Sequence[Any], ignore: Sequence[str]
) -> nn.Module:
    from datasets import Dataset
    from llmcompressor import oneshot

    recipe = _llm_compressor_recipe(method)
    if not method.calibrated:
        oneshot(model=model, recipe=recipe)
        return model
    windows = _windows(batches)
    mask = torch.ones_like(windows).tolist()
    data = Dataset.from_dict({"input_ids": windows.tolist(), "attention_mask": mask})
    oneshot(
        model=model,
        dataset=data,
        recipe=recipe,
        max_seq_length=_WINDOW,
        num_calibration_samples=len(windows),
    )
    return model


def _llm_compressor_recipe(method: Method) -> Any:
    from compressed_tensors.quantization import (
        QuantizationArgs,
        QuantizationScheme,
    )
    from llmcompressor.modifiers.pruning import (
        SparseGPTModifier,
        WandaPruningModifier,
    )
    from llmcompressor.modifiers.quantization import (
        GPTQModifier,
        QuantizationModifier,
    )
    from llmcompressor.modifiers.transform.awq import (
        AWQModifier,
    )

    if method.name in ("wanda", "sparsegpt"):
        pruner = {"wanda": WandaPruningModifier, "sparsegpt": SparseGPTModifier}[method.name]
        share = float(method.group.split()[0]) / 100
        return pruner(sparsity=share, targets=["Linear"], ignore=["re:.*lm_head"])
    group_size = 64 if "g64" in method.group else None
    weights = QuantizationArgs(
        num_bits=4,
        type="int",
        symmetric=True,
        strategy="group" if group_size else "channel",
        group_size=group_size,
    )
    scheme = {"weights": QuantizationScheme(targets=["Linear"], weights=weights)}
    if method.name == "gptq":
        return GPTQModifier(config_groups=scheme, ignore=["lm_head"])
    nearest = QuantizationModifier(config_groups=scheme, ignore=["lm_head"])
    return [AWQModifier(), nearest] if method.name == "awq" else nearest


def _auto_round(
    model: nn.Module, tokenizer: Any, method: Method, batches: Sequence[Any], ignore: Sequence[str]
) -> nn.Module:
    from auto_round import AutoRound

    windows = _windows(batches)
    ones = torch.ones(1, _WINDOW, dtype=torch.long)
    data = [{"input_ids": window[None], "attention_mask": ones} for window in windows]
    rounded: Any = AutoRound(
        model,
        tokenizer,
        bits=4,
        group_size=64,
        sym=True,
        iters=50,
        nsamples=len(windows),
        seqlen=_WINDOW,
        batch_size=8,
        dataset=data,
        device="cpu",
        enable_torch_compile=False,
    ).quantize()
    model = rounded[0] if isinstance(rounded, tuple) else rounded
    return model


def _hqq(
    model: nn.Module, tokenizer: Any, method: Method, batches: Sequence[Any], ignore: Sequence[str]
) -> nn.Module:
    from hqq.core.quantize import Quantizer

    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name not in ignore:
            codes, meta = Quantizer.quantize(
                module.weight.data,
                device="cpu",
                compute_dtype=torch.float32,
                nbits=4,
                group_size=64,
                axis=1,
                optimize=True,
                round_zero=False,
            )
            dense = Quantizer.dequantize(codes, meta)
            module.weight.data = dense.float().view_as(module.weight)
    return model


_TOOLS: dict[str, Callable[..., nn.Module]] = {
    "llm-compressor": _llm_compressor,
    "auto-round": _auto_round,
    "hqq": _hqq,
}
