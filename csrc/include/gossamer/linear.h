// A whole linear layer on the s8 lane.
//
//   y = activation( (Q(x) W^T) + bias + addend )        x [M, K], W [N, K] packed int8, y [M, N]; Q quantizes each row (quantize.h)
//
// Error against the exact product of the stored weight: |y - x W^T| <= sum_k |W[n,k]| * scale[m] / 2 from rounding x, plus fp32 rounding of
// the epilogue. Sums are exact integers, so the output is bit-identical for every thread count. Threads share the quantized x and split the
// grid of (rows x strips of 32 columns).
#pragma once
#include <cstdint>

#include "gossamer/epilogue.h"
#include "gossamer/format_int8.h"
#include "gossamer/isa.h"

namespace gossamer {

struct LinearCall {
    const void* x;
    DType x_dtype;
    int64_t M;
    int64_t x_row_stride;
    Int8Weight weight;
    Epilogue epilogue;
    int threads;
    Isa isa;
};

void linear(const LinearCall& call);

// The integer sums alone: out[m,n] = sum_k x[m,k] * values[n,k], x int8 [M, K], out int64 [M, N] contiguous. For tests and research.
struct AccumulateCall {
    const int8_t* x;
    int64_t M;
    int64_t x_row_stride;
    Int8Weight weight;
    int64_t* out;
    int threads;
    Isa isa;
};

void accumulate(const AccumulateCall& call);

}  // namespace gossamer
