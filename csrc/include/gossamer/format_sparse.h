// The sparse formats: a bit for each weight, and the values whose bit is set, in the order of the lane's tiles.
//
//   W[n,k] = value of (n,k) where its bit is set, else 0
//
//   format        values                            scales
//   sparse_int8   int8 * scales[n, k/G]             as format_int8.h
//   sparse_int4   (code - 8) * scales[n, k/G]       as format_four_bit.h, symmetric
//   sparse_bf16   bf16                              none
//   sparse_f32    fp32                              none
//
// Canonical tensors:
//   mask     uint8 [N][ceil(K/8)]   bit k % 8, lowest first, of byte k / 8; bits beyond K are 0
//   values   [nnz] in the order of n, then k: int8; codes of 4 bits, two to a byte, low half first; bf16; fp32. Never zero (code 8, -0.0)
//   scales   as the dense format
//
// Packed form (format.h): scales and init as the dense format has them, then one part or two.
//
// Part "bitmask". A line is 64 bytes of B (lane.h), L weights:
//
//     format        line               L     bits of a line
//     int8, int4    16 columns x 4 k   64    8 bytes
//     bf16          16 columns x 2 k   32    4 bytes
//     f32           16 columns x 1 k   16    2 bytes
//
//     offsets   int64  [N16/16][tiles] + 1    byte where the values of a tile of 256 k x 16 columns begin; the last entry: their size
//     masks     uint8  [N16/16][mask_stride]  bit i of a line stands for its element i = column * word + k % word
//     values    those whose bit is set, line after line, panel after panel. Codes: low half first, each line from a new byte on
//     padding   64 bytes of zeros, so that a vector can be loaded wherever a value is
//
// A pattern gives a bit to a block of weights instead of one, and stores set blocks whole, zeros included, in the same order:
//
//     pattern   block               bits (lowest first)
//     any       one weight          L a line. N:M is stored so: 2:4 takes 4 bits for 4 weights, as two indices of 2 bits would
//     1x4       1 column x 4 k      16 for 4 k, one a column
//     1x16      1 column x 16 k     16 for 16 k
//     4x1       4 columns x 1 k     L / 4 a line: bit (column / 4) * word + k % word
//     16x1      16 columns x 1 k    1 for each k
//
// mask_stride = bytes of the bits of K64 k, rounded up to 8.
//
// Part "spmm": the order of the kernels that skip zeros, spmm.h.
//
// Bytes a weight at density d, part bitmask: int8 1/8 + d, int4 1/8 + d/2 (and a quarter of a byte a line for the halves that are left),
// bf16 1/8 + 2d, f32 1/8 + 4d; offsets 8 bytes for 4096 weights.
//
// Everything that is followed at run time (offsets, masks) is checked against each other once, when a view is made.
#pragma once
#include <cstdint>
#include <vector>

#include "gossamer/format.h"
#include "gossamer/format_four_bit.h"
#include "gossamer/format_int8.h"

namespace gossamer {

enum class SparsePattern : uint8_t { any = 0, b1x4 = 1, b1x16 = 2, b4x1 = 3, b16x1 = 4 };
inline constexpr int kSparsePatternCount = 5;
// "any", "1x4", "1x16", "4x1", "16x1".
const char* name(SparsePattern pattern);

// Bits of PackedHeader::parts.
inline constexpr uint8_t kPartBitmask = 1, kPartSpmm = 2;

inline constexpr int64_t kSparseTileK = 256;

// Lines of one panel from a multiple of 64 k on, where their bits and their values begin.
struct SparseLines {
    SparsePattern pattern;
    const uint8_t* masks;
    const uint8_t* values;
    int64_t lines;
};

// What is to be packed, and how.
struct SparseSpec {
    FormatId format;
    int64_t N, K, G;
    ScaleType scale_type;  // of sparse_int4; f32 elsewhere
    Activations activations;
    SparsePattern pattern;
    uint8_t parts;
};

struct SparseTensors {
    const uint8_t* mask;
    const void* values;
    const void* scales;  // or null
};

// The canonical tensors by row: where the values of each begin.
struct SparseRows {
    SparseSpec spec;
    SparseTensors tensors;
    std::vector<int64_t> first_value;  // [N + 1]

