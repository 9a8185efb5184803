// Rounding a dense weight to int4: scales of groups, and codes. What is stored is format_four_bit.h's.
//
// W [N, K] fp32, groups of G along K (one per row where G >= K), symmetric:
//
//   e[n,g]      = the entry of largest magnitude in the group, the negative one of two equals last
//   scale[n,g]  = s e / -8 with the s of 1, 0.9, 0.8, 0.7, 0.6 (the first of equals) that minimizes
//                 sum_k | scale * clamp(round(W[n,k] / scale), -8, 7) - W[n,k] |^3          a NaN or infinity in the group gives NaN
//   code[n,k]   = clamp( round(W[n,k] / scale) + zero_point, 0, 15 )                        zero_point 8 where there are none
//
// round is to nearest even. A scale of 0 divides as 1. s < 1 clips a few large weights and makes all steps finer. Cubes, as what is clipped
// is large: its share of a sum of squares is too small for what it does to a model (docs/format-int4.md). They add up in fp32 in 16 lanes,
// so two scales whose errors are equal to rounding may change places between ISAs; of weights below about 1e-11 they underflow, and s is 1.
#pragma once
#include <cstdint>

#include "gossamer/isa.h"

namespace gossamer {

// One row.
struct Int4Row {
    const float* w;  // [K]
    int64_t K, G;
};

struct RoundInt4Kernels {
    Isa isa;
    void (*best_scales)(const Int4Row& row, float* scales);  // [ceil(K / G)]
    // codes [ceil(K / 2)]: even k in the low half of a byte. zero_points null: 8.
    void (*codes)(const Int4Row& row, const float* scales, const uint8_t* zero_points, uint8_t* codes);
};

struct RoundInt4 {
    const float* W;
    int64_t N, K, row_stride, G;
    int threads;
};

// scales [N][groups]
void int4_best_scales(const RoundInt4& weight, float* scales);
// scales, zero_points (or null) [N][groups]; codes [N][ceil(K / 2)]
void int4_codes(const RoundInt4& weight, const float* scales, const uint8_t* zero_points, uint8_t* codes);

}  // namespace gossamer
