// Vector of fp32 for files compiled with AVX-512 (F, BW, DQ, VL). scalar.h and avx2.h define the same names.
#pragma once
#include <immintrin.h>

#include <cstdint>

namespace gossamer {
namespace {

struct Vec {
    static constexpr int64_t width = 16;
    __m512 v;
};

inline Vec broadcast(float x) { return {_mm512_set1_ps(x)}; }
inline Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline Vec load_bf16(const uint16_t* p) {
    const __m256i h = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16))};
}
inline Vec load_f16(const uint16_t* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))}; }
inline Vec load_s32(const int32_t* p) { return {_mm512_cvtepi32_ps(_mm512_loadu_si512(p))}; }

inline void store(float* p, Vec a) { _mm512_storeu_ps(p, a.v); }
inline void store_bf16(uint16_t* p, Vec a) {
    // Round to nearest even on the bits; a NaN is made quiet and keeps its sign, which the addition could turn into an infinity.
    const __m512i bits = _mm512_castps_si512(a.v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
    const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
    const __mmask16 is_nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
    const __m512i chosen = _mm512_mask_mov_epi32(rounded, is_nan, quiet);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(_mm512_srli_epi32(chosen, 16)));
}
inline void store_f16(uint16_t* p, Vec a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT));
}
// Round half to even to int, add 128, keep the low byte.
inline void store_biased_u8(uint8_t* p, Vec a) {
    const __m128i bytes = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(a.v));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm_xor_si128(bytes, _mm_set1_epi8(static_cast<char>(0x80))));
}

inline Vec operator+(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Vec operator-(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Vec operator*(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Vec operator/(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
inline Vec multiply_add(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
// b where either is NaN, as x86 defines it.
inline Vec maximum(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }
inline Vec minimum(Vec a, Vec b) { return {_mm512_min_ps(a.v, b.v)}; }
inline Vec round_even(Vec a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
inline Vec absolute(Vec a) { return {_mm512_abs_ps(a.v)}; }
// 2^n for a whole n in [-126, 127], infinity for 128.
inline Vec power_of_two(Vec n) {
    const __m512i biased = _mm512_add_epi32(_mm512_cvtps_epi32(n.v), _mm512_set1_epi32(127));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(biased, 23))};
}
// if_negative where x < 0, otherwise where x >= 0 or NaN.
inline Vec select_negative(Vec x, Vec if_negative, Vec otherwise) {
    return {_mm512_mask_mov_ps(otherwise.v, _mm512_cmp_ps_mask(x.v, _mm512_setzero_ps(), _CMP_LT_OQ), if_negative.v)};
}

// Running maximum of |x| as bits: compared as integers, finite < infinity < NaN, so a NaN is never lost.
struct AbsMax {
    __m512i bits = _mm512_setzero_si512();
};
inline void update(AbsMax& m, Vec a) {
    const __m512i bits = _mm512_and_si512(_mm512_castps_si512(a.v), _mm512_set1_epi32(0x7fffffff));
    m.bits = _mm512_max_epi32(m.bits, bits);
}
inline void update(AbsMax& m, AbsMax other) { m.bits = _mm512_max_epi32(m.bits, other.bits); }
inline uint32_t reduce(AbsMax m) { return static_cast<uint32_t>(_mm512_reduce_max_epi32(m.bits)); }

}  // namespace
}  // namespace gossamer
