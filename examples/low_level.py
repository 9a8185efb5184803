"""Kernels by hand, on numpy arrays: an int4 weight, every instruction set, its bytes and codes."""

from __future__ import annotations

import numpy as np

import gossamer as gs

M, N, K, G = 4, 512, 1024, 64


def main() -> None:
    """Quantize, pack, multiply on each instruction set, and take the bytes apart."""
    rng = np.random.default_rng(0)
    W = rng.standard_normal((N, K), dtype=np.float32)
    x = rng.standard_normal((M, K), dtype=np.float32)

    weight = gs.formats.Int4.quantize(W, group_size=G)  # canonical tensors: codes and scales
    print(f"{weight.bits_per_weight:.2f} bits a weight, {weight.nbytes} bytes packed")
    multiply(x, W, weight)
    round_rows(x, weight)
    unpack_by_hand(weight)


def multiply(x: np.ndarray, W: np.ndarray, weight: gs.formats.Int4) -> None:
    """The same packed bytes on every instruction set of this machine."""
    exact = x.astype(np.float64) @ W.T.astype(np.float64)
    for activations in ("int8", "exact"):
        packed = gs.kernels.pack(weight, activations)
        for isa in gs.cpu.available():
            y = gs.kernels.matmul(x, packed, isa=isa, threads=1)
            error = np.linalg.norm(y - exact) / np.linalg.norm(exact)
            print(f"activations {activations:5}  {isa:10}  relative error {error:.4f}")


def round_rows(x: np.ndarray, weight: gs.formats.Int4) -> None:
    """What the int8 lane does, in numpy: integers, one scale a row, one scale a group."""
    values, row_scales = gs.kernels.quantize_rows(x)
    codes = codes_of(weight).reshape(N, K // G, G) - 8
    sums = np.einsum("mgk,ngk->mng", values.reshape(M, K // G, G).astype(np.int64), codes)
    y = (sums * weight.scales.numpy().astype(np.float32)).sum(-1) * row_scales[:, None]
    kernel = gs.kernels.matmul(x, weight)
    # Without kernels that take the codes as they are, groups share one scale: docs/numerics.md.
    assert np.linalg.norm(y - kernel) < 0.02 * np.linalg.norm(y)
    print(f"numpy and the kernel differ by at most {np.abs(y - kernel).max():.1e}")


def unpack_by_hand(weight: gs.formats.Int4) -> None:
    """Where the code of W[n, k] lies in the packed bytes: docs/format-int4.md."""
    packed = weight.pack().numpy()
    n, k = 17, 69
    panels = 64 + N * (K // G) * 2  # after the header and the scales, float16
    byte = packed[panels + n // 16 * 8 * K + k // 8 * 64 + n % 16 * 4 + k % 4]
    code = byte >> 4 if k // 4 % 2 else byte & 15
    assert code == codes_of(weight)[n, k]
    print(f"the code of W[{n}, {k}] is {code}: {gs.kernels.codebook('int4')['value'][code]:+.0f}")
    assert (gs.kernels.unpack(packed).codes == weight.codes).all()


def codes_of(weight: gs.formats.Int4) -> np.ndarray:
    """The codes 0 to 15 of the canonical tensor [N, K / 2], one a byte: [N, K]."""
    pairs = weight.codes.numpy()
    return np.stack([pairs & 15, pairs >> 4], axis=-1).reshape(N, K).astype(np.int64)


if __name__ == "__main__":
    main()
