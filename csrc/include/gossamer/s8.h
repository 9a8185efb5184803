// The s8 lane: int8 x int8 -> int32. Geometry: lane.h.
//
//   c[m,n] = init[n] + sum_k u[m,k] * w[n,k]          u = q + 128 in [0, 255], w in [-128, 127], exact
//
// With init[n] = -128 * sum_k w[n,k] the result is sum_k q[m,k] * w[n,k] for every input, including w = -128.
// Range: |sum_k u w| <= 255 * 128 * K < 2^31 for K <= kMaxSumK = 65,536 (255 * 128 * 65,536 = 2,139,095,040), so int32 never wraps;
// longer K is cut into blocks of that size and the driver adds them in int64.
#pragma once
#include <cstdint>

#include "gossamer/lane.h"

namespace gossamer {

inline constexpr int64_t kMaxSumK = 65536;

using S8Block = LaneBlock<uint8_t, int8_t, int32_t>;

// All groups of a strip in one call, each sum scaled and added in fp32 registers:
//
//   sum[m,n] = sum_g float( init[g,n] + sum_{k in g} u[m,k] * w[n,k] ) * scales[g,n]          in the order of g
//
// Operands as in S8Block, at the first k; K is the whole row, padded.
struct S8GroupedBlock {
    static constexpr int64_t chunk = S8Block::chunk;

    const uint8_t* a;
    int64_t panel_rows;
    int64_t a_panel_stride;
    const int8_t* b;
    int64_t b_panel_stride;
    int64_t n_panels;
    int64_t M, K;
    int64_t group_k;      // 16, 32, or a multiple of 64; the last group may be shorter where K ends
    const int32_t* init;  // [groups], group_stride apart, at the strip's first column
    const float* scales;  // likewise
    int64_t group_stride;
    float* sum;  // [M][32]
};

struct S8Kernels : LaneKernels<S8Block> {
    // Null: the driver calls run for each group and adds the scaled sums in memory.
    void (*run_grouped)(const S8GroupedBlock& block);
};

}  // namespace gossamer
