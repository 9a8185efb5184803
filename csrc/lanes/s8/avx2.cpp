// s8 lane on AVX2. Contract: s8.h.
//
// VPMADDUBSW saturates: 255 * 127 + 255 * 127 does not fit in int16. So bytes are widened to int16 first and VPMADDWD adds pairs of
// products in int32, exactly, for every input (|pair| <= 2 * 255 * 128).
//
//   VPMADDWD + VPADDD = 16 multiply-adds in two instructions, on 3 vector ports (Intel) or 2 + 4 (Zen): 24 to 32 a cycle, where fp32
//   FMA has 16. The exact alternative, |a| * sign(b, a) through VPMADDUBSW, needs 4 instructions per 32 and fails for w = -128; splitting
//   a into nibbles needs 4.5.
//
// More than 8 rows: the strip of B is widened once per call into pairs and used by every row, A four rows at a time.
//
//   wide B:  [panel][K/2][16 columns][2 k] int16    columns in the order 0 1 4 5 2 3 6 7 (8 9 12 13 ...), as the shuffle leaves them
//   wide A:  [4 rows][K] int16, u in [0, 255]
//   tile:    4 rows x 16 columns: 8 sums, 2 of B, 1 of A, 1 product
//
// Fewer: two rows at a time, B is widened in registers, 4 columns x 4 k to a vector, and neighbouring sums are added at the end. (A loop of
// VPMADDWD and VPADDD on registers alone reaches 1.5 pairs a cycle on Zen 4, not 2, so many rows are within 15 % of what there is.)
//
// block_k = 256 keeps the wide strip at 16 KiB, in L1.
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "../few_rows.h"
#include "gossamer/s8.h"

