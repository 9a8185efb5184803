// u4 operand on AVX512-VNNI: codebooks by VPSHUFB, whose index is a byte with nothing but the code in it.
#include <immintrin.h>

#include <cstdint>

namespace gossamer {
namespace {

struct Table {
    __m512i v;
};

inline Table make_table(const uint8_t* t) { return {_mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(t)))}; }
inline __m512i look_up_low(Table table, __m512i line) {
    return _mm512_shuffle_epi8(table.v, _mm512_and_si512(line, _mm512_set1_epi8(0x0f)));
}
inline __m512i look_up_high(Table table, __m512i line) { return look_up_low(table, _mm512_srli_epi16(line, 4)); }

}  // namespace
}  // namespace gossamer

#include "tile_512.h"

namespace gossamer {
extern const U4Kernels u4_avx512vnni;
const U4Kernels u4_avx512vnni = {Isa::avx512vnni, 64, 255, run, center};
}  // namespace gossamer
