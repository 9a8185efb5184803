"""The real models of the benchmarks: MiniLM encodes sentences, SmolLM2 continues text."""

from __future__ import annotations

import importlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from gossamer.bench.assets import MINILM, SMOLLM2, fetch

__all__ = ["embed", "encode", "load_minilm", "load_smollm2", "model_bytes", "skip_linears"]

Array = npt.NDArray[np.float32]

MINILM_MAX_TOKENS = 256  # what its authors trained it with


def load_minilm(dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Any]:
    """all-MiniLM-L6-v2: 6 layers, 384 wide, 22.7 M parameters, full precision weights.

    Parameters
    ----------
    dtype : torch.dtype
        Of weights and activations.

    Returns
    -------
    model, tokenizer
        A ``transformers.BertModel`` in eval mode, and its tokenizer.

    Raises
    ------
    RuntimeError
        transformers is not installed, or the model is neither cached nor to be downloaded.
    """
    transformers = _transformers("load_minilm")
    folder = fetch(MINILM)
    model = transformers.AutoModel.from_pretrained(folder, dtype=dtype, local_files_only=True)
    return model.eval(), transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)


def embed(model: nn.Module, ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Sentence embeddings [B, 384], float32, of token ids [B, S]: the mean token, to unit length.

    ``mask`` [B, S] is 1 for tokens and 0 for padding; None means that there is no padding.
    """
    hidden: torch.Tensor = model(input_ids=ids, attention_mask=mask).last_hidden_state.float()
    if mask is None:
        mean = hidden.mean(1)
    else:
        weights = mask.unsqueeze(-1).float()
        mean = (hidden * weights).sum(1) / weights.sum(1)
    return nn.functional.normalize(mean, dim=-1)


def encode(model: nn.Module, tokenizer: Any, texts: Sequence[str], batch_size: int = 32) -> Array:
    """Sentence embeddings [len(texts), 384], float32, in the order of the texts."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # like lengths: little padding
    embeddings: list[Array | None] = [None] * len(texts)
    with torch.inference_mode():
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            batch = tokenizer(
                [texts[i] for i in chosen],
                padding=True,
                truncation=True,
                max_length=MINILM_MAX_TOKENS,
                return_tensors="pt",
            )
            rows = embed(model, batch["input_ids"], batch["attention_mask"]).numpy()
            for i, row in zip(chosen, rows, strict=True):
                embeddings[i] = row
    return np.stack([row for row in embeddings if row is not None])


def load_smollm2(dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Any]:
    """SmolLM2-135M-Instruct: Llama architecture, 30 layers, 576 wide, tied embeddings.

    Its published weights lie on a 4-bit grid (Q4_1), so the dense model is "dequantized Q4_1", not
    the authors' original: compare with it, and read nothing into the absolute perplexity.

    Parameters
    ----------
    dtype : torch.dtype
        Of weights and activations.

    Returns
    -------
    model, tokenizer
        A ``transformers.LlamaForCausalLM`` in eval mode, and its tokenizer.

    Raises
    ------
    RuntimeError
        transformers, gguf or accelerate is not installed, or the model is neither cached nor to
        be downloaded.
    """
    transformers = _transformers("load_smollm2")
    folder = _smollm2_folder(transformers)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, local_files_only=True
    )
    return model.eval(), transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)


def skip_linears(model: nn.Module) -> nn.Module:
    """Replace, in place, every ``nn.Linear`` by one that returns zeros.

    What time is left bounds the speed that any linear layer, however fast, can give this model.
    """
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, _Zeros(child.out_features))
    return model


def model_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers, packed ones included, shared ones counted once."""
    tensors = {id(t): t.nbytes for t in (*model.parameters(), *model.buffers())}
    return sum(tensors.values()) + sum(
        _torch_dynamic_bytes(module)
        for module in model.modules()
        if isinstance(module, torch.ao.nn.quantized.dynamic.Linear)
    )


class _Zeros(nn.Module):
    def __init__(self, out_features: int) -> None:
        super().__init__()
        self.out_features = out_features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.new_zeros(*x.shape[:-1], self.out_features)


def _smollm2_folder(transformers: Any) -> Path:
    """Keep the model as float32 safetensors: the GGUF takes ten seconds to read, these take one."""
    source = fetch(SMOLLM2)
    folder = source.with_name(f"{source.name}-float32")
    if folder.is_dir():
        return folder
    _need("gguf", "load_smollm2")
    _need("accelerate", "load_smollm2")
    options = {"gguf_file": next(iter(SMOLLM2.files.values())), "local_files_only": True}
    auto = transformers.AutoModelForCausalLM
    read = auto.from_pretrained(source, dtype=torch.float32, **options)
    tokenizer = transformers.AutoTokenizer.from_pretrained(source, **options)
    # transformers will not save a model that came from a GGUF; an equal one made afresh it will.
    if hasattr(read.config, "quantization_config"):
        del read.config.quantization_config
    model = auto.from_config(read.config, dtype=torch.float32)
    model.load_state_dict(read.state_dict())
    with tempfile.TemporaryDirectory(prefix="converting-", dir=source.parent) as temporary:
        converted = Path(temporary) / "model"
        model.save_pretrained(converted)
        tokenizer.save_pretrained(converted)
        try:
            converted.rename(folder)
        except OSError:
            if not folder.is_dir():  # otherwise another process was first
                raise
    return folder


def _torch_dynamic_bytes(module: Any) -> int:
    weight = module.weight()
    bias = module.bias()
    scales = (
        weight.q_per_channel_scales().nbytes if weight.qscheme() != torch.per_tensor_affine else 8
    )
    return int(weight.numel() + scales + (0 if bias is None else bias.nbytes))


def _transformers(function: str) -> Any:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when transformers is imported
    transformers = _need("transformers", function)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


def _need(package: str, function: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise RuntimeError(
            f"{function}: needs {package}: pip install 'gossamer[hf]' ({error})"
        ) from error
