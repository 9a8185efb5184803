"""The benchmark of convolutions."""

from __future__ import annotations

import pytest

from gossamer.bench import conv
from gossamer.bench.conv_peers import choose_peers

STRIDED = conv.ConvLayer("strided", 8, 16, 3, 9, stride=2, groups=4)


def test_convolutions_are_timed_beside_their_error() -> None:
    measured = conv.run_conv(
        [STRIDED],
        threads=1,
        batches=(1, 2),
        schemes=["int8"],
        rounds=2,
        seconds_per_round=0.001,
    )
    names = [peer.name for peer in choose_peers(["int8"])]
    assert names[-2:] == ["gossamer-int8", "gossamer-int8-bf16"]
    assert [(r["layer"], r["batch"], r["contender"]) for r in measured.rows] == [
        ("strided", batch, name) for batch in (1, 2) for name in names
    ]
    for row in measured.rows:
        assert row["failure"] is None, row
        limit = 1e-6 if "fp32" in row["contender"] else 4e-2
        assert 0 < row["error"] < limit, row
        assert len(row["samples_ms"]) == 2
        if row["contender"] == "torch-fp32-channels-last":
            assert row["speedup"] == 1


def test_operations_of_a_convolution() -> None:
    # 5 x 5 outputs of 16 channels, each of 9 products with 2 channels
    assert STRIDED.operations == 2 * 25 * 16 * 9 * 2


def test_a_convolution_needs_batches_and_schemes_that_exist() -> None:
    with pytest.raises(ValueError, match="batches: got"):
        conv.run_conv([STRIDED], threads=1, batches=(0,))
    with pytest.raises(ValueError, match=r"schemes: \['int3'\] is no scheme"):
        conv.run_conv([STRIDED], threads=1, schemes=["int3"])
