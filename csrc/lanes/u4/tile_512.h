// u4 operand on 512-bit VPDPBUSD. Contract: u4.h. An ISA's file defines, then includes this:
//
//   struct Table;  Table make_table(const uint8_t* t)           a codebook in a register
//   __m512i look_up_low(Table, __m512i line), look_up_high      the bytes of the codes in the low and in the high halves of a line
//
// A line of 64 bytes holds 128 codes, 16 columns x 8 k. Two ANDs and a shift make them two vectors for VPDPBUSD, which takes the codes as
// its unsigned operand and a word of q, broadcast by the load itself, as its signed one.
//
//   up to 4 rows   two panels. The high codes stay where they are: 16 * code is an unsigned byte too, so only an AND is needed, and their
//                  sum is shifted right by 4, exactly, once per group. Two instructions decode 128 codes, and there are four chains of
//                  sums for each row
//   5 to 8 rows    one panel; low and high codes go to the same sum, since rows are chains enough, and share their decoding
#pragma once
#include <immintrin.h>

#include <cstdint>

#include "../few_rows.h"
#include "../scales_512.h"
#include "gossamer/u4.h"

namespace gossamer {
namespace {

constexpr int64_t kLineK = 8;
constexpr int kFewRows = 4;

inline __m512i load(const void* p) { return _mm512_loadu_si512(p); }

// A load that happens once: g++ would fold it into each AND, and loads bind here (a broadcast of q costs Zen 4 as much as a line).
inline __m512i load_once(const void* p) {
    __m512i x = load(p);
    asm("" : "+v"(x));
    return x;
}

// A word of q: 4 bytes.
inline __m512i broadcast_word(const int8_t* a) { return _mm512_set1_epi32(*reinterpret_cast<const int32_t*>(a)); }

struct Codes {
    __m512i low, high;
};

// The two lines of the s8 lane in one line of codes; shifted: the high ones are 16 times what they should be.
template <bool coded, bool shifted>
inline Codes decode(const uint8_t* b, Table table) {
    const __m512i line = load_once(b), nibble = _mm512_set1_epi8(0x0f);
    if constexpr (coded) return {look_up_low(table, line), look_up_high(table, line)};
    if constexpr (shifted) return {_mm512_and_si512(line, nibble), _mm512_andnot_si512(nibble, line)};
    return {_mm512_and_si512(line, nibble), _mm512_and_si512(_mm512_srli_epi16(line, 4), nibble)};
}

template <bool coded, int rows, int panels>
class Tile {
    // Few rows keep low and high codes apart, for more chains of sums.
    static constexpr bool apart = rows <= kFewRows, shifted = apart && !coded;
    __m512i low_[rows][panels], high_[rows][panels];

public:
    void start(const U4Block& block, const int32_t* a_sums, int64_t group_index) {
#pragma GCC unroll 8
        for (int j = 0; j < panels; ++j) {
#pragma GCC unroll 8
            for (int r = 0; r < rows; ++r) {
                low_[r][j] = _mm512_set1_epi32(a_sums[r * block.groups]);
                if (apart) high_[r][j] = _mm512_setzero_si512();
            }
            if (block.zero_points == nullptr) continue;
            const uint8_t* bytes = block.zero_points + (j * block.groups + group_index) * kPanelColumns;
            const __m512i zero_points = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes)));
#pragma GCC unroll 8
            for (int r = 0; r < rows; ++r) low_[r][j] = _mm512_mullo_epi32(low_[r][j], zero_points);
        }
    }

    void multiply(const int8_t* a, const uint8_t* b, int64_t b_panel_stride, Table table) {
#pragma GCC unroll 8
        for (int j = 0; j < panels; ++j) {
            const Codes codes = decode<coded, shifted>(b + j * b_panel_stride, table);
#pragma GCC unroll 8
            for (int r = 0; r < rows; ++r) {
                const int8_t* word = a + r * U4Block::chunk;
                low_[r][j] = _mm512_dpbusd_epi32(low_[r][j], codes.low, broadcast_word(word));
                __m512i& high = apart ? high_[r][j] : low_[r][j];
                high = _mm512_dpbusd_epi32(high, codes.high, broadcast_word(word + 4));
            }
        }
    }

    __m512 total(int r, int j) const {
        if constexpr (!apart) return _mm512_cvtepi32_ps(low_[r][j]);
        const __m512i high = shifted ? _mm512_srai_epi32(high_[r][j], 4) : high_[r][j];
        return _mm512_cvtepi32_ps(_mm512_add_epi32(low_[r][j], high));
    }
};

