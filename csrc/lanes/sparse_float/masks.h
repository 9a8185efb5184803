// The bits of one line in a register, for every pattern (format_sparse.h); word: k per line, 2 (bf16) or 1 (fp32).
//
// Blocks of one column (1x4, 1x16) give 16 bits, one a column, since all k of a column in a line are there or none; the other patterns give
// 16 * word bits, one an element.
#pragma once
#include <cstdint>
#include <cstring>

#include "gossamer/sparse_float.h"

namespace gossamer {
namespace {

inline constexpr bool has_column_bits(SparsePattern pattern) { return pattern == SparsePattern::b1x4 || pattern == SparsePattern::b1x16; }

template <class Bits>
inline uint32_t bits_at(const uint8_t* masks, int64_t index) {
    Bits bits;
    std::memcpy(&bits, masks + index * static_cast<int64_t>(sizeof(Bits)), sizeof(Bits));
    return bits;
}

// Four bits, each copied four times.
struct FourFold {
    uint16_t of[16];
    constexpr FourFold() : of() {
        for (int i = 0; i < 16; ++i)
            of[i] = static_cast<uint16_t>((i & 1) * 0xf | (i >> 1 & 1) * 0xf0 | (i >> 2 & 1) * 0xf00 | (i >> 3) * 0xf000);
    }
};
constexpr FourFold kFourFold;

// Four columns share a bit for each k. word 2: the pairs of bits move apart, then each is copied to its columns.
template <int word>
inline uint32_t four_columns(const uint8_t* masks, int64_t line) {
    if constexpr (word == 2) {
        const uint32_t bits = bits_at<uint8_t>(masks, line), fours = (bits | bits << 12) & 0x000f000f;
        return ((fours | fours << 6) & 0x03030303) * 0x55;
    }
    return kFourFold.of[bits_at<uint8_t>(masks, line / 2) >> line % 2 * 4 & 0xf];
}

// All columns share a bit for each k.
template <int word>
inline uint32_t all_columns(const uint8_t* masks, int64_t line) {
    constexpr int64_t lines = 8 / word;  // in a byte
    const uint32_t bits = bits_at<uint8_t>(masks, line / lines) >> line % lines * word;
    return word == 2 ? (bits & 3) * 0x55555555u : (bits & 1) * 0xffffu;
}

template <SparsePattern pattern, int word>
inline uint32_t mask_of_line(const uint8_t* masks, int64_t line) {
    if constexpr (pattern == SparsePattern::b1x4) return bits_at<uint16_t>(masks, line / (4 / word));
    if constexpr (pattern == SparsePattern::b1x16) return bits_at<uint16_t>(masks, line / (16 / word));
    if constexpr (pattern == SparsePattern::b4x1) return four_columns<word>(masks, line);
    if constexpr (pattern == SparsePattern::b16x1) return all_columns<word>(masks, line);
    return word == 2 ? bits_at<uint32_t>(masks, line) : bits_at<uint16_t>(masks, line);
}

}  // namespace
}  // namespace gossamer
