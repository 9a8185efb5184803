"""Multi-head attention on packed weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .. import _check
from ..schemes import Quantize, as_quantize
from .linear import Linear
from .named_weights import NamedWeight, NamedWeights

_KIND = "MultiheadAttention"
_IN_WEIGHTS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
_SETTINGS = (
    "embed_dim",
    "kdim",
    "vdim",
    "num_heads",
    "head_dim",
    "dropout",
    "batch_first",
    "add_zero_attn",
    "_qkv_same_embed_dim",  # read by nn.TransformerEncoderLayer
)


class MultiheadAttention(NamedWeights):
    """Scaled dot-product attention in several heads, as ``torch.nn.MultiheadAttention``.

    For each head, with D = embed_dim / num_heads::

        q, k, v = Ŵ_q query + b_q, Ŵ_k key + b_k, Ŵ_v value + b_v
        y = softmax(q · kᵀ / sqrt(D) + mask) · v        output = Ŵ_o [y of all heads] + b_o

    Arguments that are the same tensor share one product: one in self-attention, two where only
    `key` and `value` are the same, else three.

    Parameters
    ----------
    module : nn.MultiheadAttention
        The dense layer, with any of its options.
    scheme : str or Quantize
        Such as "int8".

    Attributes
    ----------
    embed_dim, kdim, vdim, num_heads, head_dim, dropout, batch_first, add_zero_attn
        As of the dense layer.
    in_proj_weight, q_proj_weight, k_proj_weight, v_proj_weight : Tensor or None
        What ``Linear.weight`` answers; None where the dense layer has none.
    out_proj : Linear
        The output projection.

    Notes
    -----
    ``state_dict`` has torch's names (``in_proj_weight``, ``in_proj_weight_scale``, ...); a
    checkpoint of the dense layer loads and is quantized. The gradients of the inputs and the biases
    exist, those of the weights do not.

    ``in_proj_weight`` is packed in one piece. Where the arguments differ, the rows that belong to
    each are packed once more at the first call and kept: a call with the whole weight would compute
    up to three times what it needs.

    References
    ----------
    Vaswani et al., "Attention Is All You Need", 2017, section 3.2.

    Examples
    --------
    >>> dense = torch.nn.MultiheadAttention(32, 4, batch_first=True)
    >>> layer = gs.nn.MultiheadAttention.from_dense(dense, "int8")
    >>> x = torch.randn(2, 5, 32)
    >>> output, weights = layer(x, x, x)
    >>> output.shape, weights.shape
    (torch.Size([2, 5, 32]), torch.Size([2, 5, 5]))
    """

    embed_dim: int
    kdim: int
    vdim: int
    num_heads: int
    head_dim: int
    dropout: float
    batch_first: bool
    add_zero_attn: bool
    _qkv_same_embed_dim: bool
    in_proj_bias: Tensor | None
    bias_k: Tensor | None
    bias_v: Tensor | None
    out_proj: Linear

    def __init__(self, module: nn.MultiheadAttention, scheme: str | Quantize = "int8") -> None:
        super().__init__()
        if not isinstance(module, nn.MultiheadAttention):
            raise TypeError(
                f"{_KIND}.from_dense: module: got {type(module).__name__}, wanted nn.{_KIND}"
            )
        scheme = as_quantize(f"{_KIND}.from_dense", scheme)
        for name in _SETTINGS:
            setattr(self, name, getattr(module, name))
        for name in _IN_WEIGHTS:
            dense = getattr(module, name)
            if dense is None:
                setattr(self, name, None)
            else:
                self._add_weight(name, dense, scheme)
        for name in ("in_proj_bias", "bias_k", "bias_v"):
            self._add_bias(name, getattr(module, name))
        self.out_proj = Linear.from_dense(module.out_proj, scheme)
        self._row_blocks: dict[tuple[int, int], NamedWeight | None] = {}
        self.train(module.training)

    @classmethod
    def from_dense(
        cls, module: nn.MultiheadAttention, scheme: str | Quantize = "int8"
    ) -> MultiheadAttention:
        """Quantize a dense layer.

        Parameters
        ----------
        module : nn.MultiheadAttention
            The layer; it is left as it is. The new one shares its biases.
        scheme : str or Quantize
            Such as "int8".

        Returns
        -------
        MultiheadAttention
            In the training mode of `module`.

        Raises
        ------
        TypeError, ValueError, RuntimeError
            For another module, an unknown scheme, or a weight with NaN or not on the CPU.
        """
        return cls(module, scheme)

    def extra_repr(self) -> str:
        """The settings, for ``repr``.

        Returns
        -------
        str
            The sizes, and ``batch_first``.
        """
        return f"{self.embed_dim}, num_heads={self.num_heads}, batch_first={self.batch_first}"

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend.

        Parameters
        ----------
        query : Tensor
            Shape (L, B, embed_dim), (B, L, embed_dim) if ``batch_first``, or (L, embed_dim);
            float32, bfloat16 or float16.
        key, value : Tensor
            As `query`, with S in place of L, and ``kdim`` and ``vdim`` in place of ``embed_dim``.
        key_padding_mask : Tensor, optional
            Shape (B, S) or (S,): True, or a value to be added, where a key is left out.
        need_weights : bool
            Whether the attention weights are returned; False is faster.
        attn_mask : Tensor, optional
            Shape (L, S) or (B * num_heads, L, S), bool or floating, as `key_padding_mask`.
        average_attn_weights : bool
            Whether the weights are averaged over the heads.
        is_causal : bool
            Says that `attn_mask` is the causal one, which need not be read then.

        Returns
        -------
        output : Tensor
            As `query`, contiguous.
        weights : Tensor or None
            Shape (B, L, S) or (B, num_heads, L, S), without B where `query` has none; after dropout
            in training. None unless wanted.

        Raises
        ------
        TypeError, ValueError
            Where a shape or a dtype does not fit.
        """
        self._check_inputs(query, key, value)
        if is_causal and attn_mask is None:
            raise ValueError(f"{_KIND}: is_causal: is a hint about attn_mask, which is None")
        is_causal = is_causal and key_padding_mask is None and not need_weights
        q, k, v = map(self._heads, self._project(query, key, value))  # [B, heads, L or S, D]
        masks = (None if is_causal else attn_mask), key_padding_mask
        mask = self._mask(*masks, (q.shape[0], q.shape[2], k.shape[2]), q.dtype)
        k, v, mask = self._extended(k, v, mask)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            y, weights = _attention_with_weights(q, k, v, mask, dropout)
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            y = functional.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal)
        batched = query.dim() == 3
        order = (0, 2, 1, 3) if self.batch_first or not batched else (2, 0, 1, 3)
        output = self.out_proj(y.permute(order).flatten(2))
        if not batched:
            output, weights = output.squeeze(0), None if weights is None else weights.squeeze(0)
        return output, weights

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        """q, k and v, with one product for neighbours that are the same tensor."""
        inputs, first = (query, key, value), 0
        parts: list[Tensor] = []
        if not self._qkv_same_embed_dim:
            bias = self.in_proj_bias
            biases = (None, None, None) if bias is None else bias.chunk(3)
            names = ("q_proj", "k_proj", "v_proj")
            return [
                self._named_weight(name).product(x, bias)
                for name, x, bias in zip(names, inputs, biases, strict=True)
            ]
        for last in (1, 2, 3):
            if last == 3 or inputs[last] is not inputs[first]:
                parts += self._product(inputs[first], first, last).chunk(last - first, -1)
                first = last
        return parts

    def _product(self, x: Tensor, first: int, last: int) -> Tensor:
        """Multiply x with the blocks [first, last) of in_proj_weight: 0 is q, 1 is k, 2 is v."""
        whole, bias = self._named_weight("in_proj"), self.in_proj_bias
        if last - first == 3:
            return whole.product(x, bias)
        rows = slice(first * self.embed_dim, last * self.embed_dim)
        if (first, last) not in self._row_blocks and not torch.compiler.is_compiling():
            try:
                self._row_blocks[first, last] = whole.rows(rows.start, rows.stop)
            except ValueError:  # a format that cannot be divided there
                self._row_blocks[first, last] = None
        block = self._row_blocks.get((first, last))
        if block is None:
            return whole.product(x, bias)[..., rows]
        return block.product(x, None if bias is None else bias[rows])

    def _heads(self, x: Tensor) -> Tensor:
        """[L, B, E], [B, L, E] or [L, E] to [B, heads, L, D]."""
        batch_first = self.batch_first or x.dim() == 2
        x = x.view(*x.shape[:-1], self.num_heads, self.head_dim)
        x = x.unsqueeze(0) if x.dim() == 3 else x
        return x.permute((0, 2, 1, 3) if batch_first else (1, 2, 0, 3))

    def _mask(
        self,
        attn_mask: Tensor | None,
        key_padding_mask: Tensor | None,
        sizes: tuple[int, int, int],
        dtype: torch.dtype,
    ) -> Tensor | None:
        """Both masks as one to be added to the scores, which broadcasts to [B, heads, L, S]."""
        B, L, S = sizes
        mask = None
        if attn_mask is not None:
            shapes = [(L, S), (B * self.num_heads, L, S)]
            mask = _additive("attn_mask", attn_mask, shapes, dtype)
            mask = mask if mask.dim() == 2 else mask.view(B, self.num_heads, L, S)
        if key_padding_mask is not None:
            shapes = [(B, S), (S,)] if B == 1 else [(B, S)]
            padding = _additive("key_padding_mask", key_padding_mask, shapes, dtype)
            padding = padding.view(B, 1, 1, S)
            mask = padding if mask is None else mask + padding
        return mask

    def _extended(
        self, k: Tensor, v: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Append the learned key and value, and then those of zeros; no mask hides them."""
        B, S = k.shape[0], k.shape[2]
        if self.bias_k is not None and self.bias_v is not None:
            shape = (1, self.num_heads, 1, self.head_dim)
            bias_k, bias_v = (
                self.bias_k.view(shape).to(k.dtype),
                self.bias_v.view(shape).to(k.dtype),
            )
            k = torch.cat([k, bias_k.expand(B, -1, -1, -1)], 2)
            v = torch.cat([v, bias_v.expand(B, -1, -1, -1)], 2)
        if self.add_zero_attn:
            k, v = functional.pad(k, (0, 0, 0, 1)), functional.pad(v, (0, 0, 0, 1))
        more = k.shape[2] - S
        return k, v, mask if mask is None or not more else functional.pad(mask, (0, more))

    def _check_inputs(self, query: Tensor, key: Tensor, value: Tensor) -> None:
        inputs = {"query": query, "key": key, "value": value}
        for (name, x), width in zip(
            inputs.items(), (self.embed_dim, self.kdim, self.vdim), strict=True
        ):
            if x.is_nested:
                raise TypeError(f"{_KIND}: {name}: is a nested tensor, wanted a padded one")
            _check.rows(_KIND, name, x, width)
            if x.dim() not in (2, 3) or x.dim() != query.dim():
                order = "B, L" if self.batch_first else "L, B"
                raise ValueError(
                    f"{_KIND}: {name}: got {_check.describe(x)}, wanted [{order}, {width}] or "
                    f"[L, {width}], as the query"
                )
        if key.shape[:-1] != value.shape[:-1]:
            raise ValueError(
                f"{_KIND}: value: got {_check.describe(value)}, wanted the length and batch of "
                f"key, {list(key.shape[:-1])}"
            )
        batch_dim = 0 if self.batch_first else 1
        if query.dim() == 3 and key.shape[batch_dim] != query.shape[batch_dim]:
            raise ValueError(
                f"{_KIND}: key: got {_check.describe(key)}, wanted the batch of query, "
                f"{query.shape[batch_dim]}"
            )

    # --- copying, loading: blocks of rows are made again ---

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_row_blocks": {}}

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        self._row_blocks = {}
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )


def _attention_with_weights(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float
) -> tuple[Tensor, Tensor]:
    """The attention of F.scaled_dot_product_attention, and its weights."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    weights = (scores if mask is None else scores + mask).softmax(-1)
    weights = functional.dropout(weights, dropout)
    return weights @ v, weights


def _additive(name: str, mask: Tensor, shapes: list[tuple[int, ...]], dtype: torch.dtype) -> Tensor:
    """A mask as what is added to the scores: True becomes -inf."""
    if mask.dtype is not torch.bool and not mask.is_floating_point():
        raise TypeError(f"{_KIND}: {name}: got dtype {mask.dtype}, wanted bool or floating point")
    if tuple(mask.shape) not in shapes:
        wanted = " or ".join(str(list(shape)) for shape in shapes)
        raise ValueError(f"{_KIND}: {name}: got {_check.describe(mask)}, wanted {wanted}")
    if mask.dtype is torch.bool:
        return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, -torch.inf)
    return mask.to(dtype)
