// Skip-compute int8 on AVX-VNNI: 8 rows of x in a vector, eight vectors in a tile. Contract: kernels.h.
//
// Two VPDPBUSD of 256 bits a cycle and two or three loads, latency 5. Eight sums are what 16 registers hold beside a quad, a word and a
// line. The intrinsic is the one that AVX512-VNNI with VL also has, so that a machine without AVX-VNNI can run this file in the tests.
#include <immintrin.h>

#include <cstdint>

#include "kernels.h"

namespace gossamer {
namespace {

struct Sums {
    static constexpr int64_t rows = 8;
    __m256i v;
};
struct Quad {
    __m256i v;
};
struct Word {
    __m256i v;
};
inline constexpr int64_t kLineBytes = 32;
inline constexpr int kWantedSums = 8;

inline __m256i load_256(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline Sums broadcast(int32_t x) { return {_mm256_set1_epi32(x)}; }
inline Sums load(const int32_t* p) { return {load_256(p)}; }
inline void store(int32_t* p, Sums s) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), s.v); }
inline Sums add(Sums a, Sums b) { return {_mm256_add_epi32(a.v, b.v)}; }
inline Quad load_quad(const int32_t* p) { return {_mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))}; }
template <int i>
inline Word word(Quad quad) {
    return {_mm256_shuffle_epi32(quad.v, i * 0x55)};
}
inline Word one_word(const int32_t* p) { return {_mm256_set1_epi32(*p)}; }
inline Sums dot(Sums sum, const uint8_t* line, Word word) {
#if defined(__AVXVNNI__)
    return {_mm256_dpbusd_avx_epi32(sum.v, load_256(line), word.v)};
#else
    return {_mm256_dpbusd_epi32(sum.v, load_256(line), word.v)};
#endif
}

}  // namespace
}  // namespace gossamer

#include "../transpose_avx2.h"
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

extern const SpmmS8Kernels spmm_s8_avxvnni;
const SpmmS8Kernels spmm_s8_avxvnni = {Isa::avxvnni, 4, 4, run, transpose_lines, transpose_16x16};
}  // namespace gossamer
