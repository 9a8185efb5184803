// What the kernels of AVX2 and AVX-512 share: they include simd/<isa>.h and a transpose, then this. Contract: kernels.h.
#pragma once
#include <immintrin.h>

#include <cstdint>

#include "kernels.h"

namespace gossamer {
namespace {

// One row of x: the four rows of a slice stand in the vector. 1.15 cycles a value on Zen 4; VGATHERDPS takes 1.5, and a second sum changes
// nothing.
inline void run_one(const SpmmF32Block& block) {
    const uint8_t* indices = block.indices;
    const float* values = block.values;
    for (int64_t s = 0; s < block.slice_count; ++s) {
        const SpmmF32Slice& slice = block.slices[s];
        __m128 sum = _mm_setzero_ps();
        for (int64_t i = 0; i < slice.count; ++i, indices += 4, values += 4) {
            const __m128 x = _mm_set_ps(block.x[indices[3]], block.x[indices[2]], block.x[indices[1]], block.x[indices[0]]);
            sum = _mm_fmadd_ps(_mm_loadu_ps(values), x, sum);
        }
        alignas(16) float sums[4];
        _mm_store_ps(sums, sum);
        for (int r = 0; r < 4; ++r) block.c[slice.rows[r]] += sums[r];
    }
}

inline void transpose(const float* in, int64_t in_stride, int64_t rows, float* out, int64_t out_stride) {
    transpose_16x16(in, in_stride, rows, out, out_stride);
}

inline bool finite(const float* line, int64_t line_stride, int64_t lines) {
    AbsMax largest;
    for (int64_t i = 0; i < lines; ++i, line += line_stride) {
        for (int64_t j = 0; j < 16; j += Vec::width) update(largest, load(line + j));
    }
    return reduce(largest) < 0x7f800000;
}

}  // namespace
}  // namespace gossamer
