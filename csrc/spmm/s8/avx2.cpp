// Skip-compute int8 on AVX2: 8 rows of x in a vector, two vectors in a tile. Contract: kernels.h.
//
// VPMADDUBSW saturates (csrc/lanes/s8/avx2.cpp), so x is widened to int16 once, while it is transposed, and VPMADDWD adds the products of
// the pairs (k0, k1) and (k2, k3) exactly. VPMADDUBSW of |w| and sign(q, w) is exact too and reads half of the bytes, but has three
// instructions on the multiplier ports of Intel where this has two. Tiles of 32 rows lost on Zen 4: 9 cycles a group, two of 16 take 7.6.
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "kernels.h"

namespace gossamer {
namespace {

struct Sums {
    static constexpr int64_t rows = 8;
    __m256i v;
};
struct Quad {
    __m256i first, second;  // two groups each, widened, the same in both halves
};
struct Word {
    __m256i low, high;  // (k0, k1) and (k2, k3)
};
inline constexpr int64_t kLineBytes = 64;
inline constexpr int kWantedSums = 1;  // only VPADDD is in the chain

inline __m256i load_256(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline Sums broadcast(int32_t x) { return {_mm256_set1_epi32(x)}; }
inline Sums load(const int32_t* p) { return {load_256(p)}; }
inline void store(int32_t* p, Sums s) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), s.v); }
inline Sums add(Sums a, Sums b) { return {_mm256_add_epi32(a.v, b.v)}; }
inline Quad load_quad(const int32_t* p) {
    const __m256i wide = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return {_mm256_permute4x64_epi64(wide, 0x44), _mm256_permute4x64_epi64(wide, 0xee)};
}
template <int i>
inline Word word(Quad quad) {
    const __m256i two = i < 2 ? quad.first : quad.second;
    return {_mm256_shuffle_epi32(two, i % 2 * 0xaa), _mm256_shuffle_epi32(two, i % 2 * 0xaa + 0x55)};
}
inline Word one_word(const int32_t* p) {
    const __m256i wide = _mm256_cvtepi8_epi16(_mm_set1_epi32(*p));
    return {_mm256_shuffle_epi32(wide, 0x00), _mm256_shuffle_epi32(wide, 0x55)};
}
inline Sums dot(Sums sum, const uint8_t* line, Word word) {
    const __m256i low = _mm256_madd_epi16(word.low, load_256(line)), high = _mm256_madd_epi16(word.high, load_256(line + 32));
    return {_mm256_add_epi32(_mm256_add_epi32(sum.v, low), high)};
}

}  // namespace
}  // namespace gossamer

#include "../transpose_avx2.h"
#include "tile.h"

namespace gossamer {
namespace {

// 8 words to 8 pairs of int16 from bytes `first` and first + 1 of each.
inline __m256i widen_pairs(__m256i words, int first) {
    const __m256i dword = _mm256_setr_epi32(0, 0x00040004, 0x00080008, 0x000c000c, 0, 0x00040004, 0x00080008, 0x000c000c);
    const int bytes = static_cast<int>(0x80018000) + first * 0x00010001;  // 0x80: zero
    return _mm256_shuffle_epi8(words, _mm256_add_epi32(_mm256_set1_epi32(bytes), dword));
}

void transpose_lines(const uint8_t* lines, int64_t rows, uint8_t* x, int64_t group_stride) {
    alignas(64) uint32_t words[16 * 16];
    transpose_16x16(lines, 16, rows, words, 16);
    for (int64_t group = 0; group < 16; ++group, x += group_stride) {
        for (int64_t row = 0; row < 16; row += Sums::rows) {
            const __m256i eight = load_256(words + group * 16 + row);
            uint8_t* line = x + row / Sums::rows * kLineBytes;
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(line), widen_pairs(eight, 0));
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(line + 32), widen_pairs(eight, 2));
        }
    }
}

}  // namespace

extern const SpmmS8Kernels spmm_s8_avx2;
const SpmmS8Kernels spmm_s8_avx2 = {Isa::avx2, 1, 8, run_tile<1>, transpose_lines, transpose_16x16};
}  // namespace gossamer