    int64_t mask_stride() const { return (spec.K + 7) / 8; }
    bool stored(int64_t n, int64_t k) const { return (tensors.mask[n * mask_stride() + k / 8] >> k % 8 & 1) != 0; }
};

// Where the parts lie, as far as N, K, G and the pattern tell.
struct SparseLayout {
    int64_t N, K, G;
    int64_t N16, K64;
    int64_t groups;             // of the canonical tensors
    int64_t packed_groups;      // of the packed scales
    int64_t sum_k, sum_blocks;  // of init, as format_int8.h
    int64_t line_weights;       // L
    int64_t line_k;             // k per line: the word of the lane
    int64_t value_bits;         // of a value: 8, 4, 16, 32
    int64_t tiles;              // of a panel
    int64_t mask_stride;        // bytes from a panel to the next
    int64_t scales_offset, init_offset, offsets_offset, masks_offset, values_offset;
};

// Throws std::invalid_argument unless the shape and G are those of the dense format.
SparseLayout sparse_layout(const SparseSpec& spec);

// A packed sparse weight that has been checked; it does not own the bytes.
struct SparseWeight {
    SparseSpec spec;
    SparseLayout layout;
    const void* scales;
    const int32_t* init;     // of sparse_int8
    const int64_t* offsets;  // of the part bitmask, with masks and values; null without it
    const uint8_t* masks;
    const uint8_t* values;
    const uint8_t* spmm;  // or null
    int64_t spmm_bytes;
    int64_t size_bytes;
    int64_t nnz;  // values stored, the zeros of blocks not counted

    int64_t panels() const { return layout.N16 / kPanelColumns; }
    bool has(uint8_t part) const { return (spec.parts & part) != 0; }
    int64_t value_bytes() const { return offsets[panels() * layout.tiles]; }
};

// Throws std::invalid_argument where the mask has bits beyond K, or there are too few values for its bits (`values`: how many there are).
SparseRows sparse_rows(const SparseSpec& spec, const SparseTensors& tensors, int64_t values);
// The pattern that takes the fewest bytes.
SparsePattern best_pattern(const SparseRows& rows);
int64_t sparse_packed_bytes(const SparseRows& rows);
void sparse_pack(const SparseRows& rows, void* packed, int64_t packed_bytes, int threads);

SparseWeight sparse_view(const void* packed, int64_t packed_bytes);
// mask [N][ceil(K/8)]; values [nnz]; scales as the dense format, or null where there are none.
void sparse_unpack(const SparseWeight& weight, uint8_t* mask, void* values, void* scales, int threads);
void dequantize(const SparseWeight& weight, int64_t first_row, int64_t last_row, float* out, int threads);

// The lines of a range of a panel, found by the offset of its tile.
SparseLines sparse_lines(const SparseWeight& weight, const PanelRange& range);
// Bytes of the bits of K k, a multiple of 64, of one panel.
int64_t mask_bytes(SparsePattern pattern, int64_t K);
// Bytes of the values of these lines.
int64_t value_bytes(const SparseLayout& layout, const SparseLines& lines);
// The bits of one line as `any` has them, whatever the pattern. `masks`: of the panel.
uint64_t line_mask(const SparseLayout& layout, SparsePattern pattern, const uint8_t* masks, int64_t line);

// --- what the driver asks of a format (format.h) ---

int64_t s8_strip_bytes(const SparseWeight& weight);
S8Strip s8_strip(const SparseWeight& weight, int64_t strip, Isa isa, uint8_t* buffer, bool exact_groups = false);
void expand_f32(const SparseWeight& weight, const PanelRange& range, Isa isa, float* out);
void expand_bf16(const SparseWeight& weight, const PanelRange& range, Isa isa, uint16_t* out);
inline const uint16_t* bf16_panels(const SparseWeight&) { return nullptr; }
inline const float* channel_scales(const SparseWeight& weight) {
    return weight.spec.format == FormatId::sparse_int8 && weight.layout.G == 0 ? static_cast<const float*>(weight.scales) : nullptr;
}

}  // namespace gossamer
