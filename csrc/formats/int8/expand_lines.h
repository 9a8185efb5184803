// The kernels of expand.h as loops that the compiler vectorizes for each <isa>.cpp.
#pragma once
#include <cstdint>
#include <cstring>

#include "expand.h"
#include "gossamer/lane.h"

namespace gossamer {
namespace {

// Value k of a column of a line, whose four lie side by side, the first in the lowest byte.
inline float value_at(const int8_t* line, int64_t column, int k) {
    uint32_t four;
    std::memcpy(&four, line + 4 * column, sizeof four);
    return static_cast<float>(static_cast<int32_t>(four << (24 - 8 * k)) >> 24);
}

inline uint32_t bits_of(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}

// In the upper half of the result; the lower half is not cleared.
inline uint32_t round_bf16(float x) {
    const uint32_t bits = bits_of(x);
    return x != x ? bits | 0x400000 : bits + 0x7fff + (bits >> 16 & 1);
}

template <bool scaled>
void row_to_f32(const int8_t* line, int k, const float* scales, float* __restrict out) {
    for (int64_t column = 0; column < kPanelColumns; ++column) {
        const float value = value_at(line, column, k);
        out[column] = scaled ? value * scales[column] : value;
    }
}

// k and k + 1.
template <bool scaled>
void rows_to_bf16(const int8_t* line, int k, const float* scales, uint16_t* __restrict out) {
    for (int64_t column = 0; column < kPanelColumns; ++column) {
        const float even = value_at(line, column, k), odd = value_at(line, column, k + 1);
        const uint32_t low = scaled ? round_bf16(even * scales[column]) : bits_of(even);
        const uint32_t high = scaled ? round_bf16(odd * scales[column]) : bits_of(odd);
        const uint32_t both = low >> 16 | (high & 0xffff0000);
        std::memcpy(out + 2 * column, &both, sizeof both);
    }
}

template <bool scaled>
void lines_to_f32(const Int8Expand& run, float* out) {
    const int8_t* line = run.values;
    for (int64_t i = 0; i < run.lines; ++i, line += 4 * kPanelColumns) {
        for (int k = 0; k < 4; ++k, out += kPanelColumns) row_to_f32<scaled>(line, k, run.scales, out);
    }
}

template <bool scaled>
void lines_to_bf16(const Int8Expand& run, uint16_t* out) {
    const int8_t* line = run.values;
    for (int64_t i = 0; i < run.lines; ++i, line += 4 * kPanelColumns) {
        for (int k = 0; k < 4; k += 2, out += 2 * kPanelColumns) rows_to_bf16<scaled>(line, k, run.scales, out);
    }
}

void expand_lines_to_f32(const Int8Expand& run, float* out) {
    run.scales == nullptr ? lines_to_f32<false>(run, out) : lines_to_f32<true>(run, out);
}

void expand_lines_to_bf16(const Int8Expand& run, uint16_t* out) {
    run.scales == nullptr ? lines_to_bf16<false>(run, out) : lines_to_bf16<true>(run, out);
}

}  // namespace
}  // namespace gossamer
