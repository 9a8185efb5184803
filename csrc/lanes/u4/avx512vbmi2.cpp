// u4 operand with AVX512-VBMI, which this ISA implies: codebooks by VPERMB. Its index is six bits, of which the table, four times the same
// 16 bytes, ignores the upper two: so the low codes need no AND and the high ones only a shift.
#include <immintrin.h>

#include <cstdint>

namespace gossamer {
namespace {

struct Table {
    __m512i v;
};

inline Table make_table(const uint8_t* t) { return {_mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(t)))}; }
inline __m512i look_up_low(Table table, __m512i line) { return _mm512_permutexvar_epi8(line, table.v); }
inline __m512i look_up_high(Table table, __m512i line) { return look_up_low(table, _mm512_srli_epi16(line, 4)); }

}  // namespace
}  // namespace gossamer

#include "tile_512.h"

namespace gossamer {
extern const U4Kernels u4_avx512vbmi2;
const U4Kernels u4_avx512vbmi2 = {Isa::avx512vbmi2, 64, 255, run, center};
}  // namespace gossamer
