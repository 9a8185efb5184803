// Widening rows to fp32, written once over the vector type of simd/<isa>.h; each convert/<isa>.cpp includes that, then this.
// Contract: convert.h.
#pragma once
#include <cstdint>

#include "../simd/load_as.h"
#include "gossamer/convert.h"
#include "gossamer/f32.h"

namespace gossamer {
namespace {

// One row into lines of 16 floats, line_stride floats apart.
template <class T>
void widen_row(const T* x, int64_t K, float* line, int64_t line_stride) {
    constexpr int64_t w = Vec::width, chunk = F32Block::chunk;
    int64_t k = 0;
    for (; k + chunk <= K; k += chunk, line += line_stride) {
        for (int64_t j = 0; j < chunk; j += w) store(line + j, load_as(x + k + j));
    }
    if (k == K) return;
    for (int64_t j = 0; j < chunk; j += w) {
        const int64_t left = K - k - j;
        store(line + j, left >= w ? load_as(x + k + j) : left > 0 ? load_tail(x + k + j, left) : broadcast(0.0f));
    }
}

template <class T>
void widen_rows_of(const ConvertRows& rows) {
    constexpr int64_t chunk = F32Block::chunk;
    const int64_t R = rows.panel_rows, panel_stride = R * ((rows.K + chunk - 1) / chunk * chunk);
    for (int64_t m = rows.first_row; m < rows.last_row; ++m) {
        float* line = static_cast<float*>(rows.panels) + m / R * panel_stride + m % R * chunk;
        widen_row(static_cast<const T*>(rows.x) + m * rows.x_row_stride, rows.K, line, R * chunk);
    }
}

void widen_rows(const ConvertRows& rows) {
    switch (rows.x_dtype) {
        case DType::f32: return widen_rows_of<float>(rows);
        case DType::bf16: return widen_rows_of<Bf16>(rows);
        case DType::f16: return widen_rows_of<F16>(rows);
    }
}

}  // namespace
}  // namespace gossamer
