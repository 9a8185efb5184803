// Sparse bf16 and fp32 lines on AVX-512. An ISA's file defines expand_words, and dot for bf16 where it has one, then includes tile.h.
//
// VPEXPANDD and VPEXPANDW in the form with registers, after a load of 64 bytes: one row took a third longer on Zen 4 with the load inside.
#pragma once
#include <immintrin.h>

#include <cstdint>

namespace gossamer {
namespace {

constexpr int kMaxRows = 8, kSums = 8;

struct Line {
    __m512i v;
};
inline void store_line(uint8_t* p, Line line) { _mm512_storeu_si512(p, line.v); }

// In a register: g++ would fold the load into the expansion.
inline __m512i load_packed(const uint8_t* values) {
    __m512i packed = _mm512_loadu_si512(values);
    asm("" : "+v"(packed));
    return packed;
}

// The same for a mask: one load serves its count too, and filling a mask register from a general one is cheaper than from memory (a fifth
// of the time of bf16 lines).
inline uint32_t in_register(uint32_t mask) {
    asm("" : "+r"(mask));
    return mask;
}

inline Line expand_dwords(const uint8_t*& values, uint32_t mask) {
    mask = in_register(mask);
    const __m512i packed = load_packed(values);
    values += 4 * _mm_popcnt_u64(mask);
    return {_mm512_maskz_expand_epi32(static_cast<__mmask16>(mask), packed)};
}

inline Line even_words(Line line) { return {_mm512_slli_epi32(line.v, 16)}; }
inline Line odd_words(Line line) { return {_mm512_and_si512(line.v, _mm512_set1_epi32(static_cast<int>(0xffff0000)))}; }

struct Sums {
    __m512 v;
};
inline Sums broadcast(float x) { return {_mm512_set1_ps(x)}; }
inline Sums add(Sums a, Sums b) { return {_mm512_add_ps(a.v, b.v)}; }
inline void store(float* p, Sums s) { _mm512_storeu_ps(p, s.v); }
inline Sums add_zero_times(Sums sum, const float* a) { return {_mm512_fmadd_ps(_mm512_loadu_ps(a), _mm512_setzero_ps(), sum.v)}; }
inline Sums dot(Sums sum, const float* a, Line line) { return {_mm512_fmadd_ps(_mm512_set1_ps(*a), _mm512_castsi512_ps(line.v), sum.v)}; }

}  // namespace
}  // namespace gossamer
