// The kernel of column_stats.h, written once over the vector type of simd/<isa>.h; each <isa>.cpp includes that, then this.
#pragma once
#include "../simd/load_as.h"
#include "gossamer/column_stats.h"

namespace gossamer {
namespace {

// Columns side by side, so that the chains of additions overlap: 4 x 4 sums, of 32 registers with AVX-512; AVX2 has 16 for 2 x 4.
constexpr int64_t kVectors = Vec::width == 16 ? 4 : 2;

// One running value for each column of a strip of `vectors`, of which only the first `columns` are stored.
template <int64_t vectors>
struct Strip {
    Vec sum[vectors], squares[vectors], low[vectors], high[vectors];
};

template <int64_t vectors, class T>
void add_rows(Strip<vectors>& strip, const T* x, int64_t rows, int64_t row_stride, int64_t columns) {
    for (int64_t i = 0; i < vectors; ++i) strip.sum[i] = strip.squares[i] = broadcast(0.0f);
    for (int64_t m = 0; m < rows; ++m, x += row_stride) {
#pragma GCC unroll 4
        for (int64_t i = 0; i < vectors; ++i) {
            // Only a strip of one vector may be narrower than that.
            const Vec v = vectors > 1 || columns == Vec::width ? load_as(x + i * Vec::width) : load_tail(x, columns);
            strip.sum[i] = strip.sum[i] + v;
            strip.squares[i] = multiply_add(v, v, strip.squares[i]);
            strip.low[i] = minimum(v, strip.low[i]);  // the second where v is NaN
            strip.high[i] = maximum(v, strip.high[i]);
        }
    }
}

// Columns first to first + columns, a strip or, with one vector, part of one.
template <int64_t vectors, class T>
void add_strip(const ColumnStats& stats, int64_t first, int64_t columns) {
    constexpr int64_t width = vectors * Vec::width;
    float sum[width], squares[width], low[width], high[width];
    for (int64_t c = 0; c < width; ++c) {
        low[c] = c < columns ? stats.low[first + c] : 0;
        high[c] = c < columns ? stats.high[first + c] : 0;
    }
    Strip<vectors> strip;
    for (int64_t i = 0; i < vectors; ++i) {
        strip.low[i] = load(low + i * Vec::width);
        strip.high[i] = load(high + i * Vec::width);
    }
    const T* x = static_cast<const T*>(stats.x) + first;
    for (int64_t m = 0; m < stats.M; m += kStatsRows) {
        const int64_t rows = stats.M - m < kStatsRows ? stats.M - m : kStatsRows;
        add_rows(strip, x + m * stats.row_stride, rows, stats.row_stride, columns);
        for (int64_t i = 0; i < vectors; ++i) {
            store(sum + i * Vec::width, strip.sum[i]);
            store(squares + i * Vec::width, strip.squares[i]);
        }
        for (int64_t c = 0; c < columns; ++c) {
            stats.sum[first + c] += static_cast<double>(sum[c]);
            stats.squares[first + c] += static_cast<double>(squares[c]);
        }
    }
    for (int64_t i = 0; i < vectors; ++i) {
        store(low + i * Vec::width, strip.low[i]);
        store(high + i * Vec::width, strip.high[i]);
    }
    for (int64_t c = 0; c < columns; ++c) {
        stats.low[first + c] = low[c];
        stats.high[first + c] = high[c];
    }
}

template <class T>
void add_typed(const ColumnStats& stats, int64_t first, int64_t last) {
    constexpr int64_t wide = kVectors * Vec::width;
    for (; first + wide <= last; first += wide) add_strip<kVectors, T>(stats, first, wide);
    for (; first < last; first += Vec::width) add_strip<1, T>(stats, first, last - first < Vec::width ? last - first : Vec::width);
}

void add_columns(const ColumnStats& stats, int64_t first, int64_t last) {
    switch (stats.x_dtype) {
        case DType::f32: return add_typed<float>(stats, first, last);
        case DType::bf16: return add_typed<Bf16>(stats, first, last);
        case DType::f16: return add_typed<F16>(stats, first, last);
    }
}

}  // namespace
}  // namespace gossamer
