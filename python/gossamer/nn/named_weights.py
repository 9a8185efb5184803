"""Packed weights of modules that give each of them a name: ``weight_ih_l0``, ``in_proj_weight``.

torch's recurrent layers and its attention hold several weights as parameters of their own. Here
each weight is a :class:`NamedWeight`, a child of a :class:`NamedWeights` module, which saves and
loads it under torch's name. Biases are parameters of the parent, as in torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from .. import _check
from ..schemes import Quantize
from .linear import Linear


class NamedWeight(Linear):
    """A packed weight without a bias of its own, saved and loaded by the module around it.

    Parameters
    ----------
    in_features, out_features, weight, dtype, activations
        As of :class:`Linear`.
    """

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Compute x · Ŵᵀ + bias, with a bias that the parent holds.

        Parameters
        ----------
        x : Tensor
            Shape (..., in_features).
        bias : Tensor or None
            Shape (out_features,).

        Returns
        -------
        Tensor
            Shape (..., out_features), in the dtype of x.
        """
        return self._product(x, bias, "none")

    @classmethod
    def from_tensor(cls, dense: Tensor, scheme: str | Quantize) -> NamedWeight:
        """Quantize a dense weight.

        Parameters
        ----------
        dense : Tensor
            Shape (out_features, in_features).
        scheme : str or Quantize
            Such as "int8".

        Returns
        -------
        NamedWeight
            With the dtype of `dense`.

        Raises
        ------
        ValueError, TypeError, RuntimeError
            As of :meth:`Linear.from_dense`.
        """
        N, K = dense.shape
        holder = torch.nn.Linear(K, N, bias=False, device="meta")
        holder.weight = Parameter(dense.detach(), requires_grad=False)
        return cls.from_dense(holder, scheme)

    def rows(self, first: int, last: int) -> NamedWeight:
        """Some of the output features, packed by themselves.

        Parameters
        ----------
        first, last : int
            The rows [first, last) of the weight.

        Returns
        -------
        NamedWeight
            Of shape (last - first, in_features).

        Raises
        ------
        ValueError
            Where the format cannot be divided there.
        """
        weight = self.quantized().rows(first, last)
        return NamedWeight(
            self.in_features,
            last - first,
            weight=weight,
            dtype=self.dtype,
            activations=self.activations,
        )

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        """Nothing: the parent does it."""

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
        """Nothing: the parent has done it, so that no key is left for this module."""
        if strict:
            unexpected_keys += [key for key in state_dict if key.startswith(prefix)]


class NamedWeights(torch.nn.Module):
    """A module that holds packed weights by the names that torch has for them.

    Attributes
    ----------
    <name> : Tensor
        For each weight, what ``Linear.weight`` answers.
    """

    _weight_names: dict[str, str]  # of each child that is a NamedWeight: the name of its weight

    def __init__(self) -> None:
        super().__init__()
        self._weight_names = {}

    def _add_weight(self, name: str, dense: Tensor, scheme: str | Quantize) -> None:
        """Quantize a weight [N, K]: "weight_ih_l0" becomes the child "ih_l0"."""
        try:
            weight = NamedWeight.from_tensor(dense, scheme)
        except (TypeError, ValueError, RuntimeError) as error:
            kind = type(self).__name__
            raise type(error)(f"{kind}.from_dense: module: {name}: {error}") from error
        child = name.replace("weight", "").strip("_")
        self._weight_names[child] = name
        self.add_module(child, weight)

    def _add_bias(self, name: str, bias: Tensor | None) -> None:
        """Share a bias with the dense module, under the same name."""
        if bias is not None:
            _check.floating(f"{type(self).__name__}.from_dense: module", name, bias)
            bias = bias if isinstance(bias, Parameter) else Parameter(bias.detach())
        self.register_parameter(name, bias)

    def _named_weight(self, child: str) -> NamedWeight:
        return self._modules[child]  # type: ignore[return-value]

    def __getattr__(self, name: str) -> Any:
        for child, weight in self.__dict__.get("_weight_names", {}).items():
            if weight == name:
                return self._modules[child].weight  # type: ignore[union-attr]
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.__dict__.get("_weight_names", {}).values():
            raise AttributeError(
                f"{type(self).__name__}: {name}: is packed and cannot be assigned; make a new "
                "module with from_dense, or use load_state_dict"
            )
        super().__setattr__(name, value)

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        for child, name in self._weight_names.items():
            for key, tensor in self._named_weight(child).quantized().state().items():
                destination[prefix + _renamed(key, name)] = tensor
        super()._save_to_state_dict(destination, prefix, keep_vars)

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
        for child, name in self._weight_names.items():
            weight = self._named_weight(child)
            keys = {key: prefix + _renamed(key, name) for key in weight._state_names()}
            own = {key: state_dict.pop(full) for key, full in keys.items() if full in state_dict}
            missing: list[str] = []
            errors: list[str] = []
            weight._take_weight(own, "", missing, errors)
            missing_keys += [keys[key] for key in missing]
            error_msgs += [prefix + _renamed(error, name) for error in errors]
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )


def _renamed(key: str, name: str) -> str:
    """The name of a canonical tensor in the parent: "weight_scale" of "weight_hh" -> ..."""
    return name + key.removeprefix("weight") if key.startswith("weight") else f"{name}_{key}"
