"""The configuration of a model of transformers, from the metadata of a GGUF file."""

from __future__ import annotations

from typing import Any

from .gguf_file import GGUFFile

# By architecture of the file: what transformers calls the configuration and the model.
CLASSES = {
    "llama": ("LlamaConfig", "LlamaForCausalLM"),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM"),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM"),
}
# By name in the metadata, after that of the architecture.
_NUMBERS = {
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "context_length": "max_position_embeddings",
}
_SPECIAL_TOKENS = {
    "bos_token_id": "bos_token_id",
    "eos_token_id": "eos_token_id",
    "padding_token_id": "pad_token_id",
}
_MOST = 1 << 24  # of any of these numbers; more would only fill memory


def config_settings(file: GGUFFile) -> dict[str, Any]:
    """Arguments of the configuration class.

    Parameters
    ----------
    file : GGUFFile
        Of an architecture in :data:`CLASSES`.

    Raises
    ------
    ValueError
        Where a number is missing or not one, or positions are scaled in a way that is not read.
    """
    metadata, prefix = file.metadata, file.metadata["general.architecture"]
    settings: dict[str, Any] = {
        own: _number(file, f"{prefix}.{name}", metadata.get(f"{prefix}.{name}"))
        for name, own in _NUMBERS.items()
    }
    if settings["num_hidden_layers"] > len(file.tensors):
        count = settings["num_hidden_layers"]
        raise ValueError(f"{file.path}: {prefix}.block_count: got {count}, more than tensors")
    heads = settings["num_attention_heads"]
    kv_heads = metadata.get(f"{prefix}.attention.head_count_kv", heads)
    head_dim = metadata.get(f"{prefix}.attention.key_length", settings["hidden_size"] // heads)
    table = file.tensors.get("token_embd.weight")
    if table is None:
        raise ValueError(f"{file.path}: tensor 'token_embd.weight' is missing")
    return settings | {
        "num_key_value_heads": _number(file, f"{prefix}.attention.head_count_kv", kv_heads),
        "head_dim": _number(file, f"{prefix}.attention.key_length", head_dim),
        "vocab_size": _number(file, "token_embd.weight: rows", table.shape[0]),
        "rms_norm_eps": float(metadata.get(f"{prefix}.attention.layer_norm_rms_epsilon", 1e-6)),
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "architectures": [CLASSES[prefix][1]],
        **_rope(file, prefix),
        **{
            own: metadata[f"tokenizer.ggml.{name}"]
            for name, own in _SPECIAL_TOKENS.items()
            if f"tokenizer.ggml.{name}" in metadata
        },
    }


def _number(file: GGUFFile, name: str, value: object) -> int:
    if type(value) is not int or not 1 <= value <= _MOST:
        raise ValueError(f"{file.path}: {name}: got {value!r}, wanted a number from 1 to {_MOST}")
    return value


def _rope(file: GGUFFile, prefix: str) -> dict[str, Any]:
    base = float(file.metadata.get(f"{prefix}.rope.freq_base", 10000.0))
    kind = file.metadata.get(f"{prefix}.rope.scaling.type", "none")
    if kind == "none":
        return {"rope_theta": base}
    if kind != "linear":
        raise ValueError(
            f"{file.path}: {prefix}.rope.scaling.type: got {kind!r}, wanted none or linear"
        )
    factor = float(file.metadata.get(f"{prefix}.rope.scaling.factor", 1.0))
    return {"rope_theta": base, "rope_scaling": {"rope_type": "linear", "factor": factor}}
