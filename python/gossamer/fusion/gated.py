"""The feed-forward block of Llama, on packed layers."""

from __future__ import annotations

from torch import Tensor, nn


class GatedMLP(nn.Module):
    """``y = down_proj(act_fn(gate_proj(x)) * up_proj(x))``.

    Parameters
    ----------
    gate_proj, up_proj : Projection
        Siblings: they compute as one.
    down_proj : nn.Module
        Any linear layer.
    act_fn : nn.Module
        SiLU.
    """

    def __init__(
        self, gate_proj: nn.Module, up_proj: nn.Module, down_proj: nn.Module, act_fn: nn.Module
    ) -> None:
        super().__init__()
        self.gate_proj = gate_proj
        self.up_proj = up_proj
        self.down_proj = down_proj
        self.act_fn = act_fn

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block.

        Parameters
        ----------
        x : Tensor
            Shape (..., in_features).

        Returns
        -------
        Tensor
            Shape (..., out_features), in the dtype of x.
        """
        y: Tensor = self.down_proj(self.gated(x))
        return y

    def gated(self, x: Tensor) -> Tensor:
        """What goes into ``down_proj``.

        Parameters
        ----------
        x : Tensor
            Shape (..., in_features).

        Returns
        -------
        Tensor
            ``act_fn(gate_proj(x)) * up_proj(x)``, shape (..., intermediate features).
        """
        gate: Tensor = self.act_fn(self.gate_proj(x))
        up: Tensor = self.up_proj(x)
        return gate * up
