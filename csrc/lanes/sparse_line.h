// The bits of a line of a sparse panel (format_sparse.h), for kernels without a better way. word: k per line, 4, 2 or 1.
#pragma once
#include <cstdint>
#include <cstring>

#include "gossamer/format_sparse.h"

namespace gossamer {
namespace {

// Bits [first, first + count) of a row of bits, lowest first; they lie in one byte or begin on one.
inline uint64_t bits_at(const uint8_t* masks, int64_t first, int64_t count) {
    uint64_t bits = 0;
    const int64_t in_byte = first % 8;
    std::memcpy(&bits, masks + first / 8, static_cast<size_t>((in_byte + count + 7) / 8));
    return bits >> in_byte & (count == 64 ? ~uint64_t{0} : (uint64_t{1} << count) - 1);
}

template <int word>
uint64_t bits_of_line(SparsePattern pattern, const uint8_t* masks, int64_t line) {
    constexpr int64_t weights = 16 * word;
    const int64_t k = line * word;
    if (pattern == SparsePattern::any) return bits_at(masks, line * weights, weights);
    constexpr uint64_t every_k = (uint64_t{1} << word) - 1;  // of one column
    uint64_t mask = 0;
    if (pattern == SparsePattern::b1x4 || pattern == SparsePattern::b1x16) {
        const uint64_t columns = bits_at(masks, k / (pattern == SparsePattern::b1x4 ? 4 : 16) * 16, 16);
        for (int column = 0; column < 16; ++column) mask |= (columns >> column & 1) * every_k << column * word;
        return mask;
    }
    const bool fours = pattern == SparsePattern::b4x1;
    const uint64_t units = fours ? bits_at(masks, line * (weights / 4), weights / 4) : bits_at(masks, k, word);
    for (int column = 0; column < 16; ++column) {
        mask |= (units >> (fours ? column / 4 * word : 0) & every_k) << column * word;
    }
    return mask;
}

}  // namespace
}  // namespace gossamer
