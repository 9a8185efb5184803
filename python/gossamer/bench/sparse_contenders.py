"""Who runs in ``gossamer bench sparse``: our formats, sparse and dense, and others' products."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from gossamer.bench.harness import Contender
from gossamer.bench.peers import deepsparse
from gossamer.bench.peers.peer import Array
from gossamer.bench.peers.torch_csr import CsrLinear
from gossamer.bench.sparse_cases import Case, Point
from gossamer.bench.sparse_weights import PrunedWeight, draw_input
from gossamer.bench.worker import Prepare, Run
from gossamer.schemes import SCHEMES

TORCH_FP32 = "torch-fp32"
# The peers; all are compared with torch's float32.
PEERS = (TORCH_FP32, "torch-bf16", "torch-csr", "deepsparse-fp32", "deepsparse-int8")
COMPRESSED = "compressed-"  # before a scheme: what compress() makes of the layer
SPARSE = "sparse-"  # before the scheme that a sparse one is compared with
# After a sparse scheme and "/": how it is multiplied, and what it is packed for.
PARTS_OF_PATH: Mapping[str, tuple[str, ...]] = {
    "gemv": ("bitmask",),
    "expand": ("bitmask",),
    "spmm": ("spmm",),
}
HELD_TORCH: Mapping[str, Mapping[str, str]] = {
    "avx2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
    }
}

MakeLayer = Callable[[Array], torch.nn.Module]


@dataclass(frozen=True)
class Ours:
    """What the name of a contender of ours means: ``[compressed-]scheme[/path]``."""

    scheme: str
    compressed: bool = False
    path: str = ""

    @classmethod
    def parse(cls, name: str) -> Ours | None:
        """The meaning of ``name``; None where it is none of ours."""
        rest, _, path = name.partition("/")
        scheme = rest.removeprefix(COMPRESSED)
        forced = path in PARTS_OF_PATH and rest.startswith(SPARSE)
        if scheme not in SCHEMES or ("/" in name and not forced):
            return None
        return cls(scheme, rest != scheme, path)

    @property
    def twin(self) -> str:
        """The dense contender of the same value type."""
        dense = self.scheme.removeprefix(SPARSE)
        return dense if dense in SCHEMES else TORCH_FP32


@dataclass(frozen=True)
class Entrant:
    """A contender of a case; ``twin`` is the dense one it is compared with, maybe itself.

    ``absent`` says why it cannot run. ``build(**arguments)`` is as ``harness.Contender`` wants it,
    with a ``Point`` as its case. ``stored_bytes`` tells what a weight takes, where that is known,
    and ``read_bytes`` what of it a product with one row reads; ``calls`` how many products one of
    its calls makes.
    """

    name: str
    twin: str
    build: Callable[..., Prepare]
    arguments: Mapping[str, Any]
    stored_bytes: Callable[[Array], int] | None = None
    read_bytes: Callable[[Array], int] | None = None
    calls: Callable[[Point], int] = lambda point: 1
    environment: Mapping[str, str] = field(default_factory=dict)
    absent: str | None = None

    @property
    def contender(self) -> Contender:
        """It, for the harness."""
        return Contender(self.name, self.build, self.arguments, self.environment)


def choose(case: Case, deepsparse_python: str | None = None) -> list[Entrant]:
    """The contenders of a case, twins included, each held to the instruction set of the case.

    Raises
    ------
    ValueError
        For an unknown contender or instruction set, or a forced path in a cold case: copies of a
        layer choose theirs again.
    """
    if case.cold_gib and any("/" in name for name in case.contenders):
        raise ValueError(f"bench sparse: {case.name!r}: no path can be forced in a cold case")
    names = list(dict.fromkeys(twin_of(name) for name in case.contenders))
    names += [name for name in dict.fromkeys(case.contenders) if name not in names]
    entrants = [_entrant(name, deepsparse_python) for name in names]
    return [_held(entrant, case.isa) for entrant in entrants] if case.isa else entrants


def twin_of(name: str) -> str:
    """The dense contender that ``name`` is compared with; a dense one of ours is its own.

    Raises
    ------
    ValueError
        For an unknown name.

    Examples
    --------
    >>> twin_of("compressed-sparse-int4"), twin_of("sparse-fp32/spmm"), twin_of("int8")
    ('int4', 'torch-fp32', 'int8')
    """
    if name in PEERS:
        return TORCH_FP32
    ours = Ours.parse(name)
    if ours is None:
        raise ValueError(
            f"bench sparse: {name!r} is no contender; there are {', '.join(PEERS)}, and schemes "
            f"such as sparse-int8, {COMPRESSED}sparse-int8 and sparse-fp32/spmm"
        )
    return ours.twin


def build_layer(name: str) -> Prepare:
    """Contender: a layer made of the weight of each point, see ``layer_maker``."""
    make = layer_maker(name)
    made: dict[PrunedWeight, torch.nn.Module] = {}  # points of one weight follow each other

    def prepare(point: Point) -> Run:
        if point.weight not in made:
            made.clear()
            with torch.inference_mode(False):
                made[point.weight] = make(point.weight.draw())
        layer = made[point.weight]
        x = torch.from_numpy(draw_input(point.M, point.weight.K)).to(input_dtype(name))
        if not point.cold_bytes:
            return lambda: layer(x)
        layers = itertools.cycle(copies(layer, point.cold_bytes))
        return lambda: next(layers)(x)

    return prepare


def build_deepsparse(kind: deepsparse.Kind, python: str) -> Prepare:
    """Contender: DeepSparse, run by its own interpreter."""
    engines: list[deepsparse.Engine] = []

    def prepare(point: Point) -> Run:
        while engines:
            engines.pop().end()
        x = draw_input(point.M, point.weight.K)
        engines.append(deepsparse.Engine(python, kind, point.weight.draw(), x))
        return engines[0].run

    return prepare


def layer_maker(name: str) -> MakeLayer:
    """What makes the layer of a contender that is a module: ours, torch's dense, torch's CSR."""
    if name == "torch-csr":
        return CsrLinear
    if name in PEERS:
        return lambda weight: _dense(weight, input_dtype(name))
    ours = Ours.parse(name)
    if ours is None:
        raise ValueError(f"layer_maker: name: {name!r} is no contender")
    return lambda weight: _our_layer(weight, ours)


def input_dtype(name: str) -> torch.dtype:
    """Of x and y: formats that round x, and those of float32, get it from a float32 model."""
    ours = Ours.parse(name)
    exact16 = name == "torch-bf16" or (ours is not None and ours.twin == "bf16")
    return torch.bfloat16 if exact16 else torch.float32


def copies(layer: torch.nn.Module, total_bytes: int) -> list[torch.nn.Module]:
    """As many layers as take ``total_bytes``, two at least, each with a memory of its own."""
    count = max(2, -(-total_bytes // layer_bytes(layer)))
    return [layer, *(copy.deepcopy(layer) for _ in range(count - 1))]


def layer_bytes(layer: torch.nn.Module) -> int:
    """Bytes of the weight of a layer as it is stored."""
    if isinstance(layer, CsrLinear):
        return layer.stored_bytes()
    packed = dict(layer.named_buffers()).get("packed")
    stored = packed if packed is not None else layer.get_parameter("weight")
    return stored.numel() * stored.element_size()


def bytes_for_one_row(layer: torch.nn.Module) -> int:
    """Bytes that one row needs: a sparse layer may hold another order of its values for many."""
    if str(getattr(layer, "format", "")).startswith("sparse-"):
        layer._pack_for(1)  # type: ignore[operator]
    return layer_bytes(layer)


def _our_layer(weight: Array, ours: Ours) -> torch.nn.Module:
    import gossamer as gs

    dense = _dense(weight, torch.float32)
    if ours.compressed:
        model = gs.compress(torch.nn.Sequential(dense), ours.scheme, progress=False)
        return model.get_submodule("0")
    layer = gs.nn.Linear.from_dense(dense, ours.scheme)
    if ours.path:
        sparse: Any = layer.quantized()
        layer.packed = sparse.pack(layer.activations, parts=PARTS_OF_PATH[ours.path])
        layer._handle = layer._new_handle()
        layer._handle.kernel.path = ours.path
    return layer


def _dense(weight: Array, dtype: torch.dtype) -> torch.nn.Linear:
    N, K = weight.shape
    layer = torch.nn.Linear(K, N, bias=False, dtype=dtype)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight))
    return layer.eval()


def _entrant(name: str, deepsparse_python: str | None) -> Entrant:
    if not name.startswith("deepsparse-"):
        make = layer_maker(name)
        return Entrant(
            name,
            twin_of(name),
            build_layer,
            {"name": name},
            stored_bytes=lambda weight: layer_bytes(make(weight)),
            read_bytes=lambda weight: bytes_for_one_row(make(weight)),
        )
    found = deepsparse.version(deepsparse_python) if deepsparse_python else None
    return Entrant(
        name,
        TORCH_FP32,
        build_deepsparse,
        {"kind": name.removeprefix("deepsparse-"), "python": deepsparse_python},
        calls=lambda point: deepsparse.calls_of_engine(point.M, point.weight.N, point.weight.K),
        absent=None if found else "not installed: --deepsparse wants the Python that has it",
    )


def _held(entrant: Entrant, isa: str) -> Entrant:
    from gossamer import _C

    if isa not in _C.isa_names():
        known = ", ".join(_C.isa_names())
        raise ValueError(f"bench sparse: isa: {isa!r} is unknown; there are {known}")
    if entrant.name not in PEERS:
        missing = isa not in _C.isa_available()
        absent = "not available on this processor" if missing else None
        return replace(entrant, environment={"GOSSAMER_ISA": isa}, absent=absent)
    if entrant.name.startswith("torch-"):
        return replace(entrant, environment=HELD_TORCH.get(isa, {}))
    return entrant
