// The Gram matrix of rows of activations, of which second moments are made (gossamer.calibration):
//
//   G = X^T X        G[i,j] = sum_t X[t,i] X[t,j]
//
// X [T, K] is f32, bf16 or f16, unit stride along a row, any stride from row to row; G [K, K] is fp32, contiguous, symmetric to the bit:
// only tiles that reach above the diagonal are multiplied, the rest is their mirror image. T, K >= 1. Nothing past a row is read.
//
// Lanes (lane.h): f32 multiplies X widened exactly; bf16 multiplies X rounded to nearest even to bf16, as which 3e38 is infinity and a
// denormal may be zero. NaN and infinities propagate as in any sum. Either G is positive semidefinite up to the rounding of its sums: the
// bf16 lane gives the Gram matrix of the rounded rows.
//
// Sums: fp32 over all T; more than a few thousand rows are better added up in fp64 by the caller. The order follows from the shape alone,
// so the number of threads changes no bit. Error, with u = 2^-24, v = 2^-7 + 2^-16 in the bf16 lane (two factors, each rounded by at most
// 2^-8 of itself) and 0 in the f32 lane, entry by entry:
//
//   |G - X^T X|  <= (2 T u + v) |X|^T |X|        v is the worst case: rounding errors of independent rows mostly cancel
#pragma once
#include <cstdint>

#include "gossamer/dtype.h"
#include "gossamer/isa.h"
#include "gossamer/svd.h"

namespace gossamer {

struct Gram {
    const void* x;
    DType x_dtype;
    int64_t T, K, row_stride;  // elements
    float* G;
    SvdLane lane;
    Isa isa;
    int threads;
};

// Throws std::invalid_argument where the lane does not exist (svd_has_lane).
void gram(const Gram& problem);

}  // namespace gossamer
