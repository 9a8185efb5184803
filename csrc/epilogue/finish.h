// The epilogue, written once over the vector type of simd/<isa>.h; each <isa>.cpp includes that, then this. Contract: epilogue.h.
#pragma once
#include <cstdint>
#include <cstring>

#include "gossamer/epilogue.h"

namespace gossamer {
namespace {

inline Vec exponential(Vec x) {
    // Below, 2^n stays normal; above, n = 128 gives infinity, as it should. NaN passes: maximum and minimum return their second argument.
    x = minimum(broadcast(89.0f), maximum(broadcast(-87.0f), x));
    const Vec n = round_even(x * broadcast(1.44269504f));
    // ln 2 in two parts, the first with trailing zeros so that n * part is exact.
    Vec r = multiply_add(n, broadcast(-0.693359375f), x);
    r = multiply_add(n, broadcast(2.12194440e-4f), r);
    Vec p = broadcast(1.0f / 720.0f);
    p = multiply_add(p, r, broadcast(1.0f / 120.0f));
    p = multiply_add(p, r, broadcast(1.0f / 24.0f));
    p = multiply_add(p, r, broadcast(1.0f / 6.0f));
    p = multiply_add(p, r, broadcast(0.5f));
    p = multiply_add(p, r, broadcast(1.0f));
    p = multiply_add(p, r, broadcast(1.0f));
    return p * power_of_two(n);
}

inline Vec sigmoid(Vec x) { return broadcast(1.0f) / (broadcast(1.0f) + exponential(broadcast(0.0f) - x)); }

// x * Phi(x). Phi(-|x|) = erfc(|x| / sqrt 2) / 2 comes without cancellation, so the negative tail keeps its digits.
inline Vec gelu_exact(Vec x) {
    const Vec z = absolute(x) * broadcast(0.70710678f);
    const Vec t = broadcast(1.0f) / multiply_add(broadcast(0.3275911f), z, broadcast(1.0f));
    Vec p = broadcast(1.061405429f);
    p = multiply_add(p, t, broadcast(-1.453152027f));
    p = multiply_add(p, t, broadcast(1.421413741f));
    p = multiply_add(p, t, broadcast(-0.284496736f));
    p = multiply_add(p, t, broadcast(0.254829592f));
    const Vec tail = broadcast(0.5f) * p * t * exponential(broadcast(0.0f) - z * z);
    return x * select_negative(x, tail, broadcast(1.0f) - tail);
}

// 0.5 x (1 + tanh u) = x sigmoid(2u), u = sqrt(2 / pi) (x + 0.044715 x^3)
inline Vec gelu_by_tanh(Vec x) {
    const Vec cubic = multiply_add(broadcast(0.044715f) * x, x * x, x);
    return x * sigmoid(broadcast(1.59576912f) * cubic);
}

template <Activation activation>
inline Vec activate(Vec x) {
    if constexpr (activation == Activation::relu) return maximum(broadcast(0.0f), x);
    if constexpr (activation == Activation::gelu) return gelu_exact(x);
    if constexpr (activation == Activation::gelu_tanh) return gelu_by_tanh(x);
    if constexpr (activation == Activation::silu) return x * sigmoid(x);
    return x;
}

inline Vec load_sum(const int32_t* p) { return load_s32(p); }
inline Vec load_sum(const float* p) { return load(p); }

inline void store_as(void* out, DType dtype, int64_t offset, Vec y) {
    switch (dtype) {
        case DType::f32: return store(static_cast<float*>(out) + offset, y);
        case DType::bf16: return store_bf16(static_cast<uint16_t*>(out) + offset, y);
        case DType::f16: return store_f16(static_cast<uint16_t*>(out) + offset, y);
    }
}

// The last vector of a row, of which only n < width columns exist: through a buffer, so that nothing outside them is touched.
inline void store_tail(void* out, DType dtype, int64_t offset, Vec y, int64_t n) {
    float buffer[Vec::width];
    store_as(buffer, dtype, 0, y);
    const int64_t element = size_bytes(dtype);
    std::memcpy(static_cast<char*>(out) + offset * element, buffer, static_cast<size_t>(n * element));
}

inline Vec load_addend(const float* p, int64_t n) {
    if (n >= Vec::width) return load(p);
    float padded[Vec::width] = {};
    std::memcpy(padded, p, static_cast<size_t>(n) * sizeof(float));
    return load(padded);
}

template <Activation activation, class Sum>
void finish_rows(const FinishTile& tile, const Sum* sum) {
    for (int64_t m = 0; m < tile.M; ++m, sum += kStripColumns) {
        const Vec row_scale = broadcast(tile.row_scale[m]);
        for (int64_t n = 0; n < tile.N; n += Vec::width) {
            // This order overflows only where the result does: the product of the scales alone could, and 0 * inf is NaN.
            Vec y = multiply_add(load_sum(sum + n) * load(tile.column_scale + n), row_scale, load(tile.bias + n));
            const int64_t left = tile.N - n;
            if (tile.addend != nullptr) y = y + load_addend(tile.addend + m * tile.addend_row_stride + n, left);
            y = activate<activation>(y);
            const int64_t offset = m * tile.out_row_stride + n;
            if (left >= Vec::width) {
                store_as(tile.out, tile.out_dtype, offset, y);
            } else {
                store_tail(tile.out, tile.out_dtype, offset, y, left);
            }
        }
    }
}

template <class Sum>
void finish(const FinishTile& tile, const Sum* sum) {
    switch (tile.activation) {
        case Activation::none: return finish_rows<Activation::none>(tile, sum);
        case Activation::relu: return finish_rows<Activation::relu>(tile, sum);
        case Activation::gelu: return finish_rows<Activation::gelu>(tile, sum);
        case Activation::gelu_tanh: return finish_rows<Activation::gelu_tanh>(tile, sum);
        case Activation::silu: return finish_rows<Activation::silu>(tile, sum);
    }
}

void finish_s32(const FinishTile& tile, const int32_t* acc) { finish(tile, acc); }
void finish_f32(const FinishTile& tile, const float* sum) { finish(tile, sum); }

template <bool by_row>
void scale_add_rows(const ScaleAdd& t) {
    for (int64_t m = 0; m < t.M; ++m) {
        const int32_t* acc = t.acc + m * kStripColumns;
        float* sum = t.sum + m * kStripColumns;
        const Vec row_scale = by_row ? broadcast(t.row_scale[m * t.row_scale_stride]) : broadcast(1.0f);
        for (int64_t n = 0; n < t.columns; n += Vec::width) {
            const Vec before = t.first ? broadcast(0.0f) : load(sum + n), a = load_s32(acc + n), column_scale = load(t.column_scale + n);
            store(sum + n, by_row ? multiply_add(a * column_scale, row_scale, before) : multiply_add(a, column_scale, before));
        }
    }
}

void scale_add(const ScaleAdd& tile) { tile.row_scale == nullptr ? scale_add_rows<false>(tile) : scale_add_rows<true>(tile); }

}  // namespace
}  // namespace gossamer
