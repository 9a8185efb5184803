// Skip-compute int8 on AVX512-VNNI: 16 rows of x in a vector, four vectors in a tile. Contract: kernels.h.
//
// Zen 4 does one VPDPBUSD and one load of 64 bytes a cycle, Intel server cores two of each, with a latency of 4 or 5: eight independent
// sums, of which Zen 4 needs four (1 % slower with eight).
#include <immintrin.h>

#include <cstdint>

#include "kernels.h"

namespace gossamer {
namespace {

struct Sums {
    static constexpr int64_t rows = 16;
    __m512i v;
};
struct Quad {
    __m512i v;
};
struct Word {
    __m512i v;
};
inline constexpr int64_t kLineBytes = 64;
inline constexpr int kWantedSums = 8;

inline Sums broadcast(int32_t x) { return {_mm512_set1_epi32(x)}; }
inline Sums load(const int32_t* p) { return {_mm512_loadu_si512(p)}; }
inline void store(int32_t* p, Sums s) { _mm512_storeu_si512(p, s.v); }
inline Sums add(Sums a, Sums b) { return {_mm512_add_epi32(a.v, b.v)}; }
inline Quad load_quad(const int32_t* p) { return {_mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))}; }
template <int i>
inline Word word(Quad quad) {
    return {_mm512_shuffle_epi32(quad.v, static_cast<_MM_PERM_ENUM>(i * 0x55))};
}
inline Word one_word(const int32_t* p) { return {_mm512_set1_epi32(*p)}; }
inline Sums dot(Sums sum, const uint8_t* line, Word word) { return {_mm512_dpbusd_epi32(sum.v, _mm512_loadu_si512(line), word.v)}; }

}  // namespace
}  // namespace gossamer

#include "../transpose_avx512.h"
#include "tile.h"

namespace gossamer {
namespace {

void transpose_lines(const uint8_t* lines, int64_t rows, uint8_t* x, int64_t group_stride) {
    transpose_16x16(lines, 16, rows, x, group_stride / 4);
}

void run(const SpmmS8Block& block) {
    switch (block.vectors) {
        case 1: return run_tile<1>(block);
        case 2: return run_tile<2>(block);
        case 3: return run_tile<3>(block);
        default: return run_tile<4>(block);
    }
}

}  // namespace

extern const SpmmS8Kernels spmm_s8_avx512vnni;
const SpmmS8Kernels spmm_s8_avx512vnni = {Isa::avx512vnni, 4, 4, run, transpose_lines, transpose_16x16};
}  // namespace gossamer
