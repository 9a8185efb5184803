// The u4 operand of the s8 lane: codes of 4 bits multiplied straight from memory, for few rows, where reading the weight is the whole cost.
//
//   sum[m,n] = sum_g scales[n,g] * float( sum_{k in g} q[m,k] * t[code[n,k]]  -  zero[n,g] * sum_{k in g} q[m,k] )      in the order of g
//
// and, where groups of x have scales of their own, a_scales[m,g] as one more factor.
//
// q in [-127, 127] is signed and t unsigned, because VPDPBUSD and VPMADDUBSW multiply unsigned by signed: so codes need no subtraction, and
// the zero point costs one product per group, with the sum of q that all columns share.
//
// A: panels of the s8 lane (lane.h) with q itself in place of q + 128, and minus the sum of q over each group, times `offset` where the
// zero point is the same everywhere:  a_sums [M][groups], int32. B: panels of format_four_bit.h.
//
// Range: t <= 255 and a group is at most K long, so |sum| <= 255 * 127 * K < 2^31 for K <= kMaxSumK.
#pragma once
#include <cstdint>

#include "gossamer/format.h"
#include "gossamer/s8.h"

namespace gossamer {

struct U4Block {
    static constexpr int64_t chunk = S8Block::chunk;

    const int8_t* a;
    int64_t panel_rows;
    int64_t a_panel_stride;
    const int32_t* a_sums;  // at row 0
    int64_t groups;         // of a row of a_sums
    const uint8_t* b;
    int64_t b_panel_stride;  // bytes
    int64_t n_panels;
    int64_t M, K;        // K padded to 64
    int64_t group_k;     // 16, 32 or a multiple of 64; the last group may be shorter where K ends
    const uint8_t* t;    // [16], or null: the code itself
    const void* scales;  // [n_panels][groups][16], at the strip's first panel
    ScaleType scale_type;
    const uint8_t* zero_points;       // likewise, or null: a_sums has the offset in it
    float* sum;                       // [M][32]
    const float* a_scales = nullptr;  // [M][groups], or null: 1
};

// Rows of quantized activations made ready for U4Block: q + 128 -> q in place, and the sums.
struct CenterRows {
    uint8_t* panels;
    int64_t panel_rows;
    int64_t first_row, last_row, K;  // K padded
    int64_t group_k, groups;
    int32_t offset;
    int32_t* sums;  // [M][groups]
};

struct U4Kernels {
    Isa isa;
    int64_t max_rows;  // above, expanding the codes to int8 once is faster
    int max_value;     // of a codebook whose products stay exact
    void (*run)(const U4Block& block);
    void (*center)(const CenterRows& rows);
};

}  // namespace gossamer
