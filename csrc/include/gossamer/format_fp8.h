// Format fp8: e4m3fn or e5m2, one scale per output channel or per block of 128 x 128 (as DeepSeek-V3 stores it), exact activations.
//
//   W[n,k] ~= value(codes[n,k]) * scales[n]                       per channel, G = 0
//   W[n,k] ~= value(codes[n,k]) * scales[n/128, k/128]            blocks, G = 128
//
//   e4m3fn   s eeee mmm    bias 7, subnormals, no infinity, NaN = s 1111 111; largest 448, smallest 2^-9
//   e5m2     s eeeee mm    bias 15, subnormals, infinities and NaN as IEEE; largest 57344, smallest 2^-16
//
// Canonical tensors: codes [N, K] one byte each, scales fp32 [N] or [ceil(N/128), ceil(K/128)].
//
// Packed form (format.h):
//
//     scales        float  [N16]  or  [ceil(N/128)][ceil(K/128)]
//     panels        uint8  [N16/16][K64/4][4][2][4][2]      4 k of 16 columns are 64 bytes: [columns / 4][k / 2][columns % 4][k % 2]
//
// so that the bytes of two lines of a bf16 panel (lane.h) alternate in runs of 8: unpacking the low and the high halves of each 16 bytes,
// the only interleaving that works within 16 bytes, gives the two lines in order.
//
// Expansion: every finite fp8 value is exact in bf16 and fp32, subnormals too (they become normal numbers). Per-channel scales are applied
// to the sums in fp32. Block scales are multiplied into the expanded values, which the bf16 lane rounds: relative error at most 2^-8 per
// weight, against 2^-4 of fp8 itself; the f32 lane rounds to fp32. A NaN stays one, quiet, with its sign.
#pragma once
#include <cstdint>

#include "gossamer/format.h"

namespace gossamer {

struct Fp8Layout {
    int64_t N, K, G;
    int64_t N16, K64;
    int64_t scale_rows, scale_columns;  // N and 1, or ceil(N/128) and ceil(K/128)
    int64_t scales_offset, panels_offset, size_bytes;
};

// Throws std::invalid_argument unless N, K >= 1 and G is 0 or 128.
Fp8Layout fp8_layout(int64_t N, int64_t K, int64_t G);

struct Fp8Weight {
    Fp8Layout layout;
    FormatId format;  // fp8_e4m3 or fp8_e5m2
    const float* scales;
    const uint8_t* panels;
};

Fp8Weight fp8_view(const void* packed, int64_t packed_bytes);
void fp8_pack(FormatId format, const uint8_t* codes, const float* scales, const Fp8Layout& layout, void* packed, int threads);
void fp8_unpack(const Fp8Weight& weight, uint8_t* codes, float* scales, int threads);
// out [last_row - first_row, K] fp32
void dequantize(const Fp8Weight& weight, int64_t first_row, int64_t last_row, float* out, int threads);

// Few rows on the bf16 lane, straight from the codes: c [rows][32] = A x one strip, block scales included (in fp32), those of
// channel_scales not. `a`: a panel of the lane, at the first of the rows; K padded to 32. False, and nothing done, where the ISA or so many
// rows have no such kernel. Sums come in another order than on the lane: the caller chooses by the M of its whole call, not by the rows of
// a cell, so that they do not depend on the thread count.
struct Fp8Rows {
    static constexpr int64_t max_rows = 4;

    const uint16_t* a;
    int64_t panel_rows, rows;
    float* c;
};
bool multiply_few_rows(const Fp8Weight& weight, int64_t strip, Isa isa, const Fp8Rows& rows);

void expand_f32(const Fp8Weight& weight, const PanelRange& range, Isa isa, float* out);
void expand_bf16(const Fp8Weight& weight, const PanelRange& range, Isa isa, uint16_t* out);
inline const uint16_t* bf16_panels(const Fp8Weight&) { return nullptr; }
inline const float* channel_scales(const Fp8Weight& weight) { return weight.layout.G == 0 ? weight.scales : nullptr; }

}  // namespace gossamer
