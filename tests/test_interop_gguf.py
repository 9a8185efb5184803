"""GGUF: a file that the package gguf wrote, and what transformers reads from it."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from gossamer.formats import Int4, Int8
from gossamer.interop import load, read
from gossamer.interop.gguf_config import CLASSES, config_settings
from gossamer.interop.gguf_file import GGUFFile
from gossamer.interop.models import _apply_rope_factors

from .foreign_files import FIXTURES, relative_error

LLAMA = FIXTURES / "gguf-llama.gguf"
ROUNDED = "model.layers.0.self_attn.v_proj.weight"  # Q4_1, with -m / d that are not whole


def test_weights_are_those_that_transformers_reads():
    expected = load_file(FIXTURES / "gguf-llama.safetensors")
    compared = set()
    for entry in read(LLAMA):
        if entry.name in expected and entry.name != ROUNDED:
            assert not isinstance(entry.value, torch.Tensor)
            assert torch.equal(entry.value.dequantize(), expected[entry.name]), entry.name
            assert entry.error == 0
            compared.add(entry.name)
    assert compared == expected.keys() - {ROUNDED, "logits"}


def test_formats():
    found = {entry.name: entry for entry in read(LLAMA)}
    attention = "model.layers.0.self_attn"
    q, k = found[f"{attention}.q_proj.weight"].value, found[f"{attention}.k_proj.weight"].value
    assert isinstance(q, Int4)
    assert q.zero_points is None
    assert q.scales.dtype is torch.float16
    assert isinstance(k, Int8)
    o = found[f"{attention}.o_proj.weight"].value  # Q4_1 with zero points that are whole
    assert isinstance(o, Int4)
    assert o.zero_points is not None
    down = found["model.layers.0.mlp.down_proj.weight"].value
    assert isinstance(down, Int4)
    assert down.group_size == 32
    v = found[ROUNDED]
    assert isinstance(v.value, Int8)
    assert 0.002 < v.error < 0.007
    expected = load_file(FIXTURES / "gguf-llama.safetensors")[ROUNDED]
    assert relative_error(v.value.dequantize(), expected) == pytest.approx(v.error, rel=1e-3)
    plain = {
        name: entry.value.dtype
        for name, entry in found.items()
        if "mlp" in name and "down" not in name
    }
    assert plain == {
        "model.layers.0.mlp.gate_proj.weight": torch.float32,
        "model.layers.0.mlp.up_proj.weight": torch.bfloat16,
    }


def test_load_gives_the_logits_of_transformers():
    pytest.importorskip("transformers", reason="has the model")
    with pytest.warns(UserWarning, match="1 of 6 quantized layers .* at most 0.0048: .*v_proj"):
        model = load(LLAMA)
    expected = load_file(FIXTURES / "gguf-llama.safetensors")
    assert model.config.architectures == ["LlamaForCausalLM"]
    assert model.config.dtype is torch.float32
    # The one weight that was rounded again is put back.
    attention: Any = model.model.layers[0].self_attn
    attention.v_proj = torch.nn.Linear(32, 16, bias=False)
    attention.v_proj.weight = torch.nn.Parameter(expected[ROUNDED])
    with torch.no_grad():
        logits = model(torch.arange(16)[None]).logits
    assert relative_error(logits, expected["logits"]) < 1e-5


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_the_configuration_is_that_of_transformers(architecture, tmp_path):
    transformers = pytest.importorskip("transformers", reason="has the configurations")
    pytest.importorskip("gguf", reason="transformers reads the configuration with it")
    writer = Writer(architecture)
    for name, value in (
        ("block_count", 3),
        ("embedding_length", 64),
        ("feed_forward_length", 96),
        ("attention.head_count_kv", 1),
        ("context_length", 512),
        ("vocab_size", 40),
    ):
        writer.number(f"{architecture}.{name}", value)
    writer.real(f"{architecture}.rope.freq_base", 5e5)
    writer.real(f"{architecture}.attention.layer_norm_rms_epsilon", 1e-5)
    writer.number("tokenizer.ggml.eos_token_id", 7)
    writer.tensor("token_embd.weight", 1, (40, 64), bytes(40 * 64 * 2))
    for name in ("a", "b"):  # as many as there are layers
        writer.tensor(name, 0, (1, 1), bytes(4))
    path = writer.save(tmp_path / "m.gguf")
    wanted = transformers.AutoConfig.from_pretrained(tmp_path, gguf_file="m.gguf").to_dict()
    own = config_settings(GGUFFile(path))
    found = getattr(transformers, CLASSES[architecture][0])(**own).to_dict()
    for name in (*own, "rope_parameters", "model_type"):
        if name in wanted and name not in ("attention_bias", "head_dim", "architectures"):
            assert found[name] == pytest.approx(wanted[name]), name
    assert found["tie_word_embeddings"]
    assert found["head_dim"] == 32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"llama.block_count": None}, "llama.block_count: got None"),
        ({"llama.block_count": 2**31}, "llama.block_count: got 2147483648"),
        ({"llama.block_count": 99}, "llama.block_count: got 99, more than tensors"),
        ({"llama.attention.head_count": 0}, "llama.attention.head_count: got 0"),
        ({"llama.rope.scaling.type": "yarn"}, "rope.scaling.type: got 'yarn'"),
    ],
)
def test_wrong_metadata_is_named(change, message):
    file = GGUFFile(LLAMA)
    file.metadata.update(change)
    with pytest.raises(ValueError, match=message):
        config_settings(file)


def test_linear_scaling_of_positions():
    file = GGUFFile(LLAMA)
    file.metadata |= {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    assert config_settings(file)["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}


class Writer:
    """A GGUF file, field by field."""

    def __init__(self, architecture: str = "llama") -> None:
        self.fields: list[bytes] = []
        self.tensors: list[tuple[bytes, bytes]] = []
        self.text("general.architecture", architecture)
        self.number(f"{architecture}.attention.head_count", 2)

    @staticmethod
    def string(text: str) -> bytes:
        return struct.pack("<Q", len(text)) + text.encode()

    def text(self, key: str, value: str) -> None:
        self.fields.append(self.string(key) + struct.pack("<I", 8) + self.string(value))

    def number(self, key: str, value: int) -> None:
        self.fields.append(self.string(key) + struct.pack("<II", 4, value))

    def real(self, key: str, value: float) -> None:
        self.fields.append(self.string(key) + struct.pack("<If", 6, value))

    def tensor(self, name: str, kind: int, shape: tuple[int, ...], data: bytes) -> None:
        offset = sum(len(data) + -len(data) % 32 for _, data in self.tensors)
        info = self.string(name) + struct.pack("<I", len(shape))
        info += struct.pack(f"<{len(shape)}Q", *reversed(shape)) + struct.pack("<IQ", kind, offset)
        self.tensors.append((info, data))

    def save(self, path: Path) -> Path:
        header = b"GGUF" + struct.pack("<IQQ", 3, len(self.tensors), len(self.fields))
        header += b"".join(self.fields) + b"".join(info for info, _ in self.tensors)
        body = b"".join(data + b"\0" * (-len(data) % 32) for _, data in self.tensors)
        path.write_bytes(header + b"\0" * (-len(header) % 32) + body)
        return path


@pytest.mark.parametrize("kind", ["Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"])
def test_other_types_are_expanded_by_gguf_and_rounded(kind, tmp_path):
    gguf = pytest.importorskip("gguf", reason="expands these types")
    number = gguf.GGMLQuantizationType[kind]
    size = gguf.GGML_QUANT_SIZES[number][1] * (512 // gguf.GGML_QUANT_SIZES[number][0])
    random = np.random.default_rng(0)
    raw = random.integers(0, 60, (8, size), np.uint8)  # float16 scales of it are small and finite
    writer = Writer()
    writer.tensor("blk.3.ffn_up.weight", int(number), (8, 512), raw.tobytes())
    (entry,) = read(writer.save(tmp_path / "m.gguf"))
    expected = torch.from_numpy(gguf.dequantize(raw, number))
    assert entry.name == "model.layers.3.mlp.up_proj.weight"
    assert isinstance(entry.value, Int8)
    assert entry.value.group_size == 32
    assert 0 < entry.error < 0.02
    assert relative_error(entry.value.dequantize(), expected) == pytest.approx(entry.error, 1e-3)


def test_q8_0_with_a_negative_scale(tmp_path):
    writer = Writer()
    scale = np.array([-0.5], np.float16).tobytes()
    values = np.arange(-16, 16, dtype=np.int8)
    writer.tensor("output.weight", 8, (1, 32), scale + values.tobytes())
    (entry,) = read(writer.save(tmp_path / "m.gguf"))
    assert entry.error == 0
    assert entry.value.dequantize()[0].tolist() == (values * -0.5).tolist()


def test_files_of_a_folder(tmp_path):
    (tmp_path / "m.gguf").write_bytes(LLAMA.read_bytes())
    assert len(list(read(tmp_path))) == len(list(read(LLAMA)))


def test_rope_factors_divide_the_frequencies(tmp_path):
    writer = Writer()
    writer.tensor("rope_freqs.weight", 0, (2,), np.array([1, 8], np.float32).tobytes())
    file = GGUFFile(writer.save(tmp_path / "m.gguf"))
    model = torch.nn.Module()
    model.register_buffer("inv_freq", torch.tensor([1.0, 0.5]), persistent=False)
    _apply_rope_factors(model, file)
    assert model.inv_freq.tolist() == [1, 0.0625]
    assert list(read(file.path)) == []
    model.register_buffer("inv_freq", torch.ones(3), persistent=False)
    with pytest.raises(ValueError, match=r"'rope_freqs.weight': got shape \[2\], wanted \[3\]"):
        _apply_rope_factors(model, file)


def one_tensor(name="output.weight", kind=0, shape=(2, 32), data=bytes(256)) -> Writer:
    writer = Writer()
    writer.tensor(name, kind, shape, data)
    return writer


@pytest.mark.parametrize(
    ("writer", "message"),
    [
        (one_tensor(name="blk.0.ssm_a.weight"), "'blk.0.ssm_a.weight': this tensor is not one of"),
        (one_tensor(name="blk.0.attn_q.scale"), "this tensor is not one of the Llama family"),
        (one_tensor(kind=2, shape=(2, 33)), r"'output.weight': got shape \[2, 33\] for Q4_0"),
        (one_tensor(kind=99), "'output.weight': got ggml type 99"),
        (one_tensor(shape=(2**40, 2**40)), "'output.weight': .* does not fit into the"),
        (one_tensor(shape=(0, 32)), r"'output.weight': got shape \[0, 32\]"),
        (one_tensor(shape=(1, 1, 1, 1, 1)), "'output.weight': got 5 dimensions"),
        (one_tensor(kind=8, shape=(1, 32), data=b"\0\x7c" + bytes(32)), "scales: some are .*inf"),
        (one_tensor(name="blk.0.attn_q.weight", shape=(3, 32), data=bytes(384)), "3 rows for 2 h"),
    ],
)
def test_wrong_tensors_are_named(writer, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        list(read(writer.save(tmp_path / "m.gguf")))


def test_other_architectures_are_refused(tmp_path):
    writer = one_tensor()
    writer.fields = []
    writer.text("general.architecture", "mamba")
    with pytest.raises(ValueError, match=r"architecture: got 'mamba', wanted one of llama"):
        list(read(writer.save(tmp_path / "m.gguf")))


def test_the_same_tensor_twice(tmp_path):
    writer = one_tensor()
    writer.tensor("output.weight", 0, (2, 32), bytes(256))
    with pytest.raises(ValueError, match=r"'output.weight': is there twice"):
        list(read(writer.save(tmp_path / "m.gguf")))


def field(kind: int, value: bytes) -> bytes:
    return Writer.string("key") + struct.pack("<I", kind) + value


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (field(8, struct.pack("<Q", 2**63)), "bytes are missing"),
        (field(9, struct.pack("<IQ", 0, 2**62)), "bytes are missing"),
        (field(9, struct.pack("<IQ", 8, 2**62)), "is damaged or truncated"),
        (field(9, struct.pack("<IQ", 9, 2)), "an array of type 9"),
        (field(77, b""), "a value of type 77"),
        (field(8, struct.pack("<Q", 1) + b"\xff"), "is damaged or truncated: 'utf-8'"),
    ],
)
def test_hostile_metadata(fields, message, tmp_path):
    writer = Writer()
    writer.fields.append(fields)
    path = writer.save(tmp_path / "m.gguf")
    with pytest.raises(ValueError, match=message):
        list(read(path))


def test_hostile_counts_and_versions(tmp_path):
    good = LLAMA.read_bytes()
    path = tmp_path / "m.gguf"
    huge = struct.pack("<Q", 2**63)
    for bad in (
        b"",
        b"GGUF",
        b"GGML" + good[4:],
        good[:4] + struct.pack("<I", 9) + good[8:],
        good[:8] + huge + good[16:],
        good[:16] + huge + good[24:],
    ):
        path.write_bytes(bad)
        with pytest.raises(ValueError, match=r"m\.gguf: "):
            list(read(path))


def test_a_truncated_file_is_refused(tmp_path):
    good = LLAMA.read_bytes()
    path = tmp_path / "m.gguf"
    for length in [*range(0, 1200, 37), *range(1200, len(good) - 32, 997)]:
        path.write_bytes(good[:length])
        with pytest.raises(ValueError, match=r"m\.gguf: "):
            list(read(path))
