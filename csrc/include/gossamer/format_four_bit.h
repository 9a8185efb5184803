// The 4-bit formats: codes of 4 bits, a scale per group of G along K (or per channel), and a codebook that gives each code its value.
//
//   W[n,k] ~= value(code[n,k]) * scales[n, k/G]                          or, with zero points
//   W[n,k] ~= (code[n,k] - zero_point[n, k/G]) * scales[n, k/G]
//
//   format   codebook                                                   scales               groups
//   int4     code - 8, or zero points of 0..15                          fp32, bf16 or fp16   16, 32, 64, 128, 256, per channel
//   nf4      quantiles of the normal distribution in [-1, 1]            likewise             likewise
//   fp4      e2m1: +-{0, 0.5, 1, 1.5, 2, 3, 4, 6}, code = s ee m        likewise             likewise
//   mxfp4    the same                                                   e8m0: 2^(byte - 127) 32
//
// nf4: Dettmers et al., QLoRA, 2023, appendix E. e2m1 and e8m0: OCP Microscaling Formats (MX) 1.0, section 5.3 and 5.4; byte 255 is NaN.
//
// Canonical tensors: codes uint8 [N, ceil(K/2)], code k in the low half of byte k/2 for even k and in the high half for odd k (an odd K
// leaves the last high half 0); scales [N, groups]; zero points uint8 [N, groups] for asymmetric int4. groups = ceil(K/G), the last one may
// be short.
//
// Packed form (format.h). P = ceil(K64 / G) groups, or 1 per channel:
//
//     scales        [N16/16][P][16]           fp32, bf16 or fp16 as they came; e8m0 is widened to bf16, exactly
//     zero points   uint8 [N16/16][P][16]     int4 with zero points only
//     panels        uint8 [N16/16][K64/8][64]
//
//     byte i of line j of a panel: low half: byte i of line 2j of the int8 panel [K64/4][16 columns][4 k]; high half: of line 2j + 1
//
// so one load, one AND and one shift give two lines of the s8 lane. Scales lie by panel, not by group: a panel is then two or three
// sequential streams.
//
// On the s8 lane the value of a code is an integer: int4 and e2m1 exactly (e2m1 in halves), nf4 rounded to 1/127, which adds an error of at
// most 1/254 of the scale to steps of 0.08 to 0.3 of it.
#pragma once
#include <cstdint>

#include "gossamer/format.h"

namespace gossamer {

struct Codebook {
    float value[16];
    uint8_t s8[16];  // value / unit + offset, rounded: int4 the code itself
    int offset;      // the zero point where the weight has none of its own
    float unit;
    float largest;  // of |value|
    float finest;   // the smallest distance of two values
};
const Codebook& codebook(FormatId format);

struct FourBitLayout {
    int64_t N, K, G;
    int64_t N16, K64;
    int64_t groups;         // of the canonical tensors
    int64_t packed_groups;  // P
    int64_t group_k;        // G, or K64 per channel
    int64_t scales_offset, zero_points_offset, panels_offset, size_bytes;
};

// Throws std::invalid_argument unless N, K >= 1, G is 0, 16, 32, 64, 128 or 256 (32 for mxfp4), and only int4 has zero points.
FourBitLayout four_bit_layout(FormatId format, int64_t N, int64_t K, int64_t G, ScaleType scale_type, bool zero_points);

struct FourBitWeight {
    FourBitLayout layout;
    FormatId format;
    ScaleType scale_type;        // of the canonical tensors
    const void* scales;          // fp32, bf16 or fp16; bf16 where scale_type is e8m0
    const uint8_t* zero_points;  // or null
    const uint8_t* panels;
};

// Canonical tensors, contiguous.
struct FourBitTensors {
    const uint8_t* codes;
    const void* scales;
    const uint8_t* zero_points;  // or null
};

FourBitWeight four_bit_view(const void* packed, int64_t packed_bytes);
void four_bit_pack(FormatId format, const FourBitTensors& tensors, const FourBitLayout& layout, ScaleType scale_type,
                   Activations activations, void* packed, int threads);
void four_bit_unpack(const FourBitWeight& weight, uint8_t* codes, void* scales, uint8_t* zero_points, int threads);
void dequantize(const FourBitWeight& weight, int64_t first_row, int64_t last_row, float* out, int threads);

int64_t s8_strip_bytes(const FourBitWeight& weight);
// exact_groups: no re-quantization to one scale per column.
S8Strip s8_strip(const FourBitWeight& weight, int64_t strip, Isa isa, uint8_t* buffer, bool exact_groups = false);
void expand_f32(const FourBitWeight& weight, const PanelRange& range, Isa isa, float* out);
void expand_bf16(const FourBitWeight& weight, const PanelRange& range, Isa isa, uint16_t* out);
inline const uint16_t* bf16_panels(const FourBitWeight&) { return nullptr; }
inline const float* channel_scales(const FourBitWeight&) { return nullptr; }

}  // namespace gossamer
