// Format fp32: the dense weight itself, exact activations. The factors of low-rank weights, and the plainest neighbour of other formats.
//
// Canonical tensor: fp32 [N, K]. Packed form (format.h):
//
//     panels        fp32   [N16/16][K64][16]                panels of the f32 lane (lane.h), used in place
#pragma once
#include <cstdint>

#include "gossamer/format.h"

namespace gossamer {

struct F32Layout {
    int64_t N, K, N16, K64;
    int64_t panels_offset, size_bytes;
};

F32Layout f32_layout(int64_t N, int64_t K);

struct F32Weight {
    F32Layout layout;
    const float* panels;
};

F32Weight f32_view(const void* packed, int64_t packed_bytes);
void f32_pack(const float* values, const F32Layout& layout, void* packed, int threads);
void f32_unpack(const F32Weight& weight, float* values, int threads);
void dequantize(const F32Weight& weight, int64_t first_row, int64_t last_row, float* out, int threads);

void expand_f32(const F32Weight& weight, const PanelRange& range, Isa isa, float* out);
void expand_bf16(const F32Weight& weight, const PanelRange& range, Isa isa, uint16_t* out);
inline const uint16_t* bf16_panels(const F32Weight&) { return nullptr; }
inline const float* channel_scales(const F32Weight&) { return nullptr; }

}  // namespace gossamer
