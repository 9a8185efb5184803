// Kernels that expand fp8 codes that share one scale into panels of the f32 and bf16 lanes (lane.h).
//
//   to_f32:   out[k][column]                     = value(code) * scale                        rounded once
//   to_bf16:  out[k/2][column][k%2]              = bf16( fp32(value(code) * scale) )          to nearest even
//
//   multiply: sums[m][column]            = sum_b scales[b] * sum_{k in block b} a[m,k] * value(code)      products and sums as bf16.h says
//
// Codes lie as format_fp8.h says, a line of 64 being 4 k of 16 columns. Every ISA gives the same bits, NaN too, unless the scale is a NaN.
#pragma once
#include <cstdint>

#include "gossamer/format.h"

namespace gossamer {

struct Fp8Expand {
    FormatId format;
    const uint8_t* codes;
    int64_t lines;  // a multiple of 16
    float scale;
};

// Few rows of bf16 times one panel, straight from the codes: nothing is written in between, which at one row costs more than the products.
struct Fp8FewRows {
    FormatId format;
    const uint8_t* codes;  // of the panel
    int64_t K;             // a multiple of 32
    const float* scales;   // one per block
    int64_t block_k;       // a multiple of 32
    const uint16_t* a;     // a panel of A (lane.h), at the first row
    int64_t panel_rows;
    int64_t rows;  // 1 to Fp8Rows::max_rows
    float* sums;   // [rows][32], 16 of them
};

struct Fp8ExpandKernels {
    Isa isa;
    void (*to_f32)(const Fp8Expand& run, float* out);
    void (*to_bf16)(const Fp8Expand& run, uint16_t* out);
    void (*multiply)(const Fp8FewRows& product);  // null without the bf16 lane
};

}  // namespace gossamer
