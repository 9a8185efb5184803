// The f32 lane: fp32 x fp32 -> fp32, fused where the instruction set can. Geometry: lane.h.
//
// Error: |c - exact| <= K * 2^-23 * sum_k |a||b|.
#pragma once
#include <cstdint>

#include "gossamer/lane.h"

namespace gossamer {

using F32Block = LaneBlock<float, float, float>;
using F32Kernels = LaneKernels<F32Block>;

}  // namespace gossamer
