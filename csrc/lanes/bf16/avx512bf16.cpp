// bf16 lane on AVX512-BF16. Contract: bf16.h.
//
// VDPBF16PS zmm: 32 multiply-adds, two neighbouring k of 16 columns; latency 6, one a cycle on Zen 4. A word is two bf16 of A, broadcast as
// 32 bits.
//
//   rows    tile (rows x panels x chains along K)
//   5..8    8 x 2 x 1: 16 sums, 10 loads per 16 products
//   4       4 x 2 x 2
//   3, 2    3 x 2 x 4, 2 x 2 x 4
//   1       1 x 1 x 4: one sequential stream of B; from L2, a line in two cycles at best, it is slower than these four sums
//
// block_k = 512: the strip of B takes 32 KiB; eight rows read it at 8 bytes a cycle, half of what L2 gives where L1 is no larger.
#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace gossamer {
namespace {

struct Sums {
    static constexpr int64_t columns = 16;
    __m512 v;
};

inline Sums zero() { return {_mm512_setzero_ps()}; }
inline Sums load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline Sums load_line(const uint16_t* p) { return {_mm512_castsi512_ps(_mm512_loadu_si512(p))}; }
inline void store(float* p, Sums s) { _mm512_storeu_ps(p, s.v); }
inline Sums add(Sums a, Sums b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Sums dot(Sums sum, Sums word, Sums line) {
    return {_mm512_dpbf16_ps(sum.v, reinterpret_cast<__m512bh>(word.v), reinterpret_cast<__m512bh>(line.v))};
}
inline Sums broadcast_word(const uint16_t* a) {
    int32_t word;
    std::memcpy(&word, a, 4);
    return {_mm512_castsi512_ps(_mm512_set1_epi32(word))};
}

}  // namespace
}  // namespace gossamer

#include "../tile.h"
#include "gossamer/bf16.h"

namespace gossamer {
namespace {

void run_few(const Bf16Block& block, const uint16_t* a, int64_t rows, float* c) {
    switch (rows) {
        case 1: return run_rows<1, 1, 4>(block, a, c);
        case 2: return run_rows<2, 2, 4>(block, a, c);
        case 3: return run_rows<3, 2, 4>(block, a, c);
        case 4: return run_rows<4, 2, 2>(block, a, c);
        case 5: return run_rows<5, 2, 1>(block, a, c);
        case 6: return run_rows<6, 2, 1>(block, a, c);
        case 7: return run_rows<7, 2, 1>(block, a, c);
        default: return run_rows<8, 2, 1>(block, a, c);
    }
}

void run(const Bf16Block& block) {
    for_each_few_rows<8>(block, [&](const uint16_t* a, int64_t rows, int64_t m) { run_few(block, a, rows, block.c + m * kStripColumns); });
}

}  // namespace

extern const Bf16Kernels bf16_avx512bf16;
const Bf16Kernels bf16_avx512bf16 = {Isa::avx512bf16, 128, 512, run, nullptr, nullptr};
}  // namespace gossamer
