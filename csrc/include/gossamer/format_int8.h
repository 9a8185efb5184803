// Format int8: symmetric, one scale per output channel or per group of G along K.
//
//   W[n,k] ~= values[n,k] * scales[n, k/G]        values int8 in [-127, 127] (-128 accepted), scales fp32 >= 0
//
// Canonical tensors (ISA-independent, what a state_dict holds): values [N, K] int8 row-major, scales [N, groups] fp32 row-major,
// groups = ceil(K / G), or 1 with G = 0 (per channel). The last group may be short.
//
// Packed form (format.h):
//
//     scales        float  [groups][N16]            N16 = N rounded up to 16, zeros in the padding
//     init          int32  [sum_blocks][N16]        -128 * sum of the block's values (s8.h)
//     panels        int8   [N16/16][K64/4][16][4]   K64 = K rounded up to 64, zeros in the padding
//
// A sum block is a group, or 65,536 k where there are no groups.
// Bytes: N16 * K64 + 4 * N16 * (groups + sum_blocks) + 64.
//
// With exact activations (weight-only) the values are expanded to the f32 or bf16 lane, where each is exact. Per-channel scales are applied
// to the sums. Group scales are multiplied into the values, which the bf16 lane rounds: relative error at most 2^-8 per weight.
#pragma once
#include <cstdint>

#include "gossamer/format.h"
#include "gossamer/s8.h"

namespace gossamer {

// Where the parts of a packed int8 weight lie.
struct Int8Layout {
    int64_t N, K, G;
    int64_t N16, K64, groups;
    int64_t sum_k;       // k per sum block
    int64_t sum_blocks;  // ceil(K64 / sum_k)
    int64_t scales_offset, init_offset, panels_offset, size_bytes;
};

// Throws std::invalid_argument unless N, K >= 1 and G is 0, 32, 64 or 128, or where the size overflows.
Int8Layout int8_layout(int64_t N, int64_t K, int64_t G);

// A packed weight whose header has been checked; it does not own the bytes.
struct Int8Weight {
    Int8Layout layout;
    const float* scales;
    const int32_t* init;
    const int8_t* panels;
};

Int8Weight int8_view(const void* packed, int64_t packed_bytes);
void int8_pack(const int8_t* values, const float* scales, const Int8Layout& layout, Activations activations, void* packed, int threads);
void int8_unpack(const Int8Weight& weight, int8_t* values, float* scales, int threads);
// out [last_row - first_row, K] fp32
void dequantize(const Int8Weight& weight, int64_t first_row, int64_t last_row, float* out, int threads);

inline int64_t s8_strip_bytes(const Int8Weight&) { return 0; }
S8Strip s8_strip(const Int8Weight& weight, int64_t strip, Isa isa, uint8_t* buffer);
void expand_f32(const Int8Weight& weight, const PanelRange& range, Isa isa, float* out);
void expand_bf16(const Int8Weight& weight, const PanelRange& range, Isa isa, uint16_t* out);
// The same for values that lie elsewhere: those of the range, at `values`.
void expand_values_f32(const Int8Layout& layout, const float* scales, const int8_t* values, const PanelRange& range, Isa isa, float* out);
void expand_values_bf16(const Int8Layout& layout, const float* scales, const int8_t* values, const PanelRange& range, Isa isa,
                        uint16_t* out);
inline const uint16_t* bf16_panels(const Int8Weight&) { return nullptr; }
inline const float* channel_scales(const Int8Weight& weight) { return weight.layout.G == 0 ? weight.scales : nullptr; }

}  // namespace gossamer
