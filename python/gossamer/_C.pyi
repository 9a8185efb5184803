"""Types of the C++ extension. Pointers are integers, sizes are elements unless named ``_bytes``.

Nothing here checks tensors: ``_ops.py`` does, and is the only caller that turns tensors into
pointers. Dtype codes: 0 float32, 1 bfloat16, 2 float16. Activation codes: 0 none, 1 relu, 2 gelu,
3 gelu_tanh, 4 silu. Bag modes: 0 sum, 1 mean, 2 max. ``isa`` is a name of ``isa_available()``, or
"" for the active one.

Formats: "int8", "int4", "nf4", "fp4", "mxfp4", "fp8_e4m3", "fp8_e5m2", "bf16", "fp32".
Activations: "int8", "exact", "int8-group". Scale types: "float32", "bfloat16", "float16", "e8m0".
``group_size`` 0 is per channel; ``zero_points`` 0 is none. Canonical tensors are contiguous;
csrc/include/gossamer/format_*.h says how they lie.

Sparse formats: "sparse-int8", "sparse-int4", "sparse-bf16", "sparse-fp32". Patterns: "any", "1x4",
"1x16", "4x1", "16x1". Parts: "bitmask", "spmm". Paths: "auto", "gemv", "expand", "spmm".
"""

from typing import TypedDict

from typing_extensions import NotRequired

class PackedInfo(TypedDict):
    """What the header of a packed weight says."""

    format: str
    N: int
    K: int
    group_size: int
    activations: str
    scale_type: str
    zero_points: bool
    input_scale: float  # 0: each row of x has its own
    nnz: NotRequired[int]  # from here on sparse formats only
    pattern: NotRequired[str]
    parts: NotRequired[list[str]]
    value_bytes: NotRequired[int]
    rank: NotRequired[int]  # low-rank, and sums, of which the rest says what the base is

class Codebook(TypedDict):
    """What the 16 codes stand for; ``s8`` is ``value / unit + offset``, rounded."""

    value: list[float]
    s8: list[int]
    offset: int
    unit: float

def isa_names() -> list[str]: ...
def isa_available() -> list[str]: ...
def isa_active() -> str: ...
def isa_force(name: str) -> None: ...
def cpu_info() -> dict[str, str]: ...
def peak_instructions() -> list[str]: ...
def peak_ops(instruction: str, threads: int, seconds: float) -> float: ...
def read_bandwidth(buffer_bytes: int, threads: int, seconds: float) -> float: ...
def packed_info(packed: int, packed_bytes: int) -> PackedInfo: ...
def set_input_scale(packed: int, packed_bytes: int, input_scale: float) -> None: ...
def unpack(
    packed: int,
    packed_bytes: int,
    values: int,
    scales: int,
    zero_points: int,
    threads: int,
    mask: int = 0,
) -> None: ...
def int8_packed_bytes(N: int, K: int, group_size: int) -> int: ...
def int8_pack(
    values: int,
    scales: int,
    N: int,
    K: int,
    group_size: int,
    activations: str,
    packed: int,
    threads: int,
) -> None: ...
def four_bit_packed_bytes(
    format: str, N: int, K: int, group_size: int, scale_type: str, zero_points: bool
) -> int: ...
def four_bit_pack(
    format: str,
    codes: int,
    scales: int,
    zero_points: int,
    N: int,
    K: int,
    group_size: int,
    scale_type: str,
    activations: str,
    packed: int,
    threads: int,
) -> None: ...
def codebook(format: str) -> Codebook: ...
def int4_best_scales(
    W: int, N: int, K: int, row_stride: int, group_size: int, scales: int, threads: int
) -> None: ...
def int4_codes(
    W: int,
    N: int,
    K: int,
    row_stride: int,
    group_size: int,
    scales: int,
    zero_points: int,
    codes: int,
    threads: int,
) -> None: ...
def fp8_packed_bytes(N: int, K: int, group_size: int) -> int: ...
def fp8_pack(
    format: str,
    codes: int,
    scales: int,
    N: int,
    K: int,
    group_size: int,
    packed: int,
    threads: int,
) -> None: ...
def bf16_packed_bytes(N: int, K: int) -> int: ...
def bf16_pack(values: int, N: int, K: int, packed: int, threads: int) -> None: ...
def fp32_packed_bytes(N: int, K: int) -> int: ...
def fp32_pack(values: int, N: int, K: int, packed: int, threads: int) -> None: ...
def two_parts_bytes(first_bytes: int, second_bytes: int) -> int: ...
def packed_parts(packed: int, packed_bytes: int) -> list[tuple[int, int]]: ...
def low_rank_pack(
    V: int, V_bytes: int, U: int, U_bytes: int, packed: int, packed_bytes: int
) -> None: ...
def sum_pack(
    base: int,
    base_bytes: int,
    low_rank: int,
    low_rank_bytes: int,
    packed: int,
    packed_bytes: int,
) -> None: ...
def embedding(
    packed: int,
    packed_bytes: int,
    indices: int,
    count: int,
    out: int,
    out_dtype: int,
    threads: int,
) -> None: ...
def embedding_bag(
    packed: int,
    packed_bytes: int,
    indices: int,
    count: int,
    offsets: int,
    bags: int,
    sample_weights: int,
    mode: int,
    padding_idx: int,
    out: int,
    out_dtype: int,
    threads: int,
) -> None: ...
def quantize_rows(
    x: int,
    x_dtype: int,
    M: int,
    K: int,
    x_row_stride: int,
    group_size: int,
    values: int,
    scales: int,
    isa: str,
    input_scale: float = 0.0,
) -> None: ...

