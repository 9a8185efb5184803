// A line of B, lane bf16, of two rows of 16 columns: the first in the low halves of the words. interleave.h defines the same name.
#pragma once
#include <immintrin.h>

#include <cstdint>

namespace gossamer {
namespace {

inline void interleave(const uint16_t* low, const uint16_t* high, uint16_t* line) {
    const __m512i words_low = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(low)));
    const __m512i words_high = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(high)));
    _mm512_storeu_si512(line, _mm512_or_si512(words_low, _mm512_slli_epi32(words_high, 16)));
}

}  // namespace
}  // namespace gossamer
