// 16 x 16 words of 4 bytes transposed, for files compiled with AVX-512. transpose_avx2.h defines the same name.
#pragma once
#include <immintrin.h>

#include <cstdint>

namespace gossamer {
namespace {

// out[j][i] = in[i][j], rows in_stride and out_stride words apart; rows of `in` from `rows` on count as zero and are not read.
inline void transpose_16x16(const void* in, int64_t in_stride, int64_t rows, void* out, int64_t out_stride) {
    const uint32_t* from = static_cast<const uint32_t*>(in);
    uint32_t* to = static_cast<uint32_t*>(out);
    __m512i a[16], b[16];
    for (int64_t i = 0; i < 16; ++i) a[i] = i < rows ? _mm512_loadu_si512(from + i * in_stride) : _mm512_setzero_si512();
    // Each step doubles the size of the blocks that are in place: 1, 2, 4 and 8 words.
    for (int i = 0; i < 16; i += 2) {
        b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
        a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
        a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
        a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
    }
    // a[4 r + c]: of rows 4 r to 4 r + 3, columns c, c + 4, c + 8, c + 12 as the four quarters.
    for (int c = 0; c < 4; ++c) {
        const __m512i low02 = _mm512_shuffle_i32x4(a[c], a[c + 4], 0x88), low13 = _mm512_shuffle_i32x4(a[c], a[c + 4], 0xdd);
        const __m512i high02 = _mm512_shuffle_i32x4(a[c + 8], a[c + 12], 0x88), high13 = _mm512_shuffle_i32x4(a[c + 8], a[c + 12], 0xdd);
        _mm512_storeu_si512(to + c * out_stride, _mm512_shuffle_i32x4(low02, high02, 0x88));
        _mm512_storeu_si512(to + (c + 4) * out_stride, _mm512_shuffle_i32x4(low13, high13, 0x88));
        _mm512_storeu_si512(to + (c + 8) * out_stride, _mm512_shuffle_i32x4(low02, high02, 0xdd));
        _mm512_storeu_si512(to + (c + 12) * out_stride, _mm512_shuffle_i32x4(low13, high13, 0xdd));
    }
}

}  // namespace
}  // namespace gossamer
