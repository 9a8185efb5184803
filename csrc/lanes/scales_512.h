// Scales of the 4-bit formats, widened to 512 bits of fp32.
#pragma once
#include <immintrin.h>

#include <cstdint>

#include "gossamer/format.h"

namespace gossamer {
namespace {

// Scales of the 16 columns of a group.
inline __m512 load_scales(const void* scales, int64_t index, ScaleType type) {
    if (type == ScaleType::f32) return _mm512_loadu_ps(static_cast<const float*>(scales) + index);
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(static_cast<const uint16_t*>(scales) + index));
    if (type == ScaleType::f16) return _mm512_cvtph_ps(half);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

}  // namespace
}  // namespace gossamer
