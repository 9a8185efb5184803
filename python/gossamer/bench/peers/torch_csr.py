"""torch's sparse CSR product, float32 with int32 indices, which MKL carries."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from gossamer.bench.peers.peer import Array


class CsrLinear(torch.nn.Module):
    """y = x Wᵀ, by the fastest call that torch has for each M; W is in CSR with int32 indices."""

    def __init__(self, weight: Array) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch calls its CSR a beta
            wide = torch.from_numpy(weight).to_sparse_csr()
            self.weight = torch.sparse_csr_tensor(
                wide.crow_indices().int(), wide.col_indices().int(), wide.values(), wide.shape
            )

    def forward(self, x: Tensor) -> Tensor:
        """Multiply x (M, K); the output (M, N) is a transposed view where M > 1."""
        if len(x) == 1:
            return torch.mv(self.weight, x[0])[None]
        return (self.weight @ x.T.contiguous()).T

    def stored_bytes(self) -> int:
        """Bytes of the values and of both kinds of indices."""
        parts = (self.weight.values(), self.weight.col_indices(), self.weight.crow_indices())
        return sum(part.numel() * part.element_size() for part in parts)
