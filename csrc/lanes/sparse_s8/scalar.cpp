// Sparse int8 and int4 lines in portable C++. Contract: sparse_s8.h.
//
// No kernels for few rows: multiplying value by value took 54, 31 and 12 ns a line at densities 0.5, 0.3 and 0.1 (Zen 4, one row), where
// the dense kernel takes 10 and expanding 29, 12 and 4.
#include <bit>
#include <cstring>

#include "../sparse_line.h"
#include "gossamer/sparse_s8.h"

namespace gossamer {
namespace {

void expand_bytes(const SparseLines& b, int8_t* out) {
    const uint8_t* values = b.values;
    for (int64_t line = 0; line < b.lines; ++line, out += 64) {
        std::memset(out, 0, 64);
        for (uint64_t mask = bits_of_line<4>(b.pattern, b.masks, line); mask != 0; mask &= mask - 1) {
            out[std::countr_zero(mask)] = static_cast<int8_t>(*values++);
        }
    }
}

// The codes of one line; returns the byte after them.
const uint8_t* codes_of_line(uint64_t mask, const uint8_t* values, uint8_t* codes) {
    std::memset(codes, 8, 64);
    int64_t count = 0;
    for (; mask != 0; mask &= mask - 1, ++count) {
        codes[std::countr_zero(mask)] = static_cast<uint8_t>(values[count / 2] >> count % 2 * 4 & 0x0f);
    }
    return values + (count + 1) / 2;
}

void expand_codes(const SparseLines& b, uint8_t* out) {
    const uint8_t* values = b.values;
    for (int64_t line = 0; line < b.lines; line += 2, out += 64) {
        uint8_t low[64], high[64];
        values = codes_of_line(bits_of_line<4>(b.pattern, b.masks, line), values, low);
        values = codes_of_line(bits_of_line<4>(b.pattern, b.masks, line + 1), values, high);
        for (int i = 0; i < 64; ++i) out[i] = static_cast<uint8_t>(low[i] | high[i] << 4);
    }
}

}  // namespace

extern const SparseS8Kernels sparse_s8_scalar;
const SparseS8Kernels sparse_s8_scalar = {Isa::scalar, expand_bytes, expand_codes, 0, nullptr, nullptr};
}  // namespace gossamer
