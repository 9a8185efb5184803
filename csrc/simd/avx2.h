// Vector of fp32 for files compiled with AVX2, FMA and F16C. scalar.h and avx512.h define the same names.
#pragma once
#include <immintrin.h>

#include <cstdint>

namespace gossamer {
namespace {

struct Vec {
    static constexpr int64_t width = 8;
    __m256 v;
};

// Low 16 bits of each of 8 integers; the integers must fit in 16 unsigned bits.
inline __m128i narrow_u16(__m256i x) {
    const __m256i packed = _mm256_packus_epi32(x, x);
    return _mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08));
}

inline Vec broadcast(float x) { return {_mm256_set1_ps(x)}; }
inline Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
inline Vec load_bf16(const uint16_t* p) {
    const __m128i h = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16))};
}
inline Vec load_f16(const uint16_t* p) { return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))}; }
inline Vec load_s32(const int32_t* p) { return {_mm256_cvtepi32_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))}; }

inline void store(float* p, Vec a) { _mm256_storeu_ps(p, a.v); }
inline void store_bf16(uint16_t* p, Vec a) {
    // Round to nearest even on the bits; a NaN is made quiet and keeps its sign, which the addition could turn into an infinity.
    const __m256i bits = _mm256_castps_si256(a.v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q));
    const __m256i chosen = _mm256_blendv_epi8(rounded, quiet, is_nan);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow_u16(_mm256_srli_epi32(chosen, 16)));
}
inline void store_f16(uint16_t* p, Vec a) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT));
}
// Round half to even to int, add 128, keep the low byte; |a| <= 127.
inline void store_biased_u8(uint8_t* p, Vec a) {
    const __m256i biased = _mm256_add_epi32(_mm256_cvtps_epi32(a.v), _mm256_set1_epi32(128));
    const __m128i words = narrow_u16(biased);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packus_epi16(words, words));
}

inline Vec operator+(Vec a, Vec b) { return {_mm256_add_ps(a.v, b.v)}; }
inline Vec operator-(Vec a, Vec b) { return {_mm256_sub_ps(a.v, b.v)}; }
inline Vec operator*(Vec a, Vec b) { return {_mm256_mul_ps(a.v, b.v)}; }
inline Vec operator/(Vec a, Vec b) { return {_mm256_div_ps(a.v, b.v)}; }
inline Vec multiply_add(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
// b where either is NaN, as x86 defines it.
inline Vec maximum(Vec a, Vec b) { return {_mm256_max_ps(a.v, b.v)}; }
inline Vec minimum(Vec a, Vec b) { return {_mm256_min_ps(a.v, b.v)}; }
inline Vec round_even(Vec a) { return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
inline Vec absolute(Vec a) { return {_mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v)}; }
// 2^n for a whole n in [-126, 127], infinity for 128.
inline Vec power_of_two(Vec n) {
    const __m256i biased = _mm256_add_epi32(_mm256_cvtps_epi32(n.v), _mm256_set1_epi32(127));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(biased, 23))};
}
// if_negative where x < 0, otherwise where x >= 0 or NaN.
inline Vec select_negative(Vec x, Vec if_negative, Vec otherwise) {
    return {_mm256_blendv_ps(otherwise.v, if_negative.v, _mm256_cmp_ps(x.v, _mm256_setzero_ps(), _CMP_LT_OQ))};
}

// Running maximum of |x| as bits: compared as integers, finite < infinity < NaN, so a NaN is never lost.
struct AbsMax {
    __m256i bits = _mm256_setzero_si256();
};
inline void update(AbsMax& m, Vec a) {
    const __m256i bits = _mm256_and_si256(_mm256_castps_si256(a.v), _mm256_set1_epi32(0x7fffffff));
    m.bits = _mm256_max_epi32(m.bits, bits);
}
inline void update(AbsMax& m, AbsMax other) { m.bits = _mm256_max_epi32(m.bits, other.bits); }
inline uint32_t reduce(AbsMax m) {
    __m128i x = _mm_max_epi32(_mm256_castsi256_si128(m.bits), _mm256_extracti128_si256(m.bits, 1));
    x = _mm_max_epi32(x, _mm_shuffle_epi32(x, 0x4e));
    x = _mm_max_epi32(x, _mm_shuffle_epi32(x, 0xb1));
    return static_cast<uint32_t>(_mm_cvtsi128_si32(x));
}

}  // namespace
}  // namespace gossamer
