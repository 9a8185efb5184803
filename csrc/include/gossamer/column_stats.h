// Statistics of the columns of x, in one pass over it: what calibration adds up of the inputs of layers (gossamer.calibration). Torch
// takes one pass for each of them, and a temporary for the squares.
//
//   sum[k]     += sum_m x[m,k]
//   squares[k] += sum_m x[m,k]^2
//   low[k]      = min(low[k], min_m x[m,k])        high[k] = max(high[k], max_m x[m,k])
//
// x [M, K] is f32, bf16 or f16, unit stride along a row, any stride from row to row; M, K >= 0. Nothing past a row is read. The others are
// contiguous, [K].
//
// Sums are fp32 over kStatsRows rows and fp64 from there on, so that with u = 2^-24 the error of sum[k] is at most
// kStatsRows u sum_m |x[m,k]|, and that of squares[k] (kStatsRows + 1) u squares[k]. A square beyond fp32 is infinity. NaN and infinities
// propagate into sum and squares; low and high leave NaN out. Threads share the columns, so their number changes no bit.
#pragma once
#include <cstdint>

#include "gossamer/dtype.h"
#include "gossamer/isa.h"

namespace gossamer {

inline constexpr int64_t kStatsRows = 64;

struct ColumnStats {
    const void* x;
    DType x_dtype;
    int64_t M, K, row_stride;  // elements
    double *sum, *squares;
    float *low, *high;
};

struct ColumnStatsKernels {
    Isa isa;
    // Columns from first on; first is a multiple of 16.
    void (*add)(const ColumnStats& stats, int64_t first, int64_t last);
};

void add_column_stats(const ColumnStats& stats, Isa isa, int threads);

}  // namespace gossamer
