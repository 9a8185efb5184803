"""Which modules of transformers hold layers that can be fused. A new architecture is a line here.

The names are those of classes; a model that contains such modules at any depth has their patterns.
"""

from __future__ import annotations

from .patterns import Activated, Gated, Pattern, SameInput

_BERT = "(Bert|Roberta|XLMRoberta)"
_LLAMA = "(Llama|Mistral|Qwen2|Qwen3|SmolLM3)"

ARCHITECTURES: tuple[Pattern, ...] = (
    SameInput(_BERT + "(Sdpa)?SelfAttention", ("query", "key", "value")),
    Activated(_BERT + "Intermediate", ("dense",), "intermediate_act_fn"),
    Activated("GPT2MLP", ("c_fc",), "act"),
    SameInput(_LLAMA + "(Sdpa)?Attention", ("q_proj", "k_proj", "v_proj")),
    Gated(_LLAMA + "MLP", ("gate_proj", "up_proj"), "act_fn", "down_proj"),
)
