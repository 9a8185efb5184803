// Passes over a dense matrix, of which a truncated SVD is made (gs.truncated_svd): products with a thin matrix on either side.
//
//   sketch      Y = W X                        Y[i,c] = sum_k W[i,k] X[k,c]
//   project     Z = W^T Y                      Z[k,c] = sum_i W[i,k] Y[i,c]
//   power_step  Y = W X, then Z = W^T Y        W is read from memory once
//
// W [m, n] is f32, bf16 or f16; X [n, l], Y [m, l] and Z [n, l] are fp32. All have unit stride along a row and any stride from row to row.
// m, n, l >= 1. Nothing past a row is read or written.
//
// Lanes (lane.h): f32 multiplies W widened exactly; bf16 multiplies W, X and, in W^T Y, Y rounded to nearest even to bf16. It takes what
// bf16 takes: 3e38 becomes infinity, and denormal inputs, products and sums count as zero. NaN and infinities propagate as in any sum.
//
// Sums: fp32 in Y. In project fp32 within kProjectRows = 256 rows, fp64 across them, rounded once. In power_step Z is summed in fp32 within
// chunks of rows, in fp64 across them. What is summed in which order follows from the shapes alone, so the number of threads changes no
// bit.
//
// Error, with u = 2^-24, v = 2^-7 + 2^-16 in the bf16 lane (both factors rounded to bf16) and 0 in the f32 lane, entry by entry:
//
//   |Y - W X|    <= (2 n u + v) |W| |X|
//   |Z - W^T Y|  <= (2 s u + v) |W|^T |Y|      of the Y that is returned; s = 256 in project, rows of a chunk in power_step
//
// plus rounding the result to fp32, and flushed denormals (2^-126 each, bf16 lane). Source: Halko, Martinsson, Tropp, "Finding structure
// with randomness" (2011), sections 4.4 and 4.5, whose power iteration these are the half-steps of.
#pragma once
#include <cstdint>

#include "gossamer/dtype.h"
#include "gossamer/isa.h"

namespace gossamer {

enum class SvdLane : int { f32, bf16 };

inline constexpr int64_t kProjectRows = 256;

struct SvdPass {
    const void* W;
    DType w_dtype;
    int64_t m, n, w_row_stride;  // elements
    int64_t l;
    const float* X;
    int64_t x_row_stride;
    float* Y;  // read by project, written by the others
    int64_t y_row_stride;
    float* Z;
    int64_t z_row_stride;
    SvdLane lane;
    Isa isa;
    int threads;
};

// Whether this lane exists up to this ISA on this machine: f32 always does.
bool svd_has_lane(SvdLane lane, Isa isa);

// These throw std::invalid_argument where the lane does not exist.
void sketch(const SvdPass& pass);      // W, X -> Y
void project(const SvdPass& pass);     // W, Y -> Z
void power_step(const SvdPass& pass);  // W, X -> Y, Z

}  // namespace gossamer
