// The s8 lane: int8 x int8 -> int32.
//
//   c[m,n] = init[n] + sum_k u[m,k] * w[n,k]          u = q + 128 in [0, 255], w in [-128, 127], exact
//
// With init[n] = -128 * sum_k w[n,k] the result is sum_k q[m,k] * w[n,k] for every input, including w = -128.
// Range: |sum_k u w| <= 255 * 128 * K < 2^31 for K <= kMaxSumK = 65,536 (255 * 128 * 65,536 = 2,139,095,040), so int32 never wraps;
// longer K is cut into blocks of that size and the driver adds them in int64.
//
// A: panels of quantize.h. B: panels of 16 columns,
//
//     panel j: [K/4][16 columns][4 k]      one 64-byte line = 16 columns x 4 k: a zmm for VPDPBUSD, two ymm for AVX2,
//                                          and 16 of them in sequence are an AMX tile (16 rows of 64 bytes)
//
// so one packed weight serves every x86 ISA. C: [M][32] int32, row-major, two panels side by side ("strip").
//
// A call multiplies up to block_rows rows by one strip over one K block. K is a multiple of 64, or 32 alone (groups of 32).
#pragma once
#include <cstdint>

#include "gossamer/epilogue.h"
#include "gossamer/isa.h"
#include "gossamer/quantize.h"

namespace gossamer {

inline constexpr int64_t kPanelColumns = 16;
inline constexpr int64_t kMaxSumK = 65536;

struct S8Block {
    const uint8_t* a;        // panel of the first row, at the first k
    int64_t panel_rows;      // R of quantize.h
    int64_t a_panel_stride;  // bytes from a panel to the next
    const int8_t* b;         // first panel of the strip, at the first k
    int64_t b_panel_stride;  // bytes from a panel to the next
    int64_t n_panels;        // 1 or 2
    int64_t M, K;
    const int32_t* init;  // [n_panels * 16], or null: c holds the sum of the K blocks before
    int32_t* c;           // [M rounded up to R][32]
};

// All groups of a strip in one call, each sum scaled and added in fp32 registers:
//
//   sum[m,n] = sum_g float( init[g,n] + sum_{k in g} u[m,k] * w[n,k] ) * scales[g,n]          in the order of g
//
// Operands as in S8Block, at the first k; K is the whole row, padded.
struct S8GroupedBlock {
    const uint8_t* a;
    int64_t panel_rows;
    int64_t a_panel_stride;
    const int8_t* b;
    int64_t b_panel_stride;
    int64_t n_panels;
    int64_t M, K;
    int64_t group_k;      // 32, 64 or 128; the last group may be 64 where K ends
    const int32_t* init;  // [groups], group_stride apart, at the strip's first column
    const float* scales;  // likewise
    int64_t group_stride;
    float* sum;  // [M][32]
};

struct S8Kernels {
    Isa isa;
    int64_t block_rows;  // rows of A per call, a multiple of 16: the A block stays in L2, the C block in L1/L2
    int64_t block_k;     // k per call, a multiple of 64: the strip of B stays in L1 where the kernel reads it once per panel of A
    void (*run)(const S8Block& block);
    // Null: the driver calls run for each group and adds the scaled sums in memory.
    void (*run_grouped)(const S8GroupedBlock& block);
    // Around a thread's work; null where there is nothing to do (AMX configures and releases its tiles).
    void (*begin)(int64_t panel_rows);
    void (*end)();
};

}  // namespace gossamer
