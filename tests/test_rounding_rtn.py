"""quantization.RTN, and what all methods that round weights have in common."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import gossamer as gs
from gossamer.formats import FORMATS
from gossamer.quantization import GPTQ, HQQ, METHODS, RTN

from .random_weights import same
from .rounding_layers import SCHEMES, inputs, output_error, scheme_of, statistics_of, weight

ALL = [RTN(), GPTQ(), GPTQ(act_order=False), HQQ()]


@pytest.mark.parametrize("name", [*SCHEMES, "bf16", "sparse-bf16", "sparse-fp32"])
def test_without_statistics_it_is_quantize(name: str) -> None:
    W, scheme = weight(20, 100, 0), scheme_of(name)
    wanted = FORMATS[scheme.format].quantize(W, scheme.group_size, **scheme.settings)
    assert same(RTN().round(W, scheme), wanted)
    assert same(RTN(clip=False).round(W, scheme, statistics_of(inputs(50, 100, 1))), wanted)


def test_formats_without_a_grid_need_no_search() -> None:
    W = weight(20, 100, 0)
    got = RTN().round(W, scheme_of("bf16"), statistics_of(inputs(50, 100, 1)))
    assert same(got, gs.formats.BF16.quantize(W))


@pytest.mark.parametrize("name", SCHEMES)
def test_statistics_lower_the_weighted_error(name: str) -> None:
    W, scheme, statistics = weight(20, 100, 0), scheme_of(name), statistics_of(inputs(50, 100, 1))
    diagonal = statistics.squares.diag()
    plain = output_error(W, RTN().round(W, scheme), diagonal)
    got = output_error(W, RTN().round(W, scheme, statistics), diagonal)
    assert got <= plain * (1 + 1e-6)
    if "int4" in name or name == "nf4":
        assert got < 0.93 * plain


@pytest.mark.parametrize("method", ALL, ids=repr)
@pytest.mark.parametrize("name", SCHEMES)
def test_every_method_gives_every_format_and_keeps_a_mask(method: Any, name: str) -> None:
    W, scheme, statistics = weight(20, 100, 2), scheme_of(name), statistics_of(inputs(80, 100, 3))
    keep = weight(20, 100, 4) > 0
    before = W.clone()
    got = method.round(W, scheme, statistics, keep)
    assert got.name == scheme.format
    assert got.shape == (20, 100)
    assert got.group_size == scheme.group_size
    assert not bool(got.dequantize()[~keep].any())
    assert bool(got.dequantize()[keep].count_nonzero() > 0.8 * keep.sum())
    assert torch.equal(W, before)
    assert same(type(got).unpack(got.pack()), got)


@pytest.mark.parametrize("method", ALL, ids=repr)
def test_weights_of_other_dtypes_are_read(method: Any) -> None:
    W, statistics = weight(8, 64, 5).bfloat16(), statistics_of(inputs(80, 64, 6))
    scheme = scheme_of("int4-g64")
    got = method.round(W, scheme, statistics)
    assert same(got, method.round(W.float(), scheme, statistics))


@pytest.mark.parametrize("method", ALL, ids=repr)
def test_errors_name_the_method_and_the_argument(method: Any) -> None:
    function = f"{type(method).__name__}.round"
    scheme, statistics = scheme_of("int4-g64"), statistics_of(inputs(80, 64, 6))
    W = weight(8, 64, 5)
    with pytest.raises(ValueError, match=f"{function}: keep: got a torch.bool tensor of shape"):
        method.round(W, scheme, statistics, torch.ones(8, 63, dtype=torch.bool))
    with pytest.raises(ValueError, match=f"{function}: keep: got a torch.float32 tensor"):
        method.round(W, scheme, statistics, torch.ones(8, 64))
    for bad in (torch.nan, torch.inf):
        broken = W.clone()
        broken[3, 1] = bad
        with pytest.raises(ValueError, match=f"{function}: W: NaN or infinity in row.s. 3"):
            method.round(broken, scheme, statistics)


def test_statistics_that_do_not_fit_are_refused() -> None:
    W, scheme, statistics = weight(8, 64, 5), scheme_of("int4"), statistics_of(inputs(80, 64, 6))
    nan = replace(statistics, squares=torch.full((64,), torch.nan))
    with pytest.raises(
        ValueError, match=r"RTN\.round: statistics: squares: got NaN, infinity or a neg"
    ):
        RTN().round(W, scheme, nan)
    with pytest.raises(
        ValueError, match=r"RTN\.round: statistics: squares: got .*65.*, wanted \[64\]"
    ):
        RTN().round(W, scheme, statistics_of(inputs(80, 65, 6)))


def test_methods_have_the_names_that_users_write() -> None:
    for name, method in METHODS.items():
        assert method.name == name
        assert method().needs in ("nothing", "squares", "moment")
    assert {"rtn", "gptq", "hqq"} <= set(METHODS)
