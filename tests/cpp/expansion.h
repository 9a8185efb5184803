// The panels that a weight expands to, on every ISA of this machine, against values in fp64.
#pragma once
#include <cmath>
#include <string>

#include "check.h"
#include "gossamer/cpu.h"
#include "gossamer/format.h"
#include "guarded.h"
#include "reference/reference.h"
#include "values.h"

namespace gossamer::test {

// NaNs count as equal.
inline uint32_t comparable(float x) { return x != x ? 0x7fc00000 : float_bits(x); }
inline uint16_t comparable_bf16(uint16_t bits) { return (bits & 0x7fff) > 0x7f80 ? uint16_t{0x7fc0} : bits; }

// wanted(n, k): the value that is rounded to fp32, and from there to bf16; padding is zero of either sign.
template <class Weight, class Wanted>
void check_panel(const Weight& w, const PanelRange& range, Isa isa, const std::string& what, const Wanted& wanted) {
    const int64_t K = range.last_k - range.first_k;
    Guarded<float> f32(K * kPanelColumns);
    Guarded<uint16_t> bf16(K * kPanelColumns);
    expand_f32(w, range, isa, f32.data());
    expand_bf16(w, range, isa, bf16.data());
    int64_t wrong_f32 = 0, wrong_bf16 = 0;
    for (int64_t k = 0; k < K; ++k) {
        for (int64_t column = 0; column < kPanelColumns; ++column) {
            const int64_t n = range.panel * kPanelColumns + column, row_k = range.first_k + k;
            const float got = f32[k * kPanelColumns + column];
            const uint16_t got_bf16 = bf16[(k / 2 * kPanelColumns + column) * 2 + k % 2];
            if (n >= w.layout.N || row_k >= w.layout.K) {
                wrong_f32 += got != 0;
                wrong_bf16 += (got_bf16 & 0x7fff) != 0;
                continue;
            }
            const float value = static_cast<float>(wanted(n, row_k));
            wrong_f32 += comparable(got) != comparable(value);
            wrong_bf16 += comparable_bf16(got_bf16) != comparable_bf16(reference::to_bf16(value));
        }
    }
    check(wrong_f32 == 0, what + ", " + isa_name(isa) + ": " + std::to_string(wrong_f32) + " wrong in fp32");
    check(wrong_bf16 == 0, what + ", " + isa_name(isa) + ": " + std::to_string(wrong_bf16) + " wrong in bf16");
}

template <class Weight, class Wanted>
void check_expansion(const Weight& w, const std::string& what, const Wanted& wanted) {
    for (int i = 0; i < kIsaCount; ++i) {
        const Isa isa = static_cast<Isa>(i);
        if (!isa_available(isa)) continue;
        for (int64_t panel = 0; panel < w.layout.N16 / kPanelColumns; ++panel) {
            check_panel(w, {panel, 0, w.layout.K64}, isa, what, wanted);
            if (w.layout.K64 > 64) check_panel(w, {panel, 64, w.layout.K64}, isa, what + ", from 64", wanted);
        }
    }
}

}  // namespace gossamer::test
