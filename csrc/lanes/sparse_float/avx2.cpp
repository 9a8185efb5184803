// Sparse bf16 and fp32 lines on AVX2. Contract: sparse_float.h.
//
// Without an expand instruction each byte of a mask selects the controls of a permutation: VPERMPS for 8 dwords (2 KiB of controls; the
// sign of a control marks a zero), VPSHUFB for 8 words (4 KiB; it writes zeros itself).
#include <immintrin.h>

#include <cstdint>

namespace gossamer {
namespace {

constexpr int kMaxRows = 6, kSums = 4;

struct DwordControls {
    int8_t of[256][8];
    constexpr DwordControls() : of() {
        for (int mask = 0; mask < 256; ++mask) {
            int8_t next = 0;
            for (int i = 0; i < 8; ++i) of[mask][i] = (mask >> i & 1) != 0 ? next++ : int8_t{-1};
        }
    }
};
struct WordControls {
    int8_t of[256][16];
    constexpr WordControls() : of() {
        for (int mask = 0; mask < 256; ++mask) {
            int8_t next = 0;
            for (int i = 0; i < 16; ++i) of[mask][i] = (mask >> i / 2 & 1) != 0 ? next++ : int8_t{-1};
        }
    }
};
alignas(64) constexpr DwordControls kDwords;
alignas(64) constexpr WordControls kWords;

struct Line {
    __m256i low, high;
};
inline void store_line(uint8_t* p, Line line) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), line.low);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 32), line.high);
}

inline __m256i expand_8_dwords(const uint8_t*& values, uint32_t mask) {
    const __m256i controls = _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(kDwords.of[mask])));
    const __m256 placed = _mm256_permutevar8x32_ps(_mm256_loadu_ps(reinterpret_cast<const float*>(values)), controls);
    values += 4 * _mm_popcnt_u64(mask);
    return _mm256_castps_si256(_mm256_blendv_ps(placed, _mm256_setzero_ps(), _mm256_castsi256_ps(controls)));
}
inline Line expand_dwords(const uint8_t*& values, uint32_t mask) {
    const __m256i low = expand_8_dwords(values, mask & 0xff);
    return {low, expand_8_dwords(values, mask >> 8)};
}

inline __m128i expand_8_words(const uint8_t*& values, uint32_t mask) {
    const __m128i controls = _mm_load_si128(reinterpret_cast<const __m128i*>(kWords.of[mask]));
    const __m128i packed = _mm_loadu_si128(reinterpret_cast<const __m128i*>(values));
    values += 2 * _mm_popcnt_u64(mask);
    return _mm_shuffle_epi8(packed, controls);
}
inline __m256i expand_16_words(const uint8_t*& values, uint32_t mask) {
    const __m128i low = expand_8_words(values, mask & 0xff);
    return _mm256_set_m128i(expand_8_words(values, mask >> 8 & 0xff), low);
}
inline Line expand_words(const uint8_t*& values, uint32_t mask) {
    const __m256i low = expand_16_words(values, mask);
    return {low, expand_16_words(values, mask >> 16)};
}

inline Line even_words(Line line) { return {_mm256_slli_epi32(line.low, 16), _mm256_slli_epi32(line.high, 16)}; }
inline Line odd_words(Line line) {
    const __m256i odd = _mm256_set1_epi32(static_cast<int>(0xffff0000));
    return {_mm256_and_si256(line.low, odd), _mm256_and_si256(line.high, odd)};
}

struct Sums {
    __m256 low, high;
};
inline Sums broadcast(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline Sums add(Sums a, Sums b) { return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
inline void store(float* p, Sums s) {
    _mm256_storeu_ps(p, s.low);
    _mm256_storeu_ps(p + 8, s.high);
}
inline Sums add_zero_times(Sums sum, const float* a) {
    const __m256 zeros = _mm256_setzero_ps();
    return {_mm256_fmadd_ps(_mm256_loadu_ps(a), zeros, sum.low), _mm256_fmadd_ps(_mm256_loadu_ps(a + 8), zeros, sum.high)};
}
inline Sums dot(Sums sum, const float* a, Line line) {
    const __m256 word = _mm256_broadcast_ss(a);
    return {_mm256_fmadd_ps(word, _mm256_castsi256_ps(line.low), sum.low), _mm256_fmadd_ps(word, _mm256_castsi256_ps(line.high), sum.high)};
}

}  // namespace
}  // namespace gossamer

#include "tile.h"

namespace gossamer {
extern const SparseFloatKernels sparse_float_avx2;
const SparseFloatKernels sparse_float_avx2 = {Isa::avx2,     expand<2, uint16_t>, expand<1, float>, kMaxRows,
                                              run<F32Lines>, run<Bf16LinesF32>,   nullptr};
}  // namespace gossamer
