// The bf16 lane: bf16 x bf16 -> fp32, on instruction sets that have it (AVX512-BF16, AMX-BF16); elsewhere bf16 activations are widened,
// exactly, for the f32 lane. Geometry: lane.h.
//
// Numerics of the instructions: products are added in fp32, rounded to nearest even, in an order of their own (VDPBF16PS adds to the sum
// one by one, TDPBF16PS adds even and odd k apart); denormal inputs and results count as zero. Error: |c - exact| <= K * 2^-23 * sum_k
// |a||b|, plus the flushed denormals.
#pragma once
#include <cstdint>

#include "gossamer/lane.h"

namespace gossamer {

using Bf16Block = LaneBlock<uint16_t, uint16_t, float>;
using Bf16Kernels = LaneKernels<Bf16Block>;

}  // namespace gossamer
