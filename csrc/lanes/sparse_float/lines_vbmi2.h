// Sparse lines on AVX-512 with VBMI2: words by VPEXPANDW.
#pragma once
#include "lines_512.h"

namespace gossamer {
namespace {

inline Line expand_words(const uint8_t*& values, uint32_t mask) {
    mask = in_register(mask);
    const __m512i packed = load_packed(values);
    values += 2 * _mm_popcnt_u64(mask);
    return {_mm512_maskz_expand_epi16(mask, packed)};
}

}  // namespace
}  // namespace gossamer
