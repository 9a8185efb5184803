// Expansion of 4-bit codes on AVX-512.
#include "../../simd/avx512.h"

#include <immintrin.h>

#include <cstdint>

#include "expand.h"

namespace gossamer {
namespace {

struct Bytes {
    static constexpr int64_t width = 64;
    __m512i v;
};
struct Words {
    __m512i v;
};
struct FourSums {
    __m512i v = _mm512_setzero_si512();
};

inline Bytes load(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
inline void store(int8_t* p, Bytes b) { _mm512_storeu_si512(p, b.v); }
inline Bytes low_codes(Bytes b) { return {_mm512_and_si512(b.v, _mm512_set1_epi8(15))}; }
inline Bytes high_codes(Bytes b) { return {_mm512_and_si512(_mm512_srli_epi16(b.v, 4), _mm512_set1_epi8(15))}; }
inline Bytes lookup(const uint8_t* table, Bytes b) {
    const __m128i entries = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table));
    return {_mm512_shuffle_epi8(_mm512_broadcast_i32x4(entries), b.v)};
}
inline Words low_words(Bytes b) { return {_mm512_unpacklo_epi8(b.v, _mm512_setzero_si512())}; }
inline Words high_words(Bytes b) { return {_mm512_unpackhi_epi8(b.v, _mm512_setzero_si512())}; }

// Sixteen columns, each four times: of every four, `first` and the next one.
inline Words columns(const int16_t* p, int first) {
    const __m512i all = _mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    const __m512i lanes = _mm512_set_epi32(12, 12, 12, 12, 8, 8, 8, 8, 4, 4, 4, 4, 0, 0, 0, 0);
    const __m512i steps = _mm512_set_epi32(1, 1, 0, 0, 1, 1, 0, 0, 1, 1, 0, 0, 1, 1, 0, 0);
    const __m512i index = _mm512_add_epi32(_mm512_add_epi32(lanes, steps), _mm512_set1_epi32(first));
    return {_mm512_permutexvar_epi16(_mm512_or_si512(index, _mm512_slli_epi32(index, 16)), all)};
}
inline Words low_columns(const int16_t* p) { return columns(p, 0); }
inline Words high_columns(const int16_t* p) { return columns(p, 2); }
inline Words subtract(Words a, Words b) { return {_mm512_sub_epi16(a.v, b.v)}; }
inline Words shift_left(Words a, int shift) { return {_mm512_sll_epi16(a.v, _mm_cvtsi32_si128(shift))}; }
inline Words multiply_round(Words a, Words b) { return {_mm512_mulhrs_epi16(a.v, b.v)}; }
inline Bytes narrow(Words low, Words high) { return {_mm512_packs_epi16(low.v, high.v)}; }
inline void add_fours(FourSums& sums, Bytes b) {
    const __m512i pairs = _mm512_maddubs_epi16(_mm512_set1_epi8(1), b.v);
    sums.v = _mm512_add_epi32(sums.v, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
}
inline void add_to(int32_t* sum, FourSums sums) { _mm512_storeu_si512(sum, _mm512_add_epi32(_mm512_loadu_si512(sum), sums.v)); }

// Sixteen words of 32 bits hold 4 k of low and 4 k of high codes of a column each; VPERMPS looks at the lowest 4 bits only.
inline void floats_line(const uint8_t* codes, const FourBitFloats& g, float* out) {
    const __m512i words = _mm512_loadu_si512(codes);
    const __m512 table = _mm512_loadu_ps(g.table), zero = _mm512_loadu_ps(g.zero), scale = _mm512_loadu_ps(g.scale);
#pragma GCC unroll 8
    for (unsigned k = 0; k < 8; ++k) {
        const unsigned shift = k < 4 ? 8 * k : 8 * (k - 4) + 4;
        const __m512 value = _mm512_permutexvar_ps(_mm512_srli_epi32(words, shift), table);
        _mm512_storeu_ps(out + k * kPanelColumns, _mm512_mul_ps(_mm512_sub_ps(value, zero), scale));
    }
}

}  // namespace
}  // namespace gossamer

#include "expand_bytes.h"

namespace gossamer {
extern const FourBitKernels four_bit_avx512;
const FourBitKernels four_bit_avx512 = {Isa::avx512, convert_scales, find_ratios, expand<ValuesOp>, expand<RequantizeOp>, expand_floats};
}  // namespace gossamer
