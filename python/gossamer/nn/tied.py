"""An embedding and an output head that share one weight, packed once."""

from __future__ import annotations

import torch

from ..schemes import Quantize
from .embedding import Embedding
from .linear import Linear


def tied_pair(
    embedding: torch.nn.Embedding, head: torch.nn.Linear, scheme: str | Quantize = "int8"
) -> tuple[Embedding, Linear]:
    """Quantize an embedding and an output head that have one weight, keeping it one.

    The packed head owns the weight and the embedding reads rows of the same bytes, so memory holds
    them once, also after ``load_state_dict``, ``deepcopy`` and pickle of a model with both. The
    head multiplies as its scheme says; the embedding only reads.

    Parameters
    ----------
    embedding : nn.Embedding
        The module; it is left as it is.
    head : nn.Linear
        With the same parameter as its weight; it is left as it is.
    scheme : str or Quantize
        Such as "int8" or "int4".

    Returns
    -------
    embedding : Embedding
        Tied to the head.
    head : Linear
        With the packed weight.

    Raises
    ------
    ValueError
        Where the two do not have one weight, and as :meth:`Embedding.from_dense` does.
    TypeError
        Where they are no nn.Embedding and nn.Linear, or have a forward of their own.

    Notes
    -----
    ``state_dict`` holds the canonical tensors under both names, each its own copy. Loading a
    checkpoint with both packs twice; the head, or whichever is loaded last, is what remains.

    Examples
    --------
    >>> embedding, head = torch.nn.Embedding(100, 64), torch.nn.Linear(64, 100, bias=False)
    >>> head.weight = embedding.weight
    >>> tokens, logits = gs.nn.tied_pair(embedding, head, "int8")
    >>> tokens.packed is logits.packed
    True
    """
    if type(head).forward is not torch.nn.Linear.forward:
        raise TypeError(f"tied_pair: head: got {type(head).__name__}, wanted nn.Linear")
    if head.weight is not embedding.weight:
        raise ValueError("tied_pair: head: its weight is not the parameter of the embedding")
    packed = Linear.from_dense(head, scheme)
    return Embedding.from_dense(embedding, head=packed), packed
