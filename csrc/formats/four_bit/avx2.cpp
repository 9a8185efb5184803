// Expansion of 4-bit codes on AVX2.
#include "../../simd/avx2.h"

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "expand.h"

namespace gossamer {
namespace {

struct Bytes {
    static constexpr int64_t width = 32;
    __m256i v;
};
struct Words {
    __m256i v;
};
struct FourSums {
    __m256i v = _mm256_setzero_si256();
};

inline __m256i load_256(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline Bytes load(const uint8_t* p) { return {load_256(p)}; }
inline void store(int8_t* p, Bytes b) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), b.v); }
inline Bytes low_codes(Bytes b) { return {_mm256_and_si256(b.v, _mm256_set1_epi8(15))}; }
inline Bytes high_codes(Bytes b) { return {_mm256_and_si256(_mm256_srli_epi16(b.v, 4), _mm256_set1_epi8(15))}; }
inline Bytes lookup(const uint8_t* table, Bytes b) {
    const __m128i entries = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table));
    return {_mm256_shuffle_epi8(_mm256_broadcastsi128_si256(entries), b.v)};
}
inline Words low_words(Bytes b) { return {_mm256_unpacklo_epi8(b.v, _mm256_setzero_si256())}; }
inline Words high_words(Bytes b) { return {_mm256_unpackhi_epi8(b.v, _mm256_setzero_si256())}; }

// Eight columns, each four times: of every four, `first` and the next one. Four columns are 8 bytes.
inline Words columns(const int16_t* p, int first) {
    const __m256i all = _mm256_castsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    const __m256i lanes = _mm256_permute4x64_epi64(all, 0x50);
    const __m256i index = _mm256_set1_epi16(static_cast<int16_t>(0x0100 + 0x0202 * first));
    const __m256i steps = _mm256_set_epi16(0x202, 0x202, 0x202, 0x202, 0, 0, 0, 0, 0x202, 0x202, 0x202, 0x202, 0, 0, 0, 0);
    return {_mm256_shuffle_epi8(lanes, _mm256_add_epi16(index, steps))};
}
inline Words low_columns(const int16_t* p) { return columns(p, 0); }
inline Words high_columns(const int16_t* p) { return columns(p, 2); }
inline Words subtract(Words a, Words b) { return {_mm256_sub_epi16(a.v, b.v)}; }
inline Words shift_left(Words a, int shift) { return {_mm256_sll_epi16(a.v, _mm_cvtsi32_si128(shift))}; }
inline Words multiply_round(Words a, Words b) { return {_mm256_mulhrs_epi16(a.v, b.v)}; }
inline Bytes narrow(Words low, Words high) { return {_mm256_packs_epi16(low.v, high.v)}; }
inline void add_fours(FourSums& sums, Bytes b) {
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), b.v);
    sums.v = _mm256_add_epi32(sums.v, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
inline void add_to(int32_t* sum, FourSums sums) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(sum), _mm256_add_epi32(load_256(sum), sums.v));
}

// VPERMPS looks at the lowest 3 bits; the fourth chooses between the halves of the table.
inline __m256 lookup_floats(const float* table, __m256i codes) {
    const __m256 low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table), codes);
    const __m256 high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table + 8), codes);
    return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(codes, 28)));
}

inline void floats_line(const uint8_t* codes, const FourBitFloats& g, float* out) {
    for (int64_t n = 0; n < kPanelColumns; n += 8) {
        const __m256i words = load_256(codes + 4 * n);
        const __m256 zero = _mm256_loadu_ps(g.zero + n), scale = _mm256_loadu_ps(g.scale + n);
#pragma GCC unroll 8
        for (int k = 0; k < 8; ++k) {
            const int shift = k < 4 ? 8 * k : 8 * (k - 4) + 4;
            const __m256 value = lookup_floats(g.table, _mm256_srli_epi32(words, shift));
            _mm256_storeu_ps(out + k * kPanelColumns + n, _mm256_mul_ps(_mm256_sub_ps(value, zero), scale));
        }
    }
}

}  // namespace
}  // namespace gossamer

#include "expand_bytes.h"

namespace gossamer {
extern const FourBitKernels four_bit_avx2;
const FourBitKernels four_bit_avx2 = {Isa::avx2, convert_scales, find_ratios, expand<ValuesOp>, expand<RequantizeOp>, expand_floats};
}  // namespace gossamer
