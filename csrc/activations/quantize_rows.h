// The row quantizer, written once over the vector type of simd/<isa>.h; each <isa>.cpp includes that, then this. Contract: quantize.h.
#pragma once
#include <cstdint>
#include <cstring>

#include "../simd/load_as.h"
#include "gossamer/quantize.h"

namespace gossamer {
namespace {

template <class T>
uint32_t abs_max_bits(const T* x, int64_t K) {
    // Four chains hide the latency of the maximum.
    constexpr int64_t w = Vec::width;
    AbsMax m0, m1, m2, m3;
    int64_t k = 0;
    for (; k + 4 * w <= K; k += 4 * w) {
        update(m0, load_as(x + k));
        update(m1, load_as(x + k + w));
        update(m2, load_as(x + k + 2 * w));
        update(m3, load_as(x + k + 3 * w));
    }
    for (; k + w <= K; k += w) update(m0, load_as(x + k));
    if (k < K) update(m1, load_tail(x + k, K - k));
    update(m0, m1);
    update(m2, m3);
    update(m0, m2);
    return reduce(m0);
}

// A row, or a group of one, into `part` bytes of each of its lines, which are line_stride bytes apart: 64 unless groups are shorter.
// `scaled` gives what is to be rounded, of each vector of x once.
template <int64_t part, class T, class Scaled>
void store_row(const T* x, int64_t K, const Scaled& scaled, uint8_t* line, int64_t line_stride) {
    constexpr int64_t w = Vec::width;
    int64_t k = 0;
    for (; k + part <= K; k += part, line += line_stride) {
        for (int64_t j = 0; j < part; j += w) store_biased_u8(line + j, scaled(load_as(x + k + j)));
    }
    if (k == K) return;
    for (int64_t j = 0; j < part; j += w) {
        const int64_t left = K - k - j;
        const Vec v = left >= w ? load_as(x + k + j) : left > 0 ? load_tail(x + k + j, left) : broadcast(0.0f);
        store_biased_u8(line + j, scaled(v));
    }
}

template <int64_t part>
void store_zeros(int64_t K, uint8_t* line, int64_t line_stride) {
    for (int64_t k = 0; k < K; k += part, line += line_stride) std::memset(line, 128, part);
}

inline float float_of_bits(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}

constexpr uint32_t kInfinityBits = 0x7f800000, kNanBits = 0x7fc00000;

// What a number is multiplied by before the quotient with it is taken, so that this does not overflow.
inline float lift(float divisor) { return divisor < 0x1p-100f ? 0x1p100f : 1.0f; }

template <int64_t part, class T>
void quantize_row(const T* x, int64_t K, uint8_t* line, int64_t line_stride, float* scale) {
    const uint32_t bits = abs_max_bits(x, K);
    if (bits == 0 || bits >= kInfinityBits) {
        *scale = bits == 0 ? 0.0f : float_of_bits(kNanBits);
        return store_zeros<part>(K, line, line_stride);
    }
    const float amax = float_of_bits(bits);
    *scale = amax / 127.0f;
    const Vec before = broadcast(lift(amax)), inverse = broadcast(127.0f / (amax * lift(amax)));
    store_row<part>(x, K, [&](Vec v) { return v * before * inverse; }, line, line_stride);
}

template <class T>
void quantize_row_with(float input_scale, const T* x, int64_t K, uint8_t* line, int64_t line_stride, float* scale) {
    const Vec before = broadcast(lift(input_scale)), inverse = broadcast(1.0f / (input_scale * lift(input_scale)));
    const Vec top = broadcast(127.0f), bottom = broadcast(-127.0f);
    AbsMax largest;
    const auto scaled = [&](Vec v) {
        update(largest, v);
        return maximum(minimum(v * before * inverse, top), bottom);  // a NaN becomes 127, for now
    };
    store_row<kChunk>(x, K, scaled, line, line_stride);
    *scale = input_scale;
    if (reduce(largest) < kInfinityBits) return;
    *scale = float_of_bits(kNanBits);
    store_zeros<kChunk>(K, line, line_stride);
}

// A row group by group; those shorter than a line are parts of it.
template <int64_t part, class T>
void quantize_groups(const QuantizeRows& rows, const T* x, uint8_t* line, float* scale) {
    const int64_t K64 = padded_k(rows.K), G = rows.group_k, line_stride = rows.panel_rows * kChunk;
    for (int64_t k = 0; k < K64; k += G, ++scale) {
        uint8_t* to = line + k / kChunk * line_stride + k % kChunk;
        if (k < rows.K) {
            quantize_row<part>(x + k, k + G < rows.K ? G : rows.K - k, to, line_stride, scale);
        } else {
            *scale = 0;
            std::memset(to, 128, part);
        }
    }
}

template <class T>
void quantize_rows_of(const QuantizeRows& rows) {
    const int64_t R = rows.panel_rows, K64 = padded_k(rows.K), G = rows.group_k, groups = G == 0 ? 1 : (K64 + G - 1) / G;
    for (int64_t m = rows.first_row; m < rows.last_row; ++m) {
        const T* x = static_cast<const T*>(rows.x) + m * rows.x_row_stride;
        uint8_t* line = rows.panels + m / R * R * K64 + m % R * kChunk;
        float* scale = rows.scale + m * groups;
        if (rows.input_scale > 0) {
            quantize_row_with(rows.input_scale, x, rows.K, line, R * kChunk, scale);
            continue;
        }
        switch (G) {
            case 0: quantize_row<kChunk>(x, rows.K, line, R * kChunk, scale); break;
            case 16: quantize_groups<16>(rows, x, line, scale); break;
            case 32: quantize_groups<32>(rows, x, line, scale); break;
            default: quantize_groups<kChunk>(rows, x, line, scale); break;
        }
    }
}

void quantize_rows(const QuantizeRows& rows) {
    switch (rows.x_dtype) {
        case DType::f32: return quantize_rows_of<float>(rows);
        case DType::bf16: return quantize_rows_of<Bf16>(rows);
        case DType::f16: return quantize_rows_of<F16>(rows);
    }
}

}  // namespace
}  // namespace gossamer
