// Expanding panels of 4-bit codes: the kernels, one set per ISA, and what they are given.
//
// All work on one panel of 16 columns, on whole lines of 64 bytes: 16 columns x 8 k of codes in, two int8 lines (or eight fp32 lines) out.
#pragma once
#include <cstdint>

#include "gossamer/format_four_bit.h"

namespace gossamer {

// One group (or what of it is wanted) of one panel, to int8.
struct FourBitGroup {
    const uint8_t* codes;
    int64_t lines;         // of codes
    const uint8_t* table;  // [16]: code to unsigned value (Codebook::s8), or null: the code itself
    const int16_t* zero;   // [16]: what is subtracted
    const int16_t* ratio;  // [16]
    int shift;
    int8_t* out;
    int32_t* sum;  // [16]: the sums of the values written are added
};

// The same to fp32: out[k][n] = (table[code] - zero[n]) * scale[n], k lines of 16 columns.
struct FourBitFloats {
    const uint8_t* codes;
    int64_t lines;
    const float* table;  // [16]
    const float* zero;   // [16]
    const float* scale;  // [16]
    float* out;
};

// Constants of the groups of one panel, from where they are packed to where a strip wants them: 32 columns apart.
struct FourBitScales {
    const void* packed;  // [groups][16]
    ScaleType type;      // f32, bf16 or f16
    int64_t groups;
    float* out;
};

struct FourBitKernels {
    Isa isa;
    void (*scales)(const FourBitScales& scales);
    // ratio = scale * per_step, rounded; [16]
    void (*ratios)(const float* scale, const float* per_step, int16_t* ratio);
    // out = table[code] - zero
    void (*values)(const FourBitGroup& group);
    // out = round( (table[code] - zero) * ratio / 2^(15 - shift) ), in [-127, 127] by the choice of the ratio
    void (*requantize)(const FourBitGroup& group);
    void (*floats)(const FourBitFloats& group);
};

}  // namespace gossamer
