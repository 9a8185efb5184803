// The kernels of expand.h, written once over the vector type of simd/<isa>.h; each <isa>.cpp includes that, then this.
//
// A code becomes an fp16 by shifts, and that an fp32 by the conversion every ISA has, which also normalises subnormals: e5m2 is the upper
// byte of an fp16; the fields of e4m3, moved to the place of an fp16's, read as 2^-8 of the value because of the other bias.
//
// Several lines go through each step together: a vector that is loaded too soon after its parts were stored would wait for the stores.
#pragma once
#include <cstdint>
#include <cstring>

#include "expand.h"

namespace gossamer {
namespace {

constexpr int64_t kLine = 64, kBatch = 16;

struct E4m3 {
    static constexpr float factor = 256.0f;
    static uint16_t half(uint16_t code) {
        const uint16_t magnitude = code & 0x7f;
        return static_cast<uint16_t>((code & 0x80) << 8 | (magnitude == 0x7f ? 0x7e00 : magnitude << 7));
    }
};
struct E5m2 {
    static constexpr float factor = 1.0f;
    static uint16_t half(uint16_t code) { return static_cast<uint16_t>(code << 8); }
};

// Lines to the order of the bf16 panels, [4 k / 2][16 columns][2 k].
inline void order_lines(const uint8_t* lines, uint8_t* ordered) {
    for (int64_t line = 0; line < kBatch * kLine; line += kLine) {
        for (int64_t part = 0; part < 8; ++part) std::memcpy(ordered + line + (part % 2 * 4 + part / 2) * 8, lines + line + part * 8, 8);
    }
}

// [k pairs][16 columns][2 k] codes to [k][16 columns] halves.
template <class Code>
void halves_by_k(const uint8_t* ordered, uint16_t* halves) {
    for (int64_t pair = 0; pair < kBatch * 2; ++pair) {
        for (int64_t column = 0; column < kPanelColumns; ++column) {
            uint16_t both;
            std::memcpy(&both, ordered + (pair * kPanelColumns + column) * 2, sizeof both);
            halves[pair * 2 * kPanelColumns + column] = Code::half(both & 0xff);
            halves[(pair * 2 + 1) * kPanelColumns + column] = Code::half(both >> 8);
        }
    }
}

template <class Code>
void lines_to_f32(const Fp8Expand& run, float* out) {
    alignas(64) uint8_t ordered[kBatch * kLine];
    alignas(64) uint16_t halves[kBatch * kLine];
    const Vec factor = broadcast(Code::factor), scale = broadcast(run.scale);
    for (int64_t line = 0; line < run.lines; line += kBatch, out += kBatch * kLine) {
        order_lines(run.codes + line * kLine, ordered);
        halves_by_k<Code>(ordered, halves);
        for (int64_t i = 0; i < kBatch * kLine; i += Vec::width) store(out + i, load_f16(halves + i) * factor * scale);
    }
}

template <class Code>
void lines_to_bf16(const Fp8Expand& run, uint16_t* out) {
    alignas(64) uint8_t ordered[kBatch * kLine];
    alignas(64) uint16_t halves[kBatch * kLine];
    const Vec factor = broadcast(Code::factor), scale = broadcast(run.scale);
    for (int64_t line = 0; line < run.lines; line += kBatch, out += kBatch * kLine) {
        order_lines(run.codes + line * kLine, ordered);
        for (int64_t i = 0; i < kBatch * kLine; ++i) halves[i] = Code::half(ordered[i]);
        for (int64_t i = 0; i < kBatch * kLine; i += Vec::width) store_bf16(out + i, load_f16(halves + i) * factor * scale);
    }
}

[[maybe_unused]] void expand_lines_to_f32(const Fp8Expand& run, float* out) {
    run.format == FormatId::fp8_e4m3 ? lines_to_f32<E4m3>(run, out) : lines_to_f32<E5m2>(run, out);
}

[[maybe_unused]] void expand_lines_to_bf16(const Fp8Expand& run, uint16_t* out) {
    run.format == FormatId::fp8_e4m3 ? lines_to_bf16<E4m3>(run, out) : lines_to_bf16<E5m2>(run, out);
}

}  // namespace
}  // namespace gossamer
