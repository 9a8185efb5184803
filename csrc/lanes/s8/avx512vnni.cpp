// s8 lane on AVX512-VNNI. Contract: s8.h.
//
// VPDPBUSD zmm: 64 multiply-adds, latency 4 to 5 cycles; 2 a cycle on Intel server cores, 1 on Zen 4. So 8 to 10 independent sums are
// needed, and at most one load (a line of B, or 4 bytes of A broadcast) per instruction.
//
//   rows    tile (rows x panels x chains along K)
//   5..8    8 x 2 x 1: 16 sums, 10 loads per 16 VPDPBUSD
//   4       4 x 1 x 4
//   3, 2    3 x 2 x 4, 2 x 2 x 4: two panels, because a broadcast of A costs Zen 4 a load of 64 bytes
//   1       1 x 1 x 8: one sequential stream of B per thread, which is what the prefetchers want
//
// 12 x 2 and 6 x 4 tiles would read B less often, but panels of A hold 16 rows, which 8 divides; B comes from L2 at 8 bytes a cycle.
#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace gossamer {
namespace {

struct Sums {
    static constexpr int64_t columns = 16;
    __m512i v;
};

inline Sums zero() { return {_mm512_setzero_si512()}; }
inline Sums load(const int32_t* p) { return {_mm512_loadu_si512(p)}; }
inline Sums load_line(const int8_t* p) { return {_mm512_loadu_si512(p)}; }
inline void store(int32_t* p, Sums s) { _mm512_storeu_si512(p, s.v); }
inline Sums add(Sums a, Sums b) { return {_mm512_add_epi32(a.v, b.v)}; }
inline Sums dot(Sums sum, Sums word, Sums line) { return {_mm512_dpbusd_epi32(sum.v, word.v, line.v)}; }
struct Floats {
    __m512 v;
};

inline Floats zero_floats() { return {_mm512_setzero_ps()}; }
inline void store(float* p, Floats f) { _mm512_storeu_ps(p, f.v); }
inline Floats scale_add(Floats total, Sums s, const float* scales) {
    return {_mm512_fmadd_ps(_mm512_cvtepi32_ps(s.v), _mm512_loadu_ps(scales), total.v)};
}
inline Sums broadcast_word(const uint8_t* a) {
    int32_t word;
    std::memcpy(&word, a, 4);
    return {_mm512_set1_epi32(word)};
}

}  // namespace
}  // namespace gossamer

#include "grouped_tile.h"

namespace gossamer {
namespace {

void run_few(const S8Block& block, const uint8_t* a, int64_t rows, int32_t* c) {
    switch (rows) {
        case 1: return block.K < 32 ? run_rows<1, 1, 4>(block, a, c) : run_rows<1, 1, 8>(block, a, c);  // a group of 16 is 4 words
        case 2: return run_rows<2, 2, 4>(block, a, c);
        case 3: return run_rows<3, 2, 4>(block, a, c);
        case 4: return run_rows<4, 1, 4>(block, a, c);
        case 5: return run_rows<5, 2, 1>(block, a, c);
        case 6: return run_rows<6, 2, 1>(block, a, c);
        case 7: return run_rows<7, 2, 1>(block, a, c);
        default: return run_rows<8, 2, 1>(block, a, c);
    }
}

void run_few_grouped(const S8GroupedBlock& block, const uint8_t* a, int64_t rows, float* sum) {
    switch (rows) {
        case 1: return run_rows_grouped<1, 2, 1>(block, a, sum);
        case 2: return run_rows_grouped<2, 2, 1>(block, a, sum);
        case 3: return run_rows_grouped<3, 2, 1>(block, a, sum);
        default: return run_rows_grouped<4, 2, 1>(block, a, sum);
    }
}

void run(const S8Block& block) {
    for_each_few_rows<8>(block, [&](const uint8_t* a, int64_t rows, int64_t m) { run_few(block, a, rows, block.c + m * kStripColumns); });
}

// Four rows: as many fp32 totals as int32 sums must fit in the registers.
void run_grouped(const S8GroupedBlock& block) {
    for_each_few_rows<4>(
        block, [&](const uint8_t* a, int64_t rows, int64_t m) { run_few_grouped(block, a, rows, block.sum + m * kStripColumns); });
}

}  // namespace

extern const S8Kernels s8_avx512vnni;
const S8Kernels s8_avx512vnni = {{Isa::avx512vnni, 128, kMaxSumK, run, nullptr, nullptr}, run_grouped};
}  // namespace gossamer
