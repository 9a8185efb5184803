// The values of the fp8 codes as bf16, which holds all of them exactly. Formats: format_fp8.h.
#pragma once
#include <cstdint>
#include <cstring>

#include "gossamer/format.h"

namespace gossamer {
namespace {

struct Fp8Magnitudes {
    alignas(64) uint16_t bf16[128];  // of the codes without the sign
};

constexpr uint16_t bf16_of_finite(int code, int mantissa_bits, int bias) {
    int exponent = code >> mantissa_bits, mantissa = code - (exponent << mantissa_bits);
    if (exponent == 0) {
        if (mantissa == 0) return 0;
        for (exponent = 1; mantissa >> mantissa_bits == 0; --exponent) mantissa <<= 1;
        mantissa -= 1 << mantissa_bits;
    }
    return static_cast<uint16_t>((exponent - bias + 127) << 7 | mantissa << (7 - mantissa_bits));
}

constexpr Fp8Magnitudes e4m3_magnitudes() {
    Fp8Magnitudes table{};
    for (int code = 0; code < 127; ++code) table.bf16[code] = bf16_of_finite(code, 3, 7);
    table.bf16[127] = 0x7fc0;
    return table;
}

constexpr Fp8Magnitudes e5m2_magnitudes() {
    Fp8Magnitudes table{};
    for (int code = 0; code < 124; ++code) table.bf16[code] = bf16_of_finite(code, 2, 15);
    table.bf16[124] = 0x7f80;
    // NaN: the bit on top makes them quiet, the payload stays.
    for (int code = 125; code < 128; ++code) table.bf16[code] = static_cast<uint16_t>(0x7fc0 | (code & 3) << 5);
    return table;
}

constexpr Fp8Magnitudes kE4m3Magnitudes = e4m3_magnitudes(), kE5m2Magnitudes = e5m2_magnitudes();

inline const uint16_t* fp8_magnitudes(FormatId format) {
    return format == FormatId::fp8_e4m3 ? kE4m3Magnitudes.bf16 : kE5m2Magnitudes.bf16;
}

inline float fp8_value(const uint16_t* magnitudes, uint8_t code) {
    const uint32_t bits = static_cast<uint32_t>(magnitudes[code & 0x7f] | (code & 0x80) << 8) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

}  // namespace
}  // namespace gossamer
