// fp8 to bf16 by looking up both bytes of each magnitude among 128 (VPERMI2B).
#include "simd/avx512.h"

#include "expand_lines.h"
#include "values.h"

namespace gossamer {
namespace {

// One byte of 128 table entries.
struct Bytes {
    __m512i first, last;
};

inline Bytes low_bytes(const uint16_t* table) {
    const auto part = [&](int i) { return _mm512_cvtepi16_epi8(_mm512_load_si512(table + 32 * i)); };
    return {_mm512_inserti64x4(_mm512_castsi256_si512(part(0)), part(1), 1), _mm512_inserti64x4(_mm512_castsi256_si512(part(2)), part(3), 1)};
}

inline Bytes high_bytes(const uint16_t* table) {
    const auto part = [&](int i) { return _mm512_cvtepi16_epi8(_mm512_srli_epi16(_mm512_load_si512(table + 32 * i), 8)); };
    return {_mm512_inserti64x4(_mm512_castsi256_si512(part(0)), part(1), 1), _mm512_inserti64x4(_mm512_castsi256_si512(part(2)), part(3), 1)};
}

void look_up_bf16(const Fp8Expand& run, uint16_t* out) {
    alignas(64) uint16_t scaled[128];
    const uint16_t* magnitudes = fp8_magnitudes(run.format);
    const Vec scale = broadcast(run.scale);
    for (int64_t i = 0; i < 128; i += Vec::width) store_bf16(scaled + i, load_bf16(magnitudes + i) * scale);
    const Bytes low = low_bytes(scaled), high = high_bytes(scaled);
    const __m512i sign = _mm512_set1_epi8(-128);
    for (int64_t line = 0; line < run.lines; ++line, out += kLine) {
        const __m512i codes = _mm512_loadu_si512(run.codes + line * kLine);  // the lookups ignore the sign bit
        const __m512i lows = _mm512_permutex2var_epi8(low.first, codes, low.last);
        const __m512i magnitude = _mm512_permutex2var_epi8(high.first, codes, high.last);
        const __m512i highs = _mm512_ternarylogic_epi64(magnitude, codes, sign, 0x78);  // magnitude ^ (codes & sign)
        _mm512_storeu_si512(out, _mm512_unpacklo_epi8(lows, highs));
        _mm512_storeu_si512(out + 32, _mm512_unpackhi_epi8(lows, highs));
    }
}

}  // namespace

extern const Fp8ExpandKernels fp8_expand_avx512bf16;
const Fp8ExpandKernels fp8_expand_avx512bf16 = {Isa::avx512bf16, expand_lines_to_f32, look_up_bf16};
}  // namespace gossamer
