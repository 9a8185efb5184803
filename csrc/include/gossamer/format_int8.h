// Format int8: symmetric, one scale per output channel or per group of G along K.
//
//   W[n,k] ~= values[n,k] * scales[n, k/G]        values int8 in [-127, 127] (-128 accepted), scales fp32 >= 0
//
// Canonical tensors (ISA-independent, what a state_dict holds): values [N, K] int8 row-major, scales [N, groups] fp32 row-major,
// groups = ceil(K / G), or 1 with G = 0 (per channel). The last group may be short.
//
// Packed form: one buffer of bytes, the same for every x86 ISA.
//
//     offset 0      PackedHeader                                          64 bytes
//     scales        float  [groups][N16]            N16 = N rounded up to 16, zeros in the padding
//     init          int32  [sum_blocks][N16]        -128 * sum of the block's values (s8.h)
//     panels        int8   [N16/16][K64/4][16][4]   K64 = K rounded up to 64, zeros in the padding
//
// A sum block is a group, or 65,536 k where there are no groups. Every part starts on a 64-byte boundary.
// Bytes: N16 * K64 + 4 * N16 * (groups + sum_blocks) + 64.
#pragma once
#include <cstddef>
#include <cstdint>

#include "gossamer/quantize.h"
#include "gossamer/s8.h"

namespace gossamer {

enum class FormatId : uint32_t { int8 = 1 };

inline constexpr char kPackedMagic[8] = {'G', 'O', 'S', 'S', 'A', 'M', 'E', 'R'};
inline constexpr uint32_t kPackedLayout = 1;  // changes whenever packed bytes of an earlier version would be misread

struct PackedHeader {
    char magic[8];
    uint32_t layout;
    FormatId format;
    int64_t N, K, G;  // G = 0: per channel
    uint8_t reserved[24];
};
static_assert(sizeof(PackedHeader) == 64);

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

// Throws std::invalid_argument when the bytes are not a packed int8 weight of this layout and length, or not aligned to 8.
Int8Weight int8_view(const void* packed, int64_t packed_bytes);

void int8_pack(const int8_t* values, const float* scales, int64_t N, int64_t K, int64_t G, void* packed, int threads);
void int8_unpack(const Int8Weight& weight, int8_t* values, float* scales, int threads);
// out [last_row - first_row, K] fp32 = values * scales
void int8_dequantize(const Int8Weight& weight, int64_t first_row, int64_t last_row, float* out, int threads);

}  // namespace gossamer