namespace gossamer {
namespace {

inline constexpr int64_t kBlockK = 256;
inline constexpr int64_t kRows = 4;
// Up to here, widening B for each pair of rows costs less than widening it once through memory.
inline constexpr int64_t kFewRows = 8;
inline constexpr int64_t kLineBytes = kPanelColumns * 4;

inline __m256i load(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline void store(void* p, __m256i x) { _mm256_storeu_si256(static_cast<__m256i*>(p), x); }
inline __m256i load_s8_wide(const int8_t* p) { return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
inline __m256i multiply_pairs(__m256i sum, __m256i a, __m256i b) { return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b)); }

// Between the order of a wide vector's columns and 0..7; its own inverse.
inline __m256i swap_middle(__m256i x) { return _mm256_permute4x64_epi64(x, 0xd8); }

// 8 columns x 4 k: pairs (k0, k1) and pairs (k2, k3).
inline void widen_half_line(const int8_t* line, int16_t* wide) {
    const __m256 low = _mm256_castsi256_ps(load_s8_wide(line)), high = _mm256_castsi256_ps(load_s8_wide(line + 16));
    store(wide, _mm256_castps_si256(_mm256_shuffle_ps(low, high, 0x88)));
    store(wide + 2 * kPanelColumns, _mm256_castps_si256(_mm256_shuffle_ps(low, high, 0xdd)));
}

void widen_panel(const int8_t* panel, int64_t K, int16_t* wide) {
    for (int64_t k = 0; k < K; k += 4, panel += kLineBytes, wide += kLineBytes) {
        widen_half_line(panel, wide);
        widen_half_line(panel + 32, wide + 16);
    }
}

// `rows` rows of one panel of A, from lines of 64 bytes to rows of K.
void widen_rows(const uint8_t* a, int64_t panel_rows, int64_t rows, int64_t K, int16_t* wide) {
    for (int64_t k = 0; k < K; k += 16) {
        const uint8_t* line = a + k / S8Block::chunk * panel_rows * S8Block::chunk + k % S8Block::chunk;
        for (int64_t r = 0; r < rows; ++r) {
            const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(line + r * S8Block::chunk));
            store(wide + r * kBlockK + k, _mm256_cvtepu8_epi16(bytes));
        }
    }
}

inline __m256i broadcast_pair(const int16_t* a) {
    int32_t pair;
    std::memcpy(&pair, a, 4);
    return _mm256_set1_epi32(pair);
}

template <int rows>
void run_tile(const int16_t* a, const int16_t* b, int64_t K, const int32_t* init, int32_t* c) {
    __m256i sums[rows][2];
    for (int r = 0; r < rows; ++r) {
        const int32_t* before = init != nullptr ? init : c + r * kStripColumns;
        for (int v = 0; v < 2; ++v) sums[r][v] = swap_middle(load(before + 8 * v));
    }
    for (int64_t k = 0; k < K; k += 2, b += 2 * kPanelColumns) {
        const __m256i b0 = load(b), b1 = load(b + 16);
#pragma GCC unroll 4
        for (int r = 0; r < rows; ++r) {
            const __m256i pair = broadcast_pair(a + r * kBlockK + k);
            sums[r][0] = multiply_pairs(sums[r][0], pair, b0);
            sums[r][1] = multiply_pairs(sums[r][1], pair, b1);
        }
    }
    for (int r = 0; r < rows; ++r) {
        for (int v = 0; v < 2; ++v) store(c + r * kStripColumns + 8 * v, swap_middle(sums[r][v]));
    }
}

void run_group(const S8Block& t, const int16_t* wide_b, const uint8_t* a, int64_t rows, int32_t* c) {
    alignas(64) int16_t wide_a[kRows * kBlockK];
    widen_rows(a, t.panel_rows, rows, t.K, wide_a);
    for (int64_t j = 0; j < t.n_panels; ++j) {
        const int16_t* b = wide_b + j * kBlockK * kPanelColumns;
        const int32_t* init = t.init != nullptr ? t.init + j * kPanelColumns : nullptr;
        int32_t* cj = c + j * kPanelColumns;
        switch (rows) {
            case 1: run_tile<1>(wide_a, b, t.K, init, cj); break;
            case 2: run_tile<2>(wide_a, b, t.K, init, cj); break;
            case 3: run_tile<3>(wide_a, b, t.K, init, cj); break;
            default: run_tile<4>(wide_a, b, t.K, init, cj); break;
        }
    }
}

void run_many_rows(const S8Block& t) {
    alignas(64) int16_t wide_b[2 * kPanelColumns * kBlockK];
    for (int64_t j = 0; j < t.n_panels; ++j) {
        widen_panel(t.b + j * t.b_panel_stride, t.K, wide_b + j * kBlockK * kPanelColumns);
    }
    for_each_few_rows<kRows>(t, [&](const uint8_t* a, int64_t rows, int64_t m) { run_group(t, wide_b, a, rows, t.c + m * kStripColumns); });
}

// One panel. Vector v holds columns 4v..4v+3, each as a sum over k0, k1 and one over k2, k3.
template <int rows>
void run_pair_panel(const int16_t* a, const int8_t* b, int64_t K, const int32_t* init, int32_t* c) {
    __m256i sums[rows][4] = {};
    for (int64_t k = 0; k < K; k += 4, b += kLineBytes) {
        __m256i quad[rows];
        for (int r = 0; r < rows; ++r) {
            int64_t four;
            std::memcpy(&four, a + r * kBlockK + k, 8);
            quad[r] = _mm256_set1_epi64x(four);
        }
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v) {
            const __m256i line = load_s8_wide(b + 16 * v);
            for (int r = 0; r < rows; ++r) sums[r][v] = multiply_pairs(sums[r][v], quad[r], line);
        }
    }
    for (int r = 0; r < rows; ++r) {
        const int32_t* before = init != nullptr ? init : c + r * kStripColumns;
        for (int v = 0; v < 2; ++v) {
            // hadd leaves columns 0 1 4 5 2 3 6 7.
            const __m256i columns = swap_middle(_mm256_hadd_epi32(sums[r][2 * v], sums[r][2 * v + 1]));
            store(c + r * kStripColumns + 8 * v, _mm256_add_epi32(columns, load(before + 8 * v)));
        }
    }
}

template <int rows>
void run_pair(const S8Block& t, const uint8_t* a, int32_t* c) {
    alignas(64) int16_t wide_a[rows * kBlockK];
    widen_rows(a, t.panel_rows, rows, t.K, wide_a);
    for (int64_t j = 0; j < t.n_panels; ++j) {
        const int32_t* init = t.init != nullptr ? t.init + j * kPanelColumns : nullptr;
        run_pair_panel<rows>(wide_a, t.b + j * t.b_panel_stride, t.K, init, c + j * kPanelColumns);
    }
}

void run_few_rows(const S8Block& t) {
    for_each_few_rows<2>(t, [&](const uint8_t* a, int64_t rows, int64_t m) {
        int32_t* c = t.c + m * kStripColumns;
        rows == 1 ? run_pair<1>(t, a, c) : run_pair<2>(t, a, c);
    });
}

void run(const S8Block& t) {
    if (t.M <= kFewRows) return run_few_rows(t);
    run_many_rows(t);
}

}  // namespace

extern const S8Kernels s8_avx2;
const S8Kernels s8_avx2 = {{Isa::avx2, 128, kBlockK, run, nullptr, nullptr}, nullptr};
}  // namespace gossamer