class SparseSource:
    """Canonical tensors of a sparse weight, checked when made; it does not own them.

    ``value_count``: how many values there are. ``scales`` 0: none.
    """

    def __init__(
        self,
        format: str,
        N: int,
        K: int,
        group_size: int,
        scale_type: str,
        activations: str,
        mask: int,
        values: int,
        value_count: int,
        scales: int,
    ) -> None: ...
    def best_pattern(self) -> str: ...
    def packed_bytes(self, pattern: str, parts: list[str]) -> int: ...
    def pack(
        self, pattern: str, parts: list[str], packed: int, packed_bytes: int, threads: int
    ) -> None: ...

class PackedLinear:
    """A view of one packed weight; it checks the header when made and does not own the bytes."""

    def __init__(self, packed: int, packed_bytes: int) -> None: ...
    @property
    def N(self) -> int: ...
    @property
    def K(self) -> int: ...
    @property
    def path(self) -> str:
        """How a sparse weight meets x; settable, and then a product that has no such way fails."""
    @path.setter
    def path(self, path: str) -> None: ...
    def path_of(self, M: int, x_dtype: int, isa: str) -> str: ...
    def dequantize(self, first_row: int, last_row: int, out: int, threads: int) -> None: ...
    def accumulate(
        self, x: int, M: int, x_row_stride: int, out: int, threads: int, isa: str
    ) -> None: ...
    def run(
        self,
        x: int,
        x_dtype: int,
        M: int,
        x_row_stride: int,
        bias: int,
        bias_dtype: int,
        activation: int,
        addend: int,
        out: int,
        out_dtype: int,
        threads: int,
        isa: str = "",
    ) -> None: ...

def svd_has_lane(lane: str, isa: str) -> bool: ...

class SvdPasses:
    """Passes over a dense W [m, n], which it does not own; lanes are "f32" and "bf16".

    X [n, l], Y [m, l] and Z [n, l] are float32; those without a row stride are contiguous.
    """

    def __init__(
        self,
        W: int,
        w_dtype: int,
        m: int,
        n: int,
        w_row_stride: int,
        lane: str,
        isa: str,
        threads: int,
    ) -> None: ...
    def sketch(self, l: int, X: int, x_row_stride: int, Y: int) -> None: ...
    def project(self, l: int, Y: int, y_row_stride: int, Z: int) -> None: ...
    def power_step(self, l: int, X: int, x_row_stride: int, Y: int, Z: int) -> None: ...

def add_column_stats(
    x: int,
    x_dtype: int,
    M: int,
    K: int,
    row_stride: int,
    sums: int,
    bounds: int,
    threads: int,
) -> None: ...
def gram(
    x: int, x_dtype: int, T: int, K: int, row_stride: int, G: int, bf16: bool, threads: int
) -> None: ...

class ObsRounding:
    """What weights may be rounded to (csrc/include/gossamer/obs.h).

    codes uint8 [K, rows]; scales and zeros float32 [groups, rows], groups int32 [K]; contiguous.
    """

    def set_grid(self, codes: int, scales: int, zeros: int, groups: int) -> None: ...
    def set_uniform(self, lowest: float, highest: float) -> None: ...
    def set_codebook(self, levels: int, thresholds: int, count: int) -> None: ...

class ObsColumns(ObsRounding):
    """The state of a column update (csrc/include/gossamer/obs.h), which it does not own.

    W and E are float32 [K, rows], loss float64 [rows], L float32 [K, K]; keep uint8 [K, rows]. All
    are contiguous.
    """

    def __init__(self, W: int, E: int, loss: int, rows: int, L: int, K: int) -> None: ...
    def set_mask(self, keep: int, n: int, m: int) -> None: ...
    def update(self, first: int, last: int, threads: int) -> None: ...

class ObsDescent(ObsRounding):
    """The state of a coordinate descent (csrc/include/gossamer/obs.h), which it does not own.

    E and levels are float32 [K, rows], H float32 [K, K], keep uint8 [K, rows] or 0; G float32
    [columns, rows]. All are contiguous.
    """

    def __init__(self, E: int, levels: int, keep: int, rows: int, H: int, K: int) -> None: ...
    def descend(self, G: int, first: int, last: int, threads: int) -> None: ...

class PackedConv:
    """A view of a packed convolution; it checks the headers when made and does not own the bytes.

    ``shape`` is that of csrc/include/gossamer/conv_kernels.h, from ``batch`` to ``dilation_w``; x
    and out are NHWC. ``input_scale`` 0 gives each sample its own.
    """

    def __init__(self, packed: int, packed_bytes: int, groups: int, depthwise: bool) -> None: ...
    @property
    def N(self) -> int: ...
    @property
    def K(self) -> int: ...
    def run(
        self,
        x: int,
        x_dtype: int,
        shape: list[int],
        input_scale: float,
        bias: int,
        bias_dtype: int,
        out: int,
        out_dtype: int,
        threads: int,
        isa: str = "",
    ) -> None: ...
