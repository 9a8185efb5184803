// A "vector" of one fp32 in portable C++. avx2.h and avx512.h define the same names.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

namespace gossamer {
namespace {

struct Vec {
    static constexpr int64_t width = 1;
    float v;
};

inline uint32_t float_bits(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return bits;
}
inline float bits_float(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}

inline Vec broadcast(float x) { return {x}; }
inline Vec load(const float* p) { return {*p}; }
inline Vec load_bf16(const uint16_t* p) { return {bits_float(static_cast<uint32_t>(*p) << 16)}; }
inline Vec load_f16(const uint16_t* p) {
    const uint32_t sign = static_cast<uint32_t>(*p & 0x8000) << 16, magnitude = *p & 0x7fff;
    if (magnitude >= 0x7c00) return {bits_float(sign | 0x7f800000 | (magnitude & 0x3ff) << 13)};
    // Exact for subnormals too: the bits read as an fp32 are 2^-112 of the value.
    return {bits_float(sign | float_bits(bits_float(magnitude << 13) * 0x1p112f))};
}
inline Vec load_s32(const int32_t* p) { return {static_cast<float>(*p)}; }

inline void store(float* p, Vec a) { *p = a.v; }
inline void store_bf16(uint16_t* p, Vec a) {
    const uint32_t bits = float_bits(a.v);
    // A NaN is made quiet and keeps its sign, which the addition could turn into an infinity.
    const uint32_t rounded = a.v != a.v ? bits | 0x400000 : bits + 0x7fff + (bits >> 16 & 1);
    *p = static_cast<uint16_t>(rounded >> 16);
}
inline void store_f16(uint16_t* p, Vec a) {
    const uint32_t bits = float_bits(a.v), magnitude = bits & 0x7fffffff;
    const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
    uint32_t half;
    if (magnitude > 0x7f800000) {
        half = 0x7e00 | (magnitude >> 13 & 0x3ff);
    } else if (magnitude >= 0x477ff000) {  // 65520 and above round to infinity
        half = 0x7c00;
    } else if (magnitude < 0x38800000) {  // below the smallest normal: let an addition round at the subnormal's last bit
        half = float_bits(bits_float(magnitude) + 0.5f) - 0x3f000000;
    } else {
        half = (magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13;
    }
    *p = static_cast<uint16_t>(sign | half);
}
// Round half to even to int, add 128, keep the low byte.
inline void store_biased_u8(uint8_t* p, Vec a) { *p = static_cast<uint8_t>(std::lrintf(a.v) + 128); }

inline Vec operator+(Vec a, Vec b) { return {a.v + b.v}; }
inline Vec operator-(Vec a, Vec b) { return {a.v - b.v}; }
inline Vec operator*(Vec a, Vec b) { return {a.v * b.v}; }
inline Vec operator/(Vec a, Vec b) { return {a.v / b.v}; }
inline Vec multiply_add(Vec a, Vec b, Vec c) { return {a.v * b.v + c.v}; }
// b where either is NaN, as x86 defines it.
inline Vec maximum(Vec a, Vec b) { return {a.v > b.v ? a.v : b.v}; }
inline Vec minimum(Vec a, Vec b) { return {a.v < b.v ? a.v : b.v}; }
inline Vec round_even(Vec a) { return {std::nearbyintf(a.v)}; }
inline Vec absolute(Vec a) { return {std::fabs(a.v)}; }
// 2^n for a whole n in [-126, 127], infinity for 128; anything for NaN.
inline Vec power_of_two(Vec n) { return {n.v == n.v ? bits_float(static_cast<uint32_t>(static_cast<int>(n.v) + 127) << 23) : n.v}; }
// if_negative where x < 0, otherwise where x >= 0 or NaN.
inline Vec select_negative(Vec x, Vec if_negative, Vec otherwise) { return x.v < 0 ? if_negative : otherwise; }

// Running maximum of |x| as bits: compared as integers, finite < infinity < NaN, so a NaN is never lost.
struct AbsMax {
    uint32_t bits = 0;
};
inline void update(AbsMax& m, Vec a) {
    const uint32_t bits = float_bits(a.v) & 0x7fffffff;
    m.bits = bits > m.bits ? bits : m.bits;
}
inline void update(AbsMax& m, AbsMax other) { m.bits = other.bits > m.bits ? other.bits : m.bits; }
inline uint32_t reduce(AbsMax m) { return m.bits; }

}  // namespace
}  // namespace gossamer