// From row m on, whose codes are at a. scaled: groups of A have scales.
template <bool coded, bool scaled, int rows, int panels>
void run_tile(const U4Block& block, const int8_t* a, int64_t m, float* sum) {
    const int32_t* a_sums = block.a_sums + m * block.groups;
    const float* a_scales = scaled ? block.a_scales + m * block.groups : nullptr;
    const Table table = coded ? make_table(block.t) : Table{};
    const int64_t step = block.group_k < U4Block::chunk ? block.group_k : U4Block::chunk;
    __m512 totals[rows][panels];
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 8
        for (int j = 0; j < panels; ++j) totals[r][j] = _mm512_setzero_ps();
    }
    const uint8_t* b = block.b;
    for (int64_t first_k = 0, g = 0; first_k < block.K; first_k += block.group_k, ++g) {
        const int64_t last_k = first_k + block.group_k < block.K ? first_k + block.group_k : block.K;
        Tile<coded, rows, panels> tile;
        tile.start(block, a_sums + g, g);
        for (int64_t k = first_k; k < last_k; k += step) {
            const int8_t* words = a + k / U4Block::chunk * block.panel_rows * U4Block::chunk + k % U4Block::chunk;
            for (int64_t i = 0; i < step; i += kLineK, b += 64) tile.multiply(words + i, b, block.b_panel_stride, table);
        }
#pragma GCC unroll 8
        for (int j = 0; j < panels; ++j) {
            const __m512 scales = load_scales(block.scales, (j * block.groups + g) * kPanelColumns, block.scale_type);
#pragma GCC unroll 8
            for (int r = 0; r < rows; ++r) {
                const __m512 total = tile.total(r, j);
                if constexpr (scaled) {
                    const __m512 a_scale = _mm512_set1_ps(a_scales[r * block.groups + g]);
                    totals[r][j] = _mm512_fmadd_ps(_mm512_mul_ps(total, scales), a_scale, totals[r][j]);
                } else {
                    totals[r][j] = _mm512_fmadd_ps(total, scales, totals[r][j]);
                }
            }
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 8
        for (int j = 0; j < panels; ++j) _mm512_storeu_ps(sum + r * kStripColumns + j * kPanelColumns, totals[r][j]);
    }
}

// The same block from its second panel on.
U4Block second_panel(U4Block block) {
    const int64_t scale_bytes = block.scale_type == ScaleType::f32 ? 4 : 2, constants = block.groups * kPanelColumns;
    block.b += block.b_panel_stride;
    block.scales = static_cast<const char*>(block.scales) + constants * scale_bytes;
    if (block.zero_points != nullptr) block.zero_points += constants;
    return block;
}

template <bool coded, bool scaled, int rows>
void run_rows(const U4Block& block, const int8_t* a, int64_t m) {
    float* sum = block.sum + m * kStripColumns;
    if (block.n_panels == 2 && rows <= kFewRows) return run_tile<coded, scaled, rows, 2>(block, a, m, sum);
    run_tile<coded, scaled, rows, 1>(block, a, m, sum);
    if (block.n_panels == 2) run_tile<coded, scaled, rows, 1>(second_panel(block), a, m, sum + kPanelColumns);
}

template <bool coded, bool scaled>
void run_few(const U4Block& block, const int8_t* a, int64_t rows, int64_t m) {
    switch (rows) {
        case 1: return run_rows<coded, scaled, 1>(block, a, m);
        case 2: return run_rows<coded, scaled, 2>(block, a, m);
        case 3: return run_rows<coded, scaled, 3>(block, a, m);
        case 4: return run_rows<coded, scaled, 4>(block, a, m);
        case 5: return run_rows<coded, scaled, 5>(block, a, m);
        case 6: return run_rows<coded, scaled, 6>(block, a, m);
        case 7: return run_rows<coded, scaled, 7>(block, a, m);
        default: return run_rows<coded, scaled, 8>(block, a, m);
    }
}

void run(const U4Block& block) {
    for_each_few_rows<8>(block, [&](const int8_t* a, int64_t rows, int64_t m) {
        if (block.a_scales == nullptr) {
            block.t == nullptr ? run_few<false, false>(block, a, rows, m) : run_few<true, false>(block, a, rows, m);
        } else {
            block.t == nullptr ? run_few<false, true>(block, a, rows, m) : run_few<true, true>(block, a, rows, m);
        }
    });
}

void center_row(const CenterRows& rows, int8_t* line, int32_t* sums) {
    const __m512i sign = _mm512_set1_epi8(static_cast<char>(0x80)), ones = _mm512_set1_epi8(1);
    const int64_t chunk = U4Block::chunk;
    const int64_t parts = rows.group_k < chunk ? chunk / rows.group_k : 1;  // groups in a chunk
    for (int64_t g = 0; g < rows.groups; ++g) sums[g] = 0;
    for (int64_t k = 0; k < rows.K; k += chunk, line += rows.panel_rows * chunk) {
        const __m512i q = _mm512_xor_si512(load(line), sign);
        _mm512_storeu_si512(line, q);
        const __m512i fours = _mm512_dpbusd_epi32(_mm512_setzero_si512(), ones, q);  // sums of 4 k
        if (parts == 1) {
            sums[k / rows.group_k] -= rows.offset * _mm512_reduce_add_epi32(fours);
            continue;
        }
        for (int64_t part = 0; part < parts; ++part) {
            const uint32_t lanes = (1u << 16 / parts) - 1;
            const __mmask16 mask = static_cast<__mmask16>(lanes << part * (16 / parts));
            sums[k / rows.group_k + part] = -rows.offset * _mm512_mask_reduce_add_epi32(mask, fours);
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
}  // namespace gossamer
