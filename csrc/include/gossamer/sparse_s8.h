// Kernels that read sparse int8 and int4 weights (format_sparse.h) for the s8 lane: expanded into panels, or multiplied as they are read.
#pragma once
#include <cstdint>

#include "gossamer/format_sparse.h"
#include "gossamer/s8.h"

namespace gossamer {

// One panel for few rows, int8 values:  c[m,n] = init[n] + sum_k u[m,k] * w[n,k]     as S8Block (s8.h), exact
struct SparseS8Rows {
    SparseLines b;
    const uint8_t* a;  // a panel of A, at the first of the rows, from k = 0
    int64_t panel_rows;
    int64_t M;            // 1 to max_rows, all in that panel
    const int32_t* init;  // [16]
    int32_t* c;           // [M][32]
};

// One panel for few rows, codes of 4 bits, a scale per group:
//
//   sum[m,n] = sum_g scales[g,n] * float( a_sums[m,g] + sum_{k in g} q[m,k] * code[n,k] )      in the order of g, as U4Block (u4.h)
//
// with code = 8 where nothing is stored, and a_sums = -8 * sum of q over the group.
struct SparseU4Rows {
    SparseLines b;    // lines of 64 codes
    const int8_t* a;  // q, not q + 128
    int64_t panel_rows;
    int64_t M;
    const int32_t* a_sums;  // [M][groups]
    const float* a_scales;  // [M][groups], or null: 1
    int64_t groups, group_k;
    const void* scales;  // [groups][16]
    ScaleType scale_type;
    float* sum;  // [M][32]
};

struct SparseS8Kernels {
    Isa isa;
    // Lines to lines of the s8 panel.
    void (*expand_bytes)(const SparseLines& b, int8_t* out);
    // Pairs of lines to lines of the four-bit panel (format_four_bit.h), code 8 where nothing is stored.
    void (*expand_codes)(const SparseLines& b, uint8_t* out);
    int64_t max_rows;  // above, expanding once is faster; 0: no such kernels
    void (*run_int8)(const SparseS8Rows& rows);
    void (*run_int4)(const SparseU4Rows& rows);
};

}  // namespace gossamer
