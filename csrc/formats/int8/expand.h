// Kernels that expand panels of int8 values into panels of the f32 and bf16 lanes (lane.h), for exact activations.
//
//   to_f32:   out[k][column]        = values[k/4][column][k%4] * scales[column]
//   to_bf16:  out[k/2][column][k%2] = bf16( the same )                                  to nearest even
//
// Without scales the values themselves, exact in both.
#pragma once
#include <cstdint>

#include "gossamer/isa.h"

namespace gossamer {

struct Int8Expand {
    const int8_t* values;
    int64_t lines;        // of 4 k x 16 columns
    const float* scales;  // [16], or null
};

struct Int8ExpandKernels {
    Isa isa;
    void (*to_f32)(const Int8Expand& run, float* out);
    void (*to_bf16)(const Int8Expand& run, uint16_t* out);
};

}  // namespace gossamer
