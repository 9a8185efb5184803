// One row of a packed weight as fp32, for each format: out[k] = W[n,k] for k < K, and anything up to K64. Layouts: format_*.h.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>

#include "formats/fp8/values.h"
#include "gossamer/linear.h"
#include "simd/scalar.h"

namespace gossamer {
namespace {

// Values of one column, four from each line of its panel, times a scale. They are first put side by side, for the compiler to convert
// sixteen at a time.
inline void read_column(const int8_t* panel, int64_t count, float scale, float* __restrict out) {
    constexpr int64_t kPiece = 256;
    int8_t values[kPiece];
    for (int64_t k = 0; k < count; k += kPiece) {
        const int64_t piece = std::min(kPiece, count - k);
        for (int64_t j = 0; j < piece; j += 4) std::memcpy(values + j, panel + (k + j) * kPanelColumns, 4);
        for (int64_t j = 0; j < piece; ++j) out[k + j] = static_cast<float>(values[j]) * scale;
    }
}

inline void read_row(const Int8Weight& weight, int64_t n, float* out) {
    const Int8Layout& l = weight.layout;
    const int64_t group_k = l.G == 0 ? l.K64 : l.G;
    const int8_t* panel = weight.panels + n / kPanelColumns * kPanelColumns * l.K64 + n % kPanelColumns * 4;
    for (int64_t g = 0; g < l.groups; ++g) {
        const float scale = weight.scales[g * l.N16 + n];
        const int64_t k = g * group_k, last = std::min(k + group_k, l.K64);
        read_column(panel + k * kPanelColumns, last - k, scale, out + k);
    }
}

inline float scale_at(const FourBitWeight& weight, int64_t i) {
    if (weight.scale_type == ScaleType::f32) return static_cast<const float*>(weight.scales)[i];
    const uint16_t* bits = static_cast<const uint16_t*>(weight.scales) + i;
    return (weight.scale_type == ScaleType::f16 ? load_f16(bits) : load_bf16(bits)).v;
}

inline void read_row(const FourBitWeight& weight, int64_t n, float* out) {
    const FourBitLayout& l = weight.layout;
    const Codebook& book = codebook(weight.format);
    const uint8_t* panel = weight.panels + n / kPanelColumns * (l.K64 / 8 * 64) + n % kPanelColumns * 4;
    for (int64_t g = 0; g < l.groups; ++g) {
        const int64_t i = (n / kPanelColumns * l.packed_groups + g) * kPanelColumns + n % kPanelColumns;
        const float scale = scale_at(weight, i);
        float value[16];  // of each code in this group
        for (int code = 0; code < 16; ++code) {
            value[code] = (weight.zero_points == nullptr ? book.value[code] : static_cast<float>(code - weight.zero_points[i])) * scale;
        }
        const int64_t last = std::min((g + 1) * l.group_k, l.K64);
        for (int64_t k = g * l.group_k; k < last; k += 8) {
            const uint8_t* line = panel + k / 8 * 64;
            for (int64_t j = 0; j < 4; ++j) {
                out[k + j] = value[line[j] & 15];
                out[k + 4 + j] = value[line[j] >> 4];
            }
        }
    }
}

inline void read_row(const Fp8Weight& weight, int64_t n, float* out) {
    const Fp8Layout& l = weight.layout;
    const uint16_t* magnitudes = fp8_magnitudes(weight.format);
    const float* scales = weight.scales + (l.G == 0 ? n : n / l.G * l.scale_columns);
    const int64_t column = n % kPanelColumns, group_k = l.G == 0 ? l.K64 : l.G;
    const uint8_t* panel = weight.panels + n / kPanelColumns * kPanelColumns * l.K64 + column / 4 * 16 + column % 4 * 2;
    for (int64_t g = 0; g < l.scale_columns; ++g) {
        const int64_t last = std::min((g + 1) * group_k, l.K64);
        for (int64_t k = g * group_k; k < last; k += 4) {
            const uint8_t* line = panel + k * kPanelColumns;
            for (int64_t j = 0; j < 4; ++j) out[k + j] = fp8_value(magnitudes, line[j / 2 * 8 + j % 2]) * scales[g];
        }
    }
}

inline void read_row(const Bf16Weight& weight, int64_t n, float* out) {
    const int64_t K64 = weight.layout.K64;
    const uint16_t* panel = weight.panels + n / kPanelColumns * kPanelColumns * K64 + n % kPanelColumns * 2;
    for (int64_t k = 0; k < K64; k += 2) {
        for (int64_t j = 0; j < 2; ++j) out[k + j] = load_bf16(panel + k * kPanelColumns + j).v;
    }
}

// The bits of 16 rows lie together, so this reads all of them for one: a sparse table is small, not fast.
inline void read_row(const F32Weight& weight, int64_t n, float* out) { dequantize(weight, n, n + 1, out, 1); }

// These expand V for every row: no layer is made so, and a caller who asks gets the right numbers.
inline void read_row(const LowRankWeight& weight, int64_t n, float* out) { dequantize(weight, n, n + 1, out, 1); }
inline void read_row(const SumWeight& weight, int64_t n, float* out) { dequantize(weight, n, n + 1, out, 1); }

inline void read_row(const SparseWeight& weight, int64_t n, float* row) { dequantize(weight, n, n + 1, row, 1); }

}  // namespace
}  // namespace gossamer
