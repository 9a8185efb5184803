// u4 operand on AVX2. Contract: u4.h.
//
// VPMADDUBSW multiplies unsigned by signed bytes and adds pairs in int16, with saturation. Codes reach 15, so a pair reaches 2 * 15 * 127 =
// 3,810, and eight pairs fit: four lines of codes are added up in int16 before VPMADDWD widens them, once. Values of e2m1 reach 24, so
// there two lines are (4 * 6,096 = 24,384). This is where 4 bits beat 8 on AVX2: int8 must be widened before it is multiplied
// (s8/avx2.cpp).
//
//   tile: 1 or 2 rows x 16 columns, 3 or 4 rows x 8; per 64 codes 3 instructions to decode, and per row 2 products, 2 additions and a share
//   of 2 to widen
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "../few_rows.h"
#include "gossamer/u4.h"

namespace gossamer {
namespace {

constexpr int64_t kLineK = 8, kColumns = 8;

inline __m256i load(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }

inline __m256i broadcast_word(const int8_t* a) {
    int32_t word;
    std::memcpy(&word, a, 4);
    return _mm256_set1_epi32(word);
}

inline __m256 load_scales(const void* scales, int64_t index, ScaleType type) {
    if (type == ScaleType::f32) return _mm256_loadu_ps(static_cast<const float*>(scales) + index);
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(static_cast<const uint16_t*>(scales) + index));
    if (type == ScaleType::f16) return _mm256_cvtph_ps(half);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

// Keeps g++ from rearranging: it would fold one load into two instructions, and add the pairs up as a tree, which needs more registers
// than there are.
inline void pin(__m256i& x) { asm("" : "+x"(x)); }

// `lines` lines of codes: their products, summed in int16, then added to the int32 sums.
template <bool coded, int rows, int vectors, int lines>
inline void multiply(__m256i (&sums)[rows][vectors], const int8_t* a, const uint8_t* b, __m256i table) {
    const __m256i nibble = _mm256_set1_epi8(0x0f);
    __m256i pairs[rows][vectors];
#pragma GCC unroll 4
    for (int i = 0; i < lines; ++i) {
#pragma GCC unroll 2
        for (int v = 0; v < vectors; ++v) {
            __m256i line = load(b + i * 64 + v * 32);
            pin(line);
            __m256i low = _mm256_and_si256(line, nibble), high = _mm256_and_si256(_mm256_srli_epi16(line, 4), nibble);
            if constexpr (coded) {
                low = _mm256_shuffle_epi8(table, low);
                high = _mm256_shuffle_epi8(table, high);
            }
#pragma GCC unroll 4
            for (int r = 0; r < rows; ++r) {
                const int8_t* words = a + r * U4Block::chunk + i * kLineK;
                const __m256i first = _mm256_maddubs_epi16(low, broadcast_word(words));
                pairs[r][v] = i == 0 ? first : _mm256_add_epi16(pairs[r][v], first);
                pairs[r][v] = _mm256_add_epi16(pairs[r][v], _mm256_maddubs_epi16(high, broadcast_word(words + 4)));
                pin(pairs[r][v]);
            }
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 2
        for (int v = 0; v < vectors; ++v) {
            sums[r][v] = _mm256_add_epi32(sums[r][v], _mm256_madd_epi16(pairs[r][v], _mm256_set1_epi16(1)));
        }
    }
}

// 8 * vectors columns of a panel, from `column` on, and rows from m on, whose codes are at a. scaled: groups of A have scales.
// Not inlined: g++ would allocate registers for all of its callers at once, and spill sums in the innermost loops.
template <bool coded, bool scaled, int rows, int vectors>
[[gnu::noinline]] void run_columns(const U4Block& block, const int8_t* a, int64_t m, int64_t column, float* sum) {
    const int32_t* a_sums = block.a_sums + m * block.groups;
    const float* a_scales = scaled ? block.a_scales + m * block.groups : nullptr;
    constexpr int lines = coded ? 2 : 4;
    const __m128i entries = coded ? _mm_loadu_si128(reinterpret_cast<const __m128i*>(block.t)) : _mm_setzero_si128();
    const __m256i table = _mm256_broadcastsi128_si256(entries);
    const int64_t step = block.group_k < U4Block::chunk ? block.group_k : U4Block::chunk;
    const uint8_t* b = block.b + column * 4;
    __m256 totals[rows][vectors];
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) totals[r][v] = _mm256_setzero_ps();
    }
    for (int64_t first_k = 0, g = 0; first_k < block.K; first_k += block.group_k, ++g) {
        const int64_t last_k = first_k + block.group_k < block.K ? first_k + block.group_k : block.K;
        const int64_t constants = g * kPanelColumns + column;
        __m256i sums[rows][vectors];
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) {
#pragma GCC unroll 4
            for (int r = 0; r < rows; ++r) sums[r][v] = _mm256_set1_epi32(a_sums[r * block.groups + g]);
            if (block.zero_points == nullptr) continue;
            const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(block.zero_points + constants + v * kColumns));
#pragma GCC unroll 4
            for (int r = 0; r < rows; ++r) sums[r][v] = _mm256_mullo_epi32(sums[r][v], _mm256_cvtepu8_epi32(bytes));
        }
        for (int64_t k = first_k; k < last_k; k += step) {
            const int8_t* words = a + k / U4Block::chunk * block.panel_rows * U4Block::chunk + k % U4Block::chunk;
            int64_t i = 0;
            for (; i + lines * kLineK <= step; i += lines * kLineK, b += lines * 64) {
                multiply<coded, rows, vectors, lines>(sums, words + i, b, table);
            }
            for (; i < step; i += 2 * kLineK, b += 2 * 64) multiply<coded, rows, vectors, 2>(sums, words + i, b, table);
        }
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) {
            const __m256 scales = load_scales(block.scales, constants + v * kColumns, block.scale_type);
#pragma GCC unroll 4
            for (int r = 0; r < rows; ++r) {
                const __m256 total = _mm256_cvtepi32_ps(sums[r][v]);
                if constexpr (scaled) {
                    const __m256 a_scale = _mm256_set1_ps(a_scales[r * block.groups + g]);
                    totals[r][v] = _mm256_fmadd_ps(_mm256_mul_ps(total, scales), a_scale, totals[r][v]);
                } else {
                    totals[r][v] = _mm256_fmadd_ps(total, scales, totals[r][v]);
                }
            }
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) _mm256_storeu_ps(sum + r * kStripColumns + column + v * kColumns, totals[r][v]);
    }
}

