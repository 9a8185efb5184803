// Kernels that widen panels of the bf16 lane to panels of the f32 lane (lane.h).
//
//   out[k][column] = float(panel[k/2][column][k%2])          bit for bit
#pragma once
#include <cstdint>

#include "gossamer/isa.h"

namespace gossamer {

struct Bf16ExpandKernels {
    Isa isa;
    void (*to_f32)(const uint16_t* panel, int64_t pairs, float* out);
};

}  // namespace gossamer
