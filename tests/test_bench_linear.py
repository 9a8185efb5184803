"""The linear benchmark: layers, peers, rows and roofs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from gossamer.bench import linear, results, rows
from gossamer.bench.linear import Layer
from gossamer.bench.peers import BASELINE, PEERS, int4_groups
from gossamer.bench.roof import Roof


def test_every_installed_peer_computes_the_product() -> None:
    others = [name for name in PEERS if not name.startswith("gossamer-")]
    others = [name for name in others if not name.endswith(("-g64", "-g128"))]
    others += ["gossamer-int8", "gossamer-int8-bf16"]
    measured = linear.run_linear(
        [Layer(64, 128, (3,))], threads=1, peers=others, rounds=1, seconds_per_round=0.001
    )
    rows = [row for row in measured.rows if row["kind"] == "linear"]
    assert [row["contender"] for row in rows] == [BASELINE, *(n for n in others if n != BASELINE)]
    for row in rows:
        peer = PEERS[row["contender"]]
        if peer.missing():
            assert row["failure"] == peer.missing()
        else:
            limit = {"fp32": 1e-6, "bf16": 1e-2, "int8": 4e-2}[peer.arithmetic]
            limit = 0.2 if "int4" in peer.name else limit
            assert row["failure"] is None, row
            assert 0 < row["error"] < limit, row


def test_rows_hold_speed_error_and_roof(tmp_path: Path) -> None:
    import gossamer as gs

    isas = ["scalar", "amx"]
    measured = linear.run_linear(
        [Layer(32, 48, (1, 5), name="small", source="a test")],
        threads=1,
        peers=["gossamer-int8"],
        isas=isas,
        rounds=3,
        seconds_per_round=0.001,
    )
    roof, *rows = measured.rows
    assert roof["kind"] == "roof"
    packed = gs.Quantize("int8").quantize(torch.zeros(32, 48)).nbytes
    assert set(roof["gb_per_second"]) == {str(packed), "6144"}
    names = ["torch-fp32", "gossamer-int8", "gossamer-int8@scalar", "gossamer-int8@amx"]
    assert [(row["M"], row["contender"]) for row in rows] == [(M, n) for M in (1, 5) for n in names]
    for row in rows:
        if row["contender"].endswith("amx") and "amx" not in gs.cpu.available():
            assert row["failure"] == "not available on this processor"
            continue
        assert row["failure"] is None
        assert row["gops"] == pytest.approx(2e-6 * row["M"] * 32 * 48 / row["ms"])
        assert row["roof"] in ("compute", "bandwidth")
        assert row["roof_share"] > 0
        assert len(row["samples_ms"]) == 3
        assert row["ms"] == np.median(row["samples_ms"])
    path = tmp_path / "run.jsonl"
    results.write(path, measured)
    read = results.read(path)
    assert read.environment["threads"] == 1
    assert [r["kind"] for r in read.rows] == ["roof"] + ["linear"] * 8


def test_unknown_contenders_are_named() -> None:
    layers = [Layer(8, 8, (1,))]
    with pytest.raises(ValueError, match=r"\['magic'\] is no peer; there are torch-fp32"):
        linear.run_linear(layers, threads=1, peers=["magic"])
    with pytest.raises(ValueError, match=r"'sse2' is no ISA; there are scalar"):
        linear.run_linear(layers, threads=1, isas=["sse2"])
    with pytest.raises(ValueError, match=r"schemes: \['int3'\] is no scheme; there are int8"):
        linear.run_linear(layers, threads=1, schemes=["int3"])


def test_shapes_are_read_from_text() -> None:
    assert linear.parse_shapes("8x16, 4x2", "1,3") == [Layer(8, 16, (1, 3)), Layer(4, 2, (1, 3))]
    for shapes, m in (("8", "1"), ("8x", "1"), ("8x8x8", "1"), ("8x8", "0"), ("8x8", "")):
        with pytest.raises(ValueError, match="parse_shapes"):
            linear.parse_shapes(shapes, m)


def test_layers_are_read_from_toml(tmp_path: Path) -> None:
    path = tmp_path / "cases.toml"
    path.write_text('[[layer]]\nname = "a"\nN = 8\nK = 16\nM = [1, 2]\nisas = ["avx2"]\n')
    assert linear.read_layers(path) == [Layer(8, 16, (1, 2), name="a", isas=("avx2",))]
    for text in ("", "[[layer]]\nN = 8\nK = 8\n", "[[layer]]\nN = 8\nK = 8\nM = [1]\nx = 1\n"):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"cases\.toml"):
            linear.read_layers(path)


@pytest.mark.parametrize("file", ["cases.toml", "int4_cases.toml"])
def test_the_cases_of_the_repository_can_run(file: str) -> None:
    layers = linear.read_layers(Path(__file__).parents[1] / "bench" / file)
    for layer in layers:
        entrants = linear.choose_entrants(layer, [], [], [])
        names = [entrant.peer.name for entrant in entrants]
        assert names[0] == BASELINE
        assert len(set(names)) == len(names)


def test_schemes_and_globs_choose_entrants() -> None:
    layer = Layer(8, 8, (1,), peers=("*-int4-g32",), schemes=("int4",), isas=("avx2",))
    names = [entrant.peer.name for entrant in linear.choose_entrants(layer, [], [], [])]
    ours = ["gossamer-int4", "gossamer-int4-bf16", "gossamer-int4@avx2"]
    assert names[0] == BASELINE
    assert names[-3:] == ours
    assert all(name.endswith("-int4-g32") for name in names[1:-3])
    assert "onnxruntime-int4-g32" in names
    given = linear.choose_entrants(layer, ["torch-bf16"], ["int8-g32"], [])
    assert [entrant.peer.name for entrant in given] == [
        *(BASELINE, "torch-bf16", "gossamer-int8-g32", "gossamer-int8-g32-bf16"),
        "gossamer-int8-g32@avx2",
    ]
    usual = linear.choose_entrants(Layer(8, 8, (1,)), [], [], [])
    assert [e.peer.name for e in usual if "int4" in e.peer.name] == []


def test_weights_are_counted_with_their_scales() -> None:
    import gossamer as gs

    assert PEERS["torch-fp32"].weight_bytes(8, 32) == 1024
    assert PEERS["onnxruntime-int4-g32"].weight_bytes(8, 64) == 8 * 64 // 2 + 4 * 16
    stored = gs.Quantize("int4-g32").quantize(torch.zeros(8, 64))
    assert PEERS["gossamer-int4-g32"].weight_bytes(8, 64) == stored.nbytes
    assert PEERS["gossamer-int8"].arithmetic == "int8"
    assert PEERS["gossamer-int8-weight-only"].arithmetic == PEERS["gossamer-fp8"].arithmetic
    assert PEERS["gossamer-fp8"].arithmetic == "bf16"


def test_int4_groups_are_rounded_and_packed() -> None:
    weight = np.array([[7, -7, 3.4, 0], [0, 0, 0, 0]], np.float32)
    values, scales = int4_groups.quantize(weight, 4)
    assert values.tolist() == [[7, -7, 3, 0], [0, 0, 0, 0]]
    assert scales.tolist() == [[1], [0]]
    assert int4_groups.pack(values).tolist() == [[0x97, 0x03], [0, 0]]
    with pytest.raises(ValueError, match="no multiple of the group size 3"):
        int4_groups.quantize(weight, 3)


def test_the_binding_roof_is_the_larger_share() -> None:
    roof = Roof({"amx-int8": 4e12, "vnni-int8": 1e12, "fma-f32": 1e11}, {100: 1e9, 400: 2e9})
    assert roof.share(1e-6, 200, 100, "int8", None) == (pytest.approx(0.1), "bandwidth")
    assert roof.share(1e-6, 2 * 10**6, 100, "int8", None) == (pytest.approx(0.5), "compute")
    assert roof.share(4e-6, 2 * 10**6, 100, "int8", "avx512vnni")[0] == pytest.approx(0.5)
    assert roof.share(1e-6, 2 * 10**6, 100, "int8", "avx2")[1] == "bandwidth"
    assert roof.share(1e-6, 50_000, 400, "fp32", None) == (pytest.approx(0.5), "compute")
    # No bfloat16 instruction was measured, so float32 carries it; held to an ISA, nothing does.
    assert roof.computing(1e-6, 50_000, "bf16", None) == pytest.approx(0.5)
    assert roof.computing(1e-6, 50_000, "bf16", "avx512vnni") is None


def test_errors_are_relative_and_need_the_same_shape() -> None:
    exact = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    assert rows.relative_error(np.array([[3, 4.5]], np.float32), exact) == pytest.approx(0.1)
    with pytest.raises(ValueError, match="wanted"):
        rows.relative_error(np.zeros((2, 1), np.float32), exact)
