// Kernels that expand fp8 codes that share one scale into panels of the f32 and bf16 lanes (lane.h).
//
//   to_f32:   out[k][column]                     = value(code) * scale                        rounded once
//   to_bf16:  out[k/2][column][k%2]              = bf16( fp32(value(code) * scale) )          to nearest even
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

struct Fp8ExpandKernels {
    Isa isa;
    void (*to_f32)(const Fp8Expand& run, float* out);
    void (*to_bf16)(const Fp8Expand& run, uint16_t* out);
};

}  // namespace gossamer