// The same block from panel j on.
U4Block from_panel(U4Block block, int64_t j) {
    const int64_t scale_bytes = block.scale_type == ScaleType::f32 ? 4 : 2, constants = j * block.groups * kPanelColumns;
    block.b += j * block.b_panel_stride;
    block.scales = static_cast<const char*>(block.scales) + constants * scale_bytes;
    if (block.zero_points != nullptr) block.zero_points += constants;
    return block;
}

template <bool coded, bool scaled, int rows>
void run_rows(const U4Block& block, const int8_t* a, int64_t m) {
    for (int64_t j = 0; j < block.n_panels; ++j) {
        const U4Block panel = from_panel(block, j);
        float* sum = block.sum + m * kStripColumns + j * kPanelColumns;
        constexpr int vectors = rows <= 2 ? 2 : 1;  // sixteen registers hold no more
        for (int64_t column = 0; column < kPanelColumns; column += vectors * kColumns) {
            run_columns<coded, scaled, rows, vectors>(panel, a, m, column, sum);
        }
    }
}

template <bool coded, bool scaled>
void run_few(const U4Block& block, const int8_t* a, int64_t rows, int64_t m) {
    switch (rows) {
        case 1: return run_rows<coded, scaled, 1>(block, a, m);
        case 2: return run_rows<coded, scaled, 2>(block, a, m);
        case 3: return run_rows<coded, scaled, 3>(block, a, m);
        default: return run_rows<coded, scaled, 4>(block, a, m);
    }
}

void run(const U4Block& block) {
    for_each_few_rows<4>(block, [&](const int8_t* a, int64_t rows, int64_t m) {
        if (block.a_scales == nullptr) {
            block.t == nullptr ? run_few<false, false>(block, a, rows, m) : run_few<true, false>(block, a, rows, m);
        } else {
            block.t == nullptr ? run_few<false, true>(block, a, rows, m) : run_few<true, true>(block, a, rows, m);
        }
    });
}

// The sum of 16 int8.
inline int32_t sum_of(__m128i q) {
    const __m256i wide = _mm256_madd_epi16(_mm256_cvtepi8_epi16(q), _mm256_set1_epi16(1));
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
    four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0xb1)));
}

void center_row(const CenterRows& rows, int8_t* line, int32_t* sums) {
    const __m128i sign = _mm_set1_epi8(static_cast<char>(0x80));
    for (int64_t g = 0; g < rows.groups; ++g) sums[g] = 0;
    for (int64_t k = 0; k < rows.K; k += U4Block::chunk, line += rows.panel_rows * U4Block::chunk) {
        for (int64_t i = 0; i < U4Block::chunk; i += 16) {
            __m128i* at = reinterpret_cast<__m128i*>(line + i);
            const __m128i q = _mm_xor_si128(_mm_loadu_si128(at), sign);
            _mm_storeu_si128(at, q);
            sums[(k + i) / rows.group_k] -= rows.offset * sum_of(q);
        }
    }
}

void center(const CenterRows& rows) {
    const int64_t panel_stride = rows.panel_rows * rows.K;
    for (int64_t m = rows.first_row; m < rows.last_row; ++m) {
        uint8_t* line = rows.panels + m / rows.panel_rows * panel_stride + m % rows.panel_rows * U4Block::chunk;
        center_row(rows, reinterpret_cast<int8_t*>(line), rows.sums + m * rows.groups);
    }
}

}  // namespace

extern const U4Kernels u4_avx2;
const U4Kernels u4_avx2 = {Isa::avx2, 48, 31, run, center};
}  // namespace gossamer
