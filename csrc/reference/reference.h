// What the kernels must compute, as plainly as it can be written: logical matrices instead of panels, int64 sums, fp64 arithmetic. The
// oracles of the tests; never dispatched to and not part of the library.
#pragma once
#include <cstdint>
#include <vector>

#include "gossamer/dtype.h"
#include "gossamer/epilogue.h"

namespace gossamer::reference {

// Element `index` of an array of `dtype`, exactly.
double load(const void* x, DType dtype, int64_t index);
// The nearest value of bf16 or f16 as bits, ties to even; NaN gives the quiet NaN without a payload.
uint16_t to_bf16(double x);
uint16_t to_f16(double x);

// q and scale of quantize.h for one row of K values.
struct QuantizedRow {
    std::vector<int8_t> q;
    float scale;
};
QuantizedRow quantize_row(const void* x, DType dtype, int64_t K);
QuantizedRow quantize_row_with(float input_scale, const void* x, DType dtype, int64_t K);

// out[m,n] = sum_k a[m,k] * w[n,k]; a is uint8 or int8 [M, K], w [N, K], contiguous.
std::vector<int64_t> multiply(const uint8_t* a, const int8_t* w, int64_t M, int64_t N, int64_t K);
std::vector<int64_t> multiply(const int8_t* a, const int8_t* w, int64_t M, int64_t N, int64_t K);

double activate(Activation activation, double x);

// The argument of the activation of a whole layer, and the sum of the absolute values of what was added up on the way to it.
struct Preactivation {
    double value, magnitude;
};
// values [K] and scales [groups] of one output channel; G = 0: one group. bias and addend already as numbers.
Preactivation preactivation(const QuantizedRow& x, const int8_t* values, const float* scales, int64_t G, double bias, double addend);
// The same for x [K] and one row of a dense weight [K], both as numbers.
Preactivation preactivation(const double* x, const double* w, int64_t K, double bias, double addend);

}  // namespace gossamer::reference
