// f32 lane on AVX2 and FMA. Contract: f32.h.
//
// VFMADD ymm: 8 multiply-adds, two a cycle, latency 4: eight independent sums. Sixteen registers hold a tile of 6 rows x 16 columns (12
// sums), two vectors of B and one of A: 8 loads for 12 products, where two loads a cycle go with two products. A panel of 16 rows is
// walked as 6, 6, 4.
//
//   rows    tile (rows x vectors of 8 columns x chains along K)
//   4..6    6 x 2 x 1
//   2, 3    2 x 2 x 2, 3 x 2 x 2
//   1       1 x 2 x 4: one sequential stream of B
//
// block_k = 128: the strip of B takes 16 KiB, half of L1, because every 6 rows read it again, 11 bytes a cycle, which L2 hardly gives.
// Loading and storing the 12 sums costs 24 instructions in 128 x 20.
#include <immintrin.h>

#include <cstdint>

namespace gossamer {
namespace {

struct Sums {
    static constexpr int64_t columns = 8;
    __m256 v;
};

inline Sums zero() { return {_mm256_setzero_ps()}; }
inline Sums load(const float* p) { return {_mm256_loadu_ps(p)}; }
inline Sums load_line(const float* p) { return {_mm256_loadu_ps(p)}; }
inline void store(float* p, Sums s) { _mm256_storeu_ps(p, s.v); }
inline Sums add(Sums a, Sums b) { return {_mm256_add_ps(a.v, b.v)}; }
inline Sums dot(Sums sum, Sums word, Sums line) { return {_mm256_fmadd_ps(word.v, line.v, sum.v)}; }
inline Sums broadcast_word(const float* a) { return {_mm256_broadcast_ss(a)}; }

}  // namespace
}  // namespace gossamer

#include "../tile.h"
#include "gossamer/f32.h"

namespace gossamer {
namespace {

void run_few(const F32Block& block, const float* a, int64_t rows, float* c) {
    switch (rows) {
        case 1: return run_rows<1, 2, 4>(block, a, c);
        case 2: return run_rows<2, 2, 2>(block, a, c);
        case 3: return run_rows<3, 2, 2>(block, a, c);
        case 4: return run_rows<4, 2, 1>(block, a, c);
        case 5: return run_rows<5, 2, 1>(block, a, c);
        default: return run_rows<6, 2, 1>(block, a, c);
    }
}

void run(const F32Block& block) {
    for_each_few_rows<6>(block, [&](const float* a, int64_t rows, int64_t m) { run_few(block, a, rows, block.c + m * kStripColumns); });
}

}  // namespace

extern const F32Kernels f32_avx2;
const F32Kernels f32_avx2 = {Isa::avx2, 128, 128, run, nullptr, nullptr};
}  // namespace gossamer
