"""The forms in which ``gossamer bench model`` runs a model."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from gossamer.bench import models
from gossamer.schemes import SCHEMES

BASELINE = "dense fp32"
DENSE_BF16 = "dense bf16"
COMPILED = "dense bf16, compiled"
INT8 = "gossamer int8, fp32"
INT8_BF16 = "gossamer int8, bf16"

UNFUSED = ", unfused"
PRUNED = (50, 80)  # percent of the weights, the smallest of each layer
PRUNED_SCHEMES = ("int8", "int4")
ACTIVATIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Variant:
    """One form of a model: ``transform`` makes it of the dense float32 one, in place.

    ``judged`` says whether its quality is a figure of its own, ``computes`` whether its output
    means anything.
    """

    transform: Callable[[nn.Module], nn.Module]
    judged: bool = True
    computes: bool = True


def compressed(model: nn.Module, scheme: str, dtype: torch.dtype, fuse: bool = True) -> nn.Module:
    """Compress ``model`` by ``scheme``, then bring its activations to ``dtype``."""
    import gossamer

    return gossamer.compress(model, scheme, fuse=fuse).to(dtype)


def pruned(model: nn.Module, percent: int, scheme: str, dtype: torch.dtype) -> nn.Module:
    """Prune ``percent`` of each layer by magnitude, and store it in ``scheme``; "": left dense.

    A head tied to an embedding is not pruned.
    """
    import gossamer

    prune = gossamer.Prune(percent / 100, scope="layer")
    if scheme:
        return gossamer.compress(model, [prune, gossamer.Quantize(scheme)]).to(dtype)
    tables = {id(it.weight) for it in model.modules() if isinstance(it, nn.Embedding)}
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear) and id(module.weight) not in tables:
                mask = gossamer.pruning.magnitude_mask(module.weight, percent / 100)
                module.weight.mul_(mask)
    return model.to(dtype)


def usual_names(
    schemes: Sequence[str],
    *,
    compiled: bool = False,
    unfused: bool = False,
    percents: Sequence[int] = (),
) -> list[str]:
    """Names of the usual variants, with gossamer in ``schemes``, and pruned by ``percents``.

    Raises
    ------
    ValueError
        For a name that is no scheme, or another share than those of ``PRUNED``.
    """
    if wrong := [percent for percent in percents if percent not in PRUNED]:
        raise ValueError(f"run_model_benchmark: got {wrong} %, wanted some of {PRUNED}")
    if unknown := [scheme for scheme in schemes if scheme not in SCHEMES]:
        known = ", ".join(SCHEMES)
        raise ValueError(f"run_model_benchmark: {unknown} is no scheme; there are {known}")
    ours = [
        f"gossamer {scheme}, {dtype}{suffix}"
        for scheme in schemes
        for dtype in ACTIVATIONS
        for suffix in ("", *([UNFUSED] if unfused else []))
    ]
    dense = [BASELINE, DENSE_BF16, *([COMPILED] if compiled else []), "torch dynamic int8"]
    pruned_names = [
        name
        for percent in percents
        for name in (
            f"{percent} % zeros, {BASELINE}",
            *(f"{percent} % zeros, gossamer {scheme}, bf16" for scheme in PRUNED_SCHEMES),
        )
    ]
    return [*dense, *ours, *pruned_names, "no linears, fp32", "no linears, bf16"]


def _identity(model: nn.Module) -> nn.Module:
    return model


def _bfloat16(model: nn.Module) -> nn.Module:
    return model.to(torch.bfloat16)


def _compiled_bfloat16(model: nn.Module) -> nn.Module:
    model.to(torch.bfloat16).compile()
    return model


def _torch_dynamic_int8(model: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated, and still what torch has
        quantized: nn.Module = torch.ao.quantization.quantize_dynamic(  # type: ignore[no-untyped-call]
            model, {nn.Linear}, dtype=torch.qint8, inplace=True
        )
    return quantized


def _no_linears(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    return models.skip_linears(model).to(dtype)


VARIANTS: dict[str, Variant] = {
    BASELINE: Variant(_identity),
    DENSE_BF16: Variant(_bfloat16),
    # The same numbers as above, so its quality is not measured again.
    COMPILED: Variant(_compiled_bfloat16, judged=False),
    "torch dynamic int8": Variant(_torch_dynamic_int8),
    **{
        f"gossamer {scheme}, {name}": Variant(partial(compressed, scheme=scheme, dtype=dtype))
        for scheme in SCHEMES
        for name, dtype in ACTIVATIONS.items()
    },
    # The same layers as without the suffix, called one by one.
    **{
        f"gossamer {scheme}, {name}{UNFUSED}": Variant(
            partial(compressed, scheme=scheme, dtype=dtype, fuse=False), judged=False
        )
        for scheme in SCHEMES
        for name, dtype in ACTIVATIONS.items()
    },
    **{
        f"{percent} % zeros, {BASELINE}": Variant(
            partial(pruned, percent=percent, scheme="", dtype=torch.float32)
        )
        for percent in PRUNED
    },
    **{
        f"{percent} % zeros, gossamer {scheme}, {name}": Variant(
            partial(pruned, percent=percent, scheme=scheme, dtype=dtype)
        )
        for percent in PRUNED
        for scheme in PRUNED_SCHEMES
        for name, dtype in ACTIVATIONS.items()
    },
    **{
        f"no linears, {name}": Variant(partial(_no_linears, dtype=dtype), False, computes=False)
        for name, dtype in ACTIVATIONS.items()
    },
}
