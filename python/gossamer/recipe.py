"""What compress() is asked to do: prune, store weights in some form, dense or sparse, correct."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from . import _check
from .factorization.correction import LowRankCorrection, sum_of
from .formats import FORMATS
from .pruning import Prune, SparseGPT
from .quantization import AWQ, GPTQ, METHODS, SmoothQuant
from .schemes import SCALINGS, SCHEMES, Quantize, Scheme
from .sparse_choice import PATTERNS, USUAL_BATCH, Batch, SparseKind, check_batch, choose

Step: TypeAlias = str | Quantize | Prune | LowRankCorrection
_SPARSE = "sparse-"
_NEEDS = ("nothing", "squares", "moment")  # of the inputs of a layer; each includes those before
_DATA_FREE = ("rtn", "hqq")
_UNGRIDDED = ("bf16", "fp32", "sparse-bf16", "sparse-fp32")  # floats, which nothing is rounded to


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
    def prunes_by_magnitude(self) -> bool:
        """Whether what becomes zero depends on the weights alone."""
        prune = self.prune
        return prune is not None and prune.needs == "nothing"

    @property
    def scalings(self) -> tuple[Any, ...]:
        """The settings of what scales weights before they are rounded."""
        return tuple(method for method in self._methods if method.name in SCALINGS)

    @property
    def rounding(self) -> Any:
        """The settings of how weights are rounded; None where they are floats."""
        return next((method for method in self._methods if method.name not in SCALINGS), None)

    @property
    def method(self) -> str:
        """The names of all that is done to a layer, such as "sparsegpt, gptq"."""
        names = [] if self.prune is None else [self.prune.method_settings.name]
        return ", ".join([*names, *(method.name for method in self._methods)])

    @property
    def rounds_to_nearest(self) -> bool:
        """Whether every layer is rounded by its weight alone, each weight by itself."""
        return self.rounding is None or self.rounding.name == "rtn"

    @property
    def corrects_bias(self) -> bool:
        """Whether biases make up for what rounding takes from the mean of the outputs."""
        return self.store is not None and self.store.correct_bias

    @property
    def scales_inputs(self) -> bool:
        """Whether all rows that a layer is given have one scale, which calibration finds."""
        return self.store is not None and self.store.resolved().static_scale is not None

    def wants_exact(self, W: Tensor, x: Tensor) -> bool:
        """Whether a layer [N, K] loses too much where rows [R, K] of x are rounded."""
        if self.store is None:
            return False
        scheme = self.store.resolved()
        return any(
            isinstance(method, SmoothQuant) and method.wants_exact(W, x, scheme)
            for method in self.scalings
        )

    @property
    def learns(self) -> bool:
        """Whether the layers of a block are rounded together, by what the block computes."""
        return self.rounding is not None and self.rounding.name == "autoround"

    @property
    def only_learns(self) -> bool:
        """Whether statistics of inputs only tell where learning begins, with what scales."""
        prunes_by_inputs = self.prune is not None and self.prune.needs != "nothing"
        by_peaks = any(not isinstance(method, AWQ) for method in self.scalings)
        uses = by_peaks or self.correction or self.corrects_bias or self.scales_inputs
        return self.learns and not (prunes_by_inputs or uses)

    @property
    def joint_form(self) -> Scheme | None:
        """What weights are rounded to while SparseGPT, as published, prunes them."""
        if self.prune is None or self.store is None or not isinstance(self.rounding, GPTQ):
            return None
        method = self.prune.method_settings
        published = isinstance(method, SparseGPT) and method.iterations == 0
        return self.store.resolved() if published else None

    @property
    def compares_layers(self) -> bool:
        """Whether the zeros of a layer depend on what other layers are given."""
        prune = self.prune
        if prune is None or prune.needs == "nothing":
            return False
        return prune.scope == "global" or prune.allocation_settings is not None

    @property
    def needs(self) -> str:
        """What the inputs of a layer are asked for, if there is a calibration."""
        parts = [self.prune, *self._methods]
        needs = [part.needs for part in parts if part is not None]
        if self.correction is not None:
            needs.append("moment")
        if self._methods:
            needs.append("squares")  # by which scales are searched
        return max(needs, key=_NEEDS.index, default="nothing")

    @property
    def wants_calibration(self) -> str:
        """What cannot do without a calibration; "" where everything can."""
        if self.prune is not None and self.prune.needs != "nothing":
            names = (
                self.prune.method_settings.name,
                getattr(self.prune.allocation_settings, "name", ""),
            )
            return next(name for name in names[::-1] if name not in ("", "magnitude"))
        found = next((m.name for m in self._methods if m.name not in _DATA_FREE), "")
        found = found or ("correct_bias" if self.corrects_bias else "")
        return found or (str(self.store.activations) if self.store and self.scales_inputs else "")

    @property
    def _methods(self) -> tuple[Any, ...]:
        if self.store is None or self.store.resolved().format in _UNGRIDDED:
            return ()
        return tuple(METHODS[m]() if isinstance(m, str) else m for m in self.store.methods)

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
    _check_rounds(function, recipe)
    return recipe


def _check_rounds(function: str, recipe: Recipe) -> None:
    """A format of floats has no methods."""
    store = recipe.store
    if store is not None and store.method != "rtn" and store.resolved().format in _UNGRIDDED:
        raise ValueError(
            f"{function}: scheme: got {store!r}: {store.resolved().format} holds floats, which "
            "have no method but 'rtn'"
        )


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
            twin = replace(
                scheme,
                scheme=other,
                group_size=wanted.group_size,
                activations=scheme.activations or wanted.activations,
            )
            if twin.resolved() == wanted:
                return twin
    return None
