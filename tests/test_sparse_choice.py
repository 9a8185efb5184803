"""sparse_choice: parts, paths and the dense format by sparsity, batch and processor."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import gossamer as gs
from gossamer import _C
from gossamer.formats.sparse import Sparse
from gossamer.sparse_choice import (
    _CLASSES,
    PATTERNS,
    THRESHOLDS,
    Regime,
    SparseKind,
    Thresholds,
    choose,
)

FP32 = SparseKind("sparse-fp32", 0.7, None, "exact", "any")


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thresholds that measuring does not change."""
    for name in ("sparse-fp32", "sparse-int8"):
        row = Thresholds(Regime(0.3, 0.95), Regime(0.5, 0.6))
        monkeypatch.setitem(THRESHOLDS, (name, "avx512"), row)


def chosen(kind: SparseKind, batch: Any = (1, "large")) -> Any:
    return choose(kind, batch, "avx512")


@pytest.mark.usefixtures("table")
class TestChoose:
    @pytest.mark.parametrize(
        ("sparsity", "batch", "parts"),
        [
            (0.55, (1, "large"), ("bitmask",)),
            (0.7, (1, "large"), ("bitmask", "spmm")),
            (0.7, 1, ("bitmask",)),
            (0.7, "large", ("spmm",)),
            (0.7, (15,), ("bitmask",)),
            (0.7, (16,), ("spmm",)),
            (0.7, [1, 4, 64, 512], ("bitmask", "spmm")),
            (0.96, (1, "large"), ("spmm",)),
        ],
    )
    def test_parts(self, sparsity: float, batch: Any, parts: tuple[str, ...]) -> None:
        choice = chosen(replace(FP32, sparsity=sparsity), batch)
        assert choice.parts == parts
        assert not choice.keep_dense

    @pytest.mark.parametrize(
        ("sparsity", "batch", "dense"),
        [(0.2, 1, True), (0.4, 1, False), (0.4, (1, "large"), True), (0.5, "large", False)],
    )
    def test_dense(self, sparsity: float, batch: Any, dense: bool) -> None:
        choice = chosen(replace(FP32, sparsity=sparsity), batch)
        assert choice.keep_dense is dense
        assert choice.parts  # can be forced all the same

    def test_reasons(self) -> None:
        assert chosen(FP32).reason == (
            "70% of the weights are zero: gemv for 1 row, spmm for many rows (avx512)"
        )
        assert chosen(replace(FP32, sparsity=0.4)).reason == (
            "40% of the weights are zero; sparse-fp32 is faster than dense from 50% "
            "(many rows, avx512)"
        )
        int8 = SparseKind("sparse-int8", 0.1, None, "int8", "any")
        assert "sparse-int8 is faster than int8 from 30% (8 rows" in chosen(int8, 8).reason

    def test_only_weights_with_kernels_skip_zeros(self) -> None:
        int8 = SparseKind("sparse-int8", 0.9, None, "int8", "any")
        assert chosen(int8).many == "spmm"
        assert chosen(replace(int8, group_size=32)).many == "expand"
        assert chosen(replace(int8, activations="exact")).many == "expand"

    def test_blocks_along_k_skip_more(self) -> None:
        int8 = SparseKind("sparse-int8", 0.2, None, "int8", "any")
        assert chosen(int8).many == "expand"
        assert chosen(replace(int8, pattern="1x4")).many == "spmm"
        assert chosen(replace(int8, pattern="4x1")).many == "expand"


def test_the_table_has_every_processor_and_format() -> None:
    assert set(_CLASSES) == set(_C.isa_names())
    formats = {name for name, form in gs.formats.FORMATS.items() if issubclass(form, Sparse)}
    assert set(THRESHOLDS) == {(name, isa) for name in formats for isa in _CLASSES.values()}
    for name in formats:
        for isa in _C.isa_names():
            for pattern in PATTERNS:
                kind = SparseKind(name, 0.8, None, "exact", pattern)
                assert 1 <= len(choose(kind, (1, "large"), isa).parts) <= 2


def test_of_a_weight_and_forced() -> None:
    W = torch.eye(64)
    weight = gs.formats.SparseFP32.quantize(W)
    choice = gs.kernels.sparse_choice(weight, batch=1)
    assert (choice.isa, choice.few in ("gemv", "spmm")) == (gs.cpu.isa(), True)
    assert gs.kernels.sparse_choice(weight, isa="avx2").isa == "avx2"
    for parts in (("bitmask",), ("spmm",), ("spmm", "bitmask")):
        packed = gs.kernels.pack(weight, parts=parts)
        want = "spmm" if parts == ("spmm",) else "gemv"
        assert gs.kernels.path(packed, 1) in (want, "expand", "spmm")
    with pytest.raises(TypeError, match="sparse_choice: weight: got Int8"):
        gs.kernels.sparse_choice(gs.formats.Int8.quantize(W))
    with pytest.raises(ValueError, match="sparse_choice: isa: got 'sse9'"):
        gs.kernels.sparse_choice(weight, isa="sse9")
