// 16 x 16 words of 4 bytes transposed, for files compiled with AVX2. transpose_avx512.h defines the same name.
#pragma once
#include <immintrin.h>

#include <cstdint>

namespace gossamer {
namespace {

// out[j][i] = in[i][j] for 8 x 8 words; rows of `in` from `rows` on count as zero and are not read.
inline void transpose_8x8(const float* in, int64_t in_stride, int64_t rows, float* out, int64_t out_stride) {
    __m256 a[8], b[8];
    for (int64_t i = 0; i < 8; ++i) a[i] = i < rows ? _mm256_loadu_ps(in + i * in_stride) : _mm256_setzero_ps();
    for (int i = 0; i < 8; i += 2) {
        b[i] = _mm256_unpacklo_ps(a[i], a[i + 1]);
        b[i + 1] = _mm256_unpackhi_ps(a[i], a[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        a[i] = _mm256_shuffle_ps(b[i], b[i + 2], 0x44);
        a[i + 1] = _mm256_shuffle_ps(b[i], b[i + 2], 0xee);
        a[i + 2] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0x44);
        a[i + 3] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0xee);
    }
    for (int c = 0; c < 4; ++c) {
        _mm256_storeu_ps(out + c * out_stride, _mm256_permute2f128_ps(a[c], a[c + 4], 0x20));
        _mm256_storeu_ps(out + (c + 4) * out_stride, _mm256_permute2f128_ps(a[c], a[c + 4], 0x31));
    }
}

// out[j][i] = in[i][j], rows in_stride and out_stride words apart; rows of `in` from `rows` on count as zero and are not read.
inline void transpose_16x16(const void* in, int64_t in_stride, int64_t rows, void* out, int64_t out_stride) {
    const float* from = static_cast<const float*>(in);
    float* to = static_cast<float*>(out);
    for (int64_t i = 0; i < 16; i += 8) {
        for (int64_t j = 0; j < 16; j += 8)
            transpose_8x8(from + i * in_stride + j, in_stride, rows - i, to + j * out_stride + i, out_stride);
    }
}

}  // namespace
}  // namespace gossamer
