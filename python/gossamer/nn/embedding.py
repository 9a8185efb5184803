"""Embeddings whose table is packed."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _check, _ops_embedding
from ..formats import Format
from ..schemes import Quantize
from .linear import Linear
from .named_weights import NamedWeight
from .packed_table import PackedTable, dense_table


class Embedding(PackedTable):
    """``y[..., :] = Ŵ[input[...], :]``, with a packed table Ŵ.

    Rows are expanded as they are read, and the output has the dtype of the module. A call reads,
    for each index, the 16 rows that lie packed together.

    Parameters
    ----------
    num_embeddings : int
        N, rows of the table.
    embedding_dim : int
        K, values of each row.
    weight : Format or Linear
        The table of shape (N, K), such as ``gs.formats.Int8.quantize(W)``; or the packed output
        head that the embedding is tied to, whose weight it reads from then on.
    padding_idx : int, optional
        Kept for code that asks; a packed table has no gradient that it would stop.
    dtype : torch.dtype
        Of the output: float32, bfloat16 or float16; ``.to(dtype)`` changes it. Tied to a head, the
        dtype is that of the head.

    Attributes
    ----------
    weight : Tensor
        Answers shape, dtype and device for free, and expands to dense, warning once per process,
        where its values are read. It has no gradient and cannot be assigned.
    packed : Tensor
        uint8, shape (bytes,): the packed table.
    weight_error : float or None
        ``|W - Ŵ| / |W|`` (Frobenius), where it was made from a dense table.

    Raises
    ------
    TypeError, ValueError
        Where an argument does not fit.

    Notes
    -----
    ``state_dict`` and pickle hold canonical tensors, ``weight`` and ``weight_scale`` for int8; so
    do both of a tied pair, under their names. Loading also accepts a dense ``weight`` and quantizes
    it. There is no gradient: the output does not require one.

    Examples
    --------
    >>> layer = gs.nn.Embedding.from_dense(torch.nn.Embedding(100, 64), "int8")
    >>> layer
    Embedding(
      100, 64, format=int8
      (table): NamedWeight(in_features=64, out_features=100, bias=False, format=int8)
    )
    >>> layer(torch.tensor([[1, 2, 3]])).shape
    torch.Size([1, 3, 64])
    """

    @classmethod
    def from_dense(
        cls,
        embedding: torch.nn.Module,
        scheme: str | Quantize = "int8",
        *,
        head: Linear | None = None,
    ) -> Embedding:
        """Quantize a dense embedding.

        Parameters
        ----------
        embedding : nn.Embedding
            The module; it is left as it is.
        scheme : str or Quantize
            Such as "int8" or "int4".
        head : Linear, optional
            The packed layer whose weight the new embedding shall read, in place of one of its own;
            `scheme` then has no effect. See :func:`tied_pair`.

        Returns
        -------
        Embedding
            In the training mode of `embedding`.

        Raises
        ------
        TypeError
            For a module that is no nn.Embedding or has a forward of its own.
        ValueError
            For an unknown scheme, a table with NaN or infinity, a head of another shape, or one
            with ``max_norm``: its lookups would write to the table.

        Examples
        --------
        >>> layer = gs.nn.Embedding.from_dense(torch.nn.Embedding(100, 64), "int4-g32")
        >>> layer.weight_error < 0.15
        True
        """
        dense = dense_table(embedding, torch.nn.Embedding, "Embedding.from_dense: embedding")
        N, K = dense.shape
        weight = NamedWeight.from_tensor(dense, scheme) if head is None else head
        padding_idx: int | None = embedding.padding_idx  # type: ignore[assignment]
        return cls(N, K, weight=weight, padding_idx=padding_idx).train(embedding.training)

    def forward(self, input: Tensor) -> Tensor:
        """Look rows up.

        Parameters
        ----------
        input : Tensor
            int64 or int32, any shape: indices in [0, num_embeddings).

        Returns
        -------
        Tensor
            Shape (*input.shape, embedding_dim), contiguous, in the dtype of the module.

        Raises
        ------
        IndexError
            Where an index is out of range.
        TypeError
            Where `input` has another dtype.
        """
        table = self._holder
        packed: Tensor = table._buffers["packed"]  # type: ignore[assignment]
        if torch.compiler.is_compiling():
            return _ops_embedding.embedding_op(input, packed, self.embedding_dim, table.dtype)
        return _ops_embedding.embedding(input, packed, self.embedding_dim, table.dtype)


class EmbeddingBag(PackedTable):
    """``y[b, :] = reduce of w[i] * Ŵ[input[i], :] over the i of bag b``, with a packed table Ŵ.

    Rows are expanded as they are read and reduced in float32; the output has the dtype of the
    module.

    Parameters
    ----------
    num_embeddings, embedding_dim, weight, dtype
        As of :class:`Embedding`.
    mode : str
        "sum", "mean" or "max".
    include_last_offset : bool
        Whether ``offsets`` has one entry more than there are bags, where the last one ends.
    padding_idx : int, optional
        Rows of this index are left out of their bag, also where a mean counts them.

    Attributes
    ----------
    weight, packed, weight_error
        As of :class:`Embedding`.

    Raises
    ------
    TypeError, ValueError
        Where an argument does not fit.

    Notes
    -----
    ``per_sample_weights`` have a gradient, the table has none. An empty bag gives zeros.

    Examples
    --------
    >>> dense = torch.nn.EmbeddingBag(100, 64, mode="sum")
    >>> layer = gs.nn.EmbeddingBag.from_dense(dense, "int8")
    >>> layer(torch.tensor([1, 2, 3, 4]), torch.tensor([0, 3])).shape
    torch.Size([2, 64])
    """

    mode: str
    include_last_offset: bool

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        weight: Format | Linear,
        mode: str = "mean",
        include_last_offset: bool = False,
        padding_idx: int | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(
            num_embeddings, embedding_dim, weight=weight, padding_idx=padding_idx, dtype=dtype
        )
        if mode not in _ops_embedding.MODES:
            names = ", ".join(_ops_embedding.MODES)
            raise ValueError(f"EmbeddingBag: mode: got {mode!r}, wanted one of {names}")
        self.mode = mode
        self.include_last_offset = include_last_offset

    @classmethod
    def from_dense(
        cls, embedding_bag: torch.nn.Module, scheme: str | Quantize = "int8"
    ) -> EmbeddingBag:
        """Quantize a dense bag of embeddings.

        Parameters
        ----------
        embedding_bag : nn.EmbeddingBag
            The module; it is left as it is.
        scheme : str or Quantize
            Such as "int8" or "int4".

        Returns
        -------
        EmbeddingBag
            In the training mode of `embedding_bag`.

        Raises
        ------
        TypeError, ValueError
            As of :meth:`Embedding.from_dense`.

        Examples
        --------
        >>> layer = gs.nn.EmbeddingBag.from_dense(torch.nn.EmbeddingBag(100, 64), "nf4")
        >>> layer.mode
        'mean'
        """
        function = "EmbeddingBag.from_dense: embedding_bag"
        dense = dense_table(embedding_bag, torch.nn.EmbeddingBag, function)
        N, K = dense.shape
        layer = cls(
            N,
            K,
            weight=NamedWeight.from_tensor(dense, scheme),
            mode=embedding_bag.mode,  # type: ignore[arg-type]
            include_last_offset=embedding_bag.include_last_offset,  # type: ignore[arg-type]
            padding_idx=embedding_bag.padding_idx,  # type: ignore[arg-type]
        )
        return layer.train(embedding_bag.training)

    def forward(
        self,
        input: Tensor,
        offsets: Tensor | None = None,
        per_sample_weights: Tensor | None = None,
    ) -> Tensor:
        """Look rows up and reduce them by bags.

        Parameters
        ----------
        input : Tensor
            int64 or int32, indices in [0, num_embeddings): shape (bags, length), or (indices,) with
            `offsets`.
        offsets : Tensor, optional
            int64 or int32, shape (bags,), or (bags + 1,) with ``include_last_offset``: where each
            bag begins in a one-dimensional `input`; the first is 0.
        per_sample_weights : Tensor, optional
            The shape of `input`: factors of the rows, in mode "sum" only.

        Returns
        -------
        Tensor
            Shape (bags, embedding_dim), in the dtype of the module.

        Raises
        ------
        RuntimeError
            Where an index is out of range.
        ValueError, TypeError
            Where shapes, offsets, dtypes or mode do not fit.
        """
        weights = per_sample_weights
        if weights is not None and weights.shape != input.shape:
            raise ValueError(
                f"EmbeddingBag: per_sample_weights: got {_check.describe(weights)}, wanted the "
                f"shape of input, {list(input.shape)}"
            )
        if input.dim() == 2:
            if offsets is not None:
                raise ValueError("EmbeddingBag: offsets: wanted None where input has 2 dimensions")
            bags, length = input.shape
            offsets = torch.arange(bags + 1, device=input.device) * length
            input, weights = input.reshape(-1), None if weights is None else weights.reshape(-1)
        else:
            offsets = self._bounds(input, offsets)
        return _ops_embedding.embedding_bag_op(
            input,
            self.packed,
            offsets,
            weights,
            self.embedding_dim,
            self.dtype,
            self.mode,
            self.padding_idx,
        )

    def extra_repr(self) -> str:
        """The settings, for ``repr``.

        Returns
        -------
        str
            Without those that have their usual value.
        """
        last = ", include_last_offset=True" if self.include_last_offset else ""
        return f"{super().extra_repr()}, mode={self.mode}{last}"

    def _bounds(self, input: Tensor, offsets: Tensor | None) -> Tensor:
        """Where each bag begins, and where the last one ends."""
        if input.dim() != 1 or offsets is None or offsets.dim() != 1:
            got = None if offsets is None else _check.describe(offsets)
            raise ValueError(
                f"EmbeddingBag: input, offsets: got {_check.describe(input)} and {got}, wanted two "
                "dimensions and None, or one and one"
            )
        _ops_embedding.check_indices("EmbeddingBag", "offsets", offsets)
        if not self.include_last_offset:
            return torch.cat([offsets, offsets.new_full((1,), input.shape[0])])
        if offsets.shape[0] < 1:
            raise ValueError("EmbeddingBag: offsets: wanted at least one, where the last bag ends")
        return offsets
