// s8 lane on AVX-VNNI: VPDPBUSD on 256-bit registers, for client CPUs without AVX-512. Contract: s8.h.
//
// 32 multiply-adds an instruction, two a cycle, latency 5: ten independent sums. Sixteen registers hold a tile of 6 rows x 16 columns
// (12 sums), two vectors of B and one of A.
//
// The intrinsic is the one that AVX512-VNNI with VL also has, so that a machine without AVX-VNNI can run this file in the tests.
#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace gossamer {
namespace {

struct Sums {
    static constexpr int64_t columns = 8;
    __m256i v;
};

inline Sums zero() { return {_mm256_setzero_si256()}; }
inline Sums load(const int32_t* p) { return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))}; }
inline Sums load_line(const int8_t* p) { return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))}; }
inline void store(int32_t* p, Sums s) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), s.v); }
inline Sums add(Sums a, Sums b) { return {_mm256_add_epi32(a.v, b.v)}; }
inline Sums dot(Sums sum, Sums word, Sums line) {
#if defined(__AVXVNNI__)
    return {_mm256_dpbusd_avx_epi32(sum.v, word.v, line.v)};
#else
    return {_mm256_dpbusd_epi32(sum.v, word.v, line.v)};
#endif
}
struct Floats {
    __m256 v;
};

inline Floats zero_floats() { return {_mm256_setzero_ps()}; }
inline void store(float* p, Floats f) { _mm256_storeu_ps(p, f.v); }
inline Floats scale_add(Floats total, Sums s, const float* scales) {
    return {_mm256_fmadd_ps(_mm256_cvtepi32_ps(s.v), _mm256_loadu_ps(scales), total.v)};
}
inline Sums broadcast_word(const uint8_t* a) {
    int32_t word;
    std::memcpy(&word, a, 4);
    return {_mm256_set1_epi32(word)};
}

}  // namespace
}  // namespace gossamer

#include "grouped_tile.h"

namespace gossamer {
namespace {

void run_few(const S8Block& block, const uint8_t* a, int64_t rows, int32_t* c) {
    switch (rows) {
        case 1: return run_rows<1, 2, 4>(block, a, c);
        case 2: return run_rows<2, 2, 2>(block, a, c);
        case 3: return run_rows<3, 2, 2>(block, a, c);
        case 4: return run_rows<4, 2, 1>(block, a, c);
        case 5: return run_rows<5, 2, 1>(block, a, c);
        default: return run_rows<6, 2, 1>(block, a, c);
    }
}

void run_few_grouped(const S8GroupedBlock& block, const uint8_t* a, int64_t rows, float* sum) {
    switch (rows) {
        case 1: return run_rows_grouped<1, 2, 2>(block, a, sum);
        case 2: return run_rows_grouped<2, 2, 1>(block, a, sum);
        case 3: return run_rows_grouped<3, 1, 1>(block, a, sum);
        default: return run_rows_grouped<4, 1, 1>(block, a, sum);
    }
}

void run(const S8Block& block) {
    for_each_few_rows<6>(block, [&](const uint8_t* a, int64_t rows, int64_t m) { run_few(block, a, rows, block.c + m * kStripColumns); });
}

// Four rows: as many fp32 totals as int32 sums must fit in the registers.
void run_grouped(const S8GroupedBlock& block) {
    for_each_few_rows<4>(
        block, [&](const uint8_t* a, int64_t rows, int64_t m) { run_few_grouped(block, a, rows, block.sum + m * kStripColumns); });
}

}  // namespace

extern const S8Kernels s8_avxvnni;
const S8Kernels s8_avxvnni = {{Isa::avxvnni, 64, kMaxSumK, run, nullptr, nullptr}, run_grouped};
}  // namespace gossamer
