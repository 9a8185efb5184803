// Format bf16: the dense weight itself, rounded to bf16, exact activations. The honest neighbour of every compressed format.
//
// Canonical tensor: bf16 [N, K]. Packed form (format.h):
//
//     panels        bf16   [N16/16][K64/2][16][2]           panels of the bf16 lane (lane.h), used in place
#pragma once
#include <cstdint>

#include "gossamer/format.h"

namespace gossamer {

struct Bf16Layout {
    int64_t N, K, N16, K64;
    int64_t panels_offset, size_bytes;
};

Bf16Layout bf16_layout(int64_t N, int64_t K);

struct Bf16Weight {
    Bf16Layout layout;
    const uint16_t* panels;
};

Bf16Weight bf16_view(const void* packed, int64_t packed_bytes);
void bf16_pack(const uint16_t* values, const Bf16Layout& layout, void* packed, int threads);
void bf16_unpack(const Bf16Weight& weight, uint16_t* values, int threads);
void dequantize(const Bf16Weight& weight, int64_t first_row, int64_t last_row, float* out, int threads);

void expand_f32(const Bf16Weight& weight, const PanelRange& range, Isa isa, float* out);
void expand_bf16(const Bf16Weight& weight, const PanelRange& range, Isa isa, uint16_t* out);
inline const uint16_t* bf16_panels(const Bf16Weight& weight) { return weight.panels; }
inline const float* channel_scales(const Bf16Weight&) { return nullptr; }

}  // namespace gossamer
