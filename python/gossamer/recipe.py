"""What compress() is asked to do: prune, store weights in some form, dense or sparse, correct."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor

from . import _check
from .factorization.correction import LowRankCorrection, sum_of
from .formats import FORMATS
from .pruning import Prune
from .schemes import SCHEMES, Quantize
from .sparse_choice import PATTERNS, USUAL_BATCH, Batch, SparseKind, check_batch, choose

Step: TypeAlias = str | Quantize | Prune | LowRankCorrection
_SPARSE = "sparse-"


@dataclass(frozen=True)
class Storage:
    """How one layer is stored.

    Attributes
    ----------
    scheme : Quantize or None
        None: as the dense layer that it is.
    reason : str
        Why it is not sparse, where sparse was possible; "" where it is, or was not asked for.
    """

    scheme: Quantize | None
    reason: str = ""


@dataclass(frozen=True)
class Recipe:
    """The steps, and the products they are for.

    Attributes
    ----------
    prune : Prune or None
        What becomes zero first.
    store : Quantize or None
        The form of the weights. One that is sparse gives way to its dense twin where that is
        faster; so does, after `prune`, one that is dense to its sparse twin. None: sparse values in
        the precision of the layer, or the dense layer.
    batch : tuple of int or str
        Rows of x, for the choice between sparse and dense and the parts of sparse weights.
    correction : LowRankCorrection or None
        Of what the steps before it lose.
    """

    prune: Prune | None
    store: Quantize | None
    batch: tuple[int | str, ...]
    correction: LowRankCorrection | None = None

    @property
    def looks_at_zeros(self) -> bool:
        """Whether the form depends on the zeros of a layer."""
        return self.prune is not None or self.store is None or _is_sparse(self.store)

    def forms(self, dtype: torch.dtype) -> tuple[Quantize | None, Quantize | None]:
        """The sparse form and the dense one for weights of some dtype; None where there is none."""
        store = self.store
        if store is None:
            name = "bf16" if dtype is torch.bfloat16 else "fp32"
            return Quantize(_SPARSE + name), None
        if not self.looks_at_zeros:
            return None, store
        name = store.resolved().format
        if _is_sparse(store):
            return store, _twin(store, name.removeprefix(_SPARSE))
        return _twin(store, _SPARSE + name), store

    def storage(self, weights: Sequence[Tensor], cannot_be_sparse: str, insist: bool) -> Storage:
        """The form for a layer.

        Parameters
        ----------
        weights : sequence of Tensor
            Its weights [N, K], pruned.
        cannot_be_sparse : str
            Why layers of its kind cannot; "" where they can.
        insist : bool
            Take the sparse form if it was asked for by name, even if the dense one is faster.
        """
        sparse, dense = self.forms(weights[0].dtype)
        if not self.looks_at_zeros:
            return Storage(dense)
        if sparse is None:
            assert dense is not None
            return Storage(dense, f"there is no sparse form of {dense.scheme}")
        if cannot_be_sparse:
            return Storage(dense, cannot_be_sparse)
        if insist and self.store == sparse:
            return Storage(sparse)
        for weight in weights:
            slower = self._why_dense(sparse, weight)
            if slower:
                return Storage(dense, slower)
        return Storage(sparse)

    def _why_dense(self, sparse: Quantize, weight: Tensor) -> str:
        """Why the dense form is faster; "" where it is not."""
        pattern = self.prune.pattern if self.prune else None
        resolved = sparse.resolved()
        kind = SparseKind(
            resolved.format,
            share_of_zeros([weight]),
            resolved.group_size,
            resolved.activations or "exact",
            pattern if pattern in PATTERNS else PATTERNS[0],
        )
        choice = choose(kind, self.batch)
        return choice.reason if choice.keep_dense else ""


def as_recipe(function: str, scheme: object, batch: Batch | None) -> Recipe:
    """The recipe for the `scheme` and the `batch` of compress()."""
    sizes = check_batch(function, USUAL_BATCH if batch is None else batch)
    steps = scheme if isinstance(scheme, list | tuple) else [scheme]
    prune: Prune | None = None
    store: Quantize | None = None
    correction: LowRankCorrection | None = None
    for step in steps:
        if correction is not None:
            raise _wrong_step(function, scheme, correction)
        if isinstance(step, Prune) and prune is None and store is None:
            prune = step
        elif isinstance(step, str | Quantize) and store is None:
            store = Quantize(step) if isinstance(step, str) else step
        elif isinstance(step, LowRankCorrection) and (prune or store):
            correction = step
        else:
            raise _wrong_step(function, scheme, step)
    if not steps:
        raise _wrong_step(function, scheme, scheme)
    recipe = Recipe(prune, store, sizes, correction)
    if correction is not None:
        _check_correctable(function, recipe)
    return recipe


def share_of_zeros(weights: Sequence[Tensor]) -> float:
    """How much of some weights is zero."""
    count = sum(weight.numel() for weight in weights)
    return 1 - sum(int(torch.count_nonzero(weight)) for weight in weights) / count


def _check_correctable(function: str, recipe: Recipe) -> None:
    """The recipe must have a form that a correction can be added to."""
    forms = [form.resolved().format for form in recipe.forms(torch.float32) if form]
    if not any(map(sum_of, forms)):
        wanted = ", ".join(name for name in FORMATS if sum_of(name))
        raise ValueError(
            f"{function}: scheme: there is no LowRankCorrection of {forms[-1]}, wanted one of "
            f"{wanted}"
        )


def _wrong_step(function: str, scheme: object, step: object) -> Exception:
    if isinstance(step, LowRankCorrection):
        return ValueError(
            f"{function}: scheme: got {scheme!r}; LowRankCorrection corrects what the steps before "
            "it lose: wanted a list of gs.Prune or a scheme, or both, and at last the correction"
        )
    wanted = "wanted a name, gs.Quantize, gs.Prune or a list of gs.Prune and one of the others"
    if isinstance(step, str | Quantize | Prune | list | tuple):
        return ValueError(f"{function}: scheme: got {scheme!r}, {wanted}")
    return TypeError(f"{function}: scheme: got {_check.describe(step)}, {wanted}")


def _is_sparse(scheme: Quantize) -> bool:
    return scheme.resolved().format.startswith(_SPARSE)


def _twin(scheme: Quantize, name: str) -> Quantize | None:
    """The same settings with another format; None where there is no such scheme."""
    form, wanted = FORMATS.get(name), replace(scheme.resolved(), format=name)
    if form is None or wanted.group_size not in form.group_sizes:
        return None
    if wanted.activations not in form.activation_kinds:
        return None
    for other, found in SCHEMES.items():
        if found.format == name:
            twin = Quantize(other, wanted.group_size, wanted.activations)
            if twin.resolved() == wanted:
                return twin
    return None
