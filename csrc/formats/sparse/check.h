// What the files of the sparse formats share: reading values one by one, and checking packed bytes.
#pragma once
#include <bit>
#include <cstdint>
#include <cstring>

#include "gossamer/format_sparse.h"

namespace gossamer {

// Throw std::invalid_argument where the spec, or what the bytes hold, is not that of a packed sparse weight. check_parts sets the pointers.
void check_spec(const SparseSpec& spec);
void check_parts(SparseWeight& weight, const uint8_t* packed);

namespace {

// Value `index` as bits: int8 and codes zero-extended.
inline uint32_t value_bits_at(const SparseLayout& l, const uint8_t* values, int64_t index) {
    if (l.value_bits == 4) return static_cast<uint32_t>(values[index / 2] >> index % 2 * 4 & 0x0f);
    uint32_t bits = 0;
    std::memcpy(&bits, values + index * (l.value_bits / 8), static_cast<size_t>(l.value_bits / 8));
    return bits;
}

// Zeros that a block holds are not values.
inline bool is_zero(const SparseLayout& l, uint32_t bits) {
    if (l.value_bits == 4) return bits == 8;
    if (l.value_bits == 8) return bits == 0;
    return (l.value_bits == 16 ? bits << 17 : bits << 1) == 0;
}

// Calls body(n, k, bits) for the values of a panel that are not zero and lie within N and K, line after line.
template <class Body>
void for_each_value(const SparseWeight& weight, int64_t panel, const Body& body) {
    const SparseLayout& l = weight.layout;
    const SparseLines all = sparse_lines(weight, {panel, 0, l.K64});
    const uint8_t* values = all.values;
    for (int64_t line = 0; line < all.lines; ++line) {
        uint64_t mask = line_mask(l, all.pattern, all.masks, line);
        const int64_t count = std::popcount(mask);
        for (int64_t i = 0; i < count; ++i, mask &= mask - 1) {
            const int64_t element = std::countr_zero(mask);
            const int64_t n = panel * kPanelColumns + element / l.line_k, k = line * l.line_k + element % l.line_k;
            const uint32_t bits = value_bits_at(l, values, i);
            if (n < l.N && k < l.K && !is_zero(l, bits)) body(n, k, bits);
        }
        values += (count * l.value_bits + 7) / 8;
    }
}

}  // namespace
}  // namespace gossamer
