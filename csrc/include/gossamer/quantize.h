// Quantization of activations, per row or per group of k in a row, into the A panels of the s8 lane.
//
//   scale[m] = amax[m] / 127,  amax[m] = max_k |x[m,k]|
//   q[m,k]   = round_half_even( x[m,k] * (127 / amax[m]) )                    in [-127, 127]
//
// and with groups of G the same for each group of a row on its own: scale[m,g], amax[m,g] over k in [g * G, g * G + G). Below, a row is
// then a group of a row.
//
// With an input scale, which is found ahead of time, all rows have that one, and larger values are clamped:
//
//   scale[m] = input_scale
//   q[m,k]   = clamp( round_half_even( x[m,k] * (1 / input_scale) ), -127, 127 )
//
// x is [M, K] in f32, bf16 or f16, unit stride along K. Stored is u = q + 128, unsigned, because VPDPBUSD multiplies unsigned by
// signed; the 128 * sum_k w[n,k] this adds to every sum is taken back by the accumulator's initial value (format_int8.h).
//
// A panels, `panel_rows` (R <= 16) rows each, K padded to a multiple of 64 with q = 0:
//
//     panel p: [K/64][R rows][64 k]        one 64-byte line holds 64 consecutive k of one row;
//                                          16 of them in sequence are one AMX tile, contiguous
//
// R = min(M, 16), so that one row is contiguous when M = 1. With R = 1 the layout is a plain row.
//
// Special rows: a NaN or an infinity gives q = 0 and scale = NaN, so the whole output row is NaN, never a silent number. Without an input
// scale a row of zeros gives zeros and scale 0, and so does a group in the padding of K.
// Rows so small that 127 / amax overflows are multiplied by 2^100 first (exact); so is x where input_scale < 2^-100, and what overflows
// then is clamped as it would be without.
// Rounding error: |x - scale * q| <= scale / 2 * (1 + 2^-14): three fp32 roundings of up to 127 steps; below
// amax = 2^-119 the scale itself is subnormal, and coarser.
// Two passes: the first reads x from memory, the second finds the row in L1 (K <= 8192 for f32) and writes a quarter of it. With an input
// scale there is one.
#pragma once
#include <cstdint>

#include "gossamer/dtype.h"
#include "gossamer/isa.h"
#include "gossamer/lane.h"

namespace gossamer {

inline constexpr int64_t kChunk = 64;  // k per line of an A panel (lane.h); K is padded to it

constexpr int64_t padded_k(int64_t K) { return (K + kChunk - 1) / kChunk * kChunk; }

struct QuantizeRows {
    const void* x;
    DType x_dtype;
    int64_t x_row_stride;  // elements
    int64_t first_row, last_row, K;
    int64_t panel_rows;
    uint8_t* panels;        // the panel of row 0
    float* scale;           // [M][groups], indexed by row; groups = ceil(padded_k(K) / group_k), or 1
    int64_t group_k = 0;    // 16, 32 or a multiple of 64; 0: one scale for a row
    float input_scale = 0;  // > 0: of all rows, group_k being 0
};

struct QuantizeKernels {
    Isa isa;
    void (*run)(const QuantizeRows& rows);
};

}  // namespace gossamer
