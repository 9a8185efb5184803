// The kernels of expand.h, written once over a vector of bytes. An ISA's file defines, then includes this:
//
//   struct Bytes { static constexpr int64_t width; ... };  struct Words { ... };      as many bits as Bytes
//   Bytes load(const uint8_t*), low_codes(Bytes), high_codes(Bytes), lookup(const uint8_t* table, Bytes codes);  void store(int8_t*, Bytes)
//   Words low_words(Bytes), high_words(Bytes)         unsigned bytes of the lower and upper half of each 16, widened
//   Words low_columns(const int16_t*), high_columns(const int16_t*)     16-bit constants of columns, in the order of the words
//   Words subtract(Words, Words), shift_left(Words, int), multiply_round(Words, Words);  Bytes narrow(Words low, Words high)
//   void add_fours(int32_t* sum, Bytes values)        adds the four int8 of each column
//   void floats_line(const uint8_t* codes, const FourBitFloats&, float* out)
//
// and Vec of simd/<isa>.h.
//
// A line of 64 bytes is 16 columns x 4: so 16 bytes are 4 columns, of which the lower words are two columns and the upper ones two.
#pragma once
#include <cstdint>

#include "expand.h"

namespace gossamer {
namespace {

constexpr int64_t kLine = 64;

struct ValuesOp {
    Words zero_low, zero_high;
    ValuesOp(const FourBitGroup& g, int64_t column) : zero_low(low_columns(g.zero + column)), zero_high(high_columns(g.zero + column)) {}
    Bytes operator()(Bytes values) const { return narrow(subtract(low_words(values), zero_low), subtract(high_words(values), zero_high)); }
};

struct RequantizeOp {
    Words zero_low, zero_high, ratio_low, ratio_high;
    int shift;
    RequantizeOp(const FourBitGroup& g, int64_t column)
        : zero_low(low_columns(g.zero + column)),
          zero_high(high_columns(g.zero + column)),
          ratio_low(low_columns(g.ratio + column)),
          ratio_high(high_columns(g.ratio + column)),
          shift(g.shift) {}
    Bytes operator()(Bytes values) const {
        const Words low = shift_left(subtract(low_words(values), zero_low), shift);
        const Words high = shift_left(subtract(high_words(values), zero_high), shift);
        return narrow(multiply_round(low, ratio_low), multiply_round(high, ratio_high));
    }
};

// Part by part of a line, so that the constants of a part's columns stay in registers.
template <class Op, bool coded>
void expand_parts(const FourBitGroup& g) {
    for (int64_t part = 0; part < kLine; part += Bytes::width) {
        const Op op(g, part / 4);
        const uint8_t* codes = g.codes + part;
        int8_t* out = g.out + part;
        FourSums sums;
        for (int64_t i = 0; i < g.lines; ++i, codes += kLine, out += 2 * kLine) {
            const Bytes line = load(codes);
            Bytes low = low_codes(line), high = high_codes(line);
            if constexpr (coded) {
                low = lookup(g.table, low);
                high = lookup(g.table, high);
            }
            low = op(low);
            high = op(high);
            store(out, low);
            store(out + kLine, high);
            add_fours(sums, low);
            add_fours(sums, high);
        }
        add_to(g.sum + part / 4, sums);
    }
}

template <class Op>
void expand(const FourBitGroup& g) {
    g.table == nullptr ? expand_parts<Op, false>(g) : expand_parts<Op, true>(g);
}

void expand_floats(const FourBitFloats& g) {
    for (int64_t i = 0; i < g.lines; ++i) floats_line(g.codes + i * kLine, g, g.out + i * 8 * kPanelColumns);
}

inline Vec load_scale(const FourBitScales& s, int64_t i) {
    if (s.type == ScaleType::f32) return load(static_cast<const float*>(s.packed) + i);
    const uint16_t* bits = static_cast<const uint16_t*>(s.packed) + i;
    return s.type == ScaleType::f16 ? load_f16(bits) : load_bf16(bits);
}

void convert_scales(const FourBitScales& s) {
    for (int64_t g = 0; g < s.groups; ++g) {
        for (int64_t n = 0; n < kPanelColumns; n += Vec::width) {
            store(s.out + g * kStripColumns + n, load_scale(s, g * kPanelColumns + n));
        }
    }
}

void find_ratios(const float* scale, const float* per_step, int16_t* ratio) {
    for (int64_t n = 0; n < kPanelColumns; ++n) {
        const float x = scale[n] * per_step[n];
        ratio[n] = static_cast<int16_t>(x < 0 ? x - 0.5f : x + 0.5f);
    }
}

}  // namespace
}  // namespace gossamer
