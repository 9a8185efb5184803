// f32 lane on AVX-512. Contract: f32.h.
//
// VFMADD zmm: 16 multiply-adds, latency 4; 2 a cycle on Intel server cores, 1 on Zen 4. So 8 independent sums, and at most one load (a line
// of B, or a float of A broadcast) per instruction.
//
//   rows    tile (rows x panels x chains along K)
//   5..8    8 x 2 x 1: 16 sums, 10 loads per 16 products
//   4       4 x 2 x 2
//   3, 2    3 x 2 x 4, 2 x 2 x 4
//   1       1 x 1 x 4: one sequential stream of B; B from L2, a line in two cycles at best, is slower than these four sums
//
// block_k = 256: the strip of B takes 32 KiB. Where that is all of L1, 8 rows take 8 bytes of it a cycle from L2, half of what L2 gives.
#include <immintrin.h>

#include <cstdint>

namespace gossamer {
namespace {

struct Sums {
    static constexpr int64_t columns = 16;
    __m512 v;
};

inline Sums zero() { return {_mm512_setzero_ps()}; }
inline Sums load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline Sums load_line(const float* p) { return {_mm512_loadu_ps(p)}; }
inline void store(float* p, Sums s) { _mm512_storeu_ps(p, s.v); }
inline Sums add(Sums a, Sums b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Sums dot(Sums sum, Sums word, Sums line) { return {_mm512_fmadd_ps(word.v, line.v, sum.v)}; }
inline Sums broadcast_word(const float* a) { return {_mm512_set1_ps(*a)}; }

}  // namespace
}  // namespace gossamer

#include "../tile.h"
#include "gossamer/f32.h"

namespace gossamer {
namespace {

void run_few(const F32Block& block, const float* a, int64_t rows, float* c) {
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

void run(const F32Block& block) {
    for_each_few_rows<8>(block, [&](const float* a, int64_t rows, int64_t m) { run_few(block, a, rows, block.c + m * kStripColumns); });
}

}  // namespace

extern const F32Kernels f32_avx512;
const F32Kernels f32_avx512 = {Isa::avx512, 128, 256, run, nullptr, nullptr};
}  // namespace gossamer
