// What all formats of packed weights share: the header, and what the driver (linear.h) asks of each.
//
// Canonical tensors (what a state_dict holds) do not depend on the machine; the packed form is one buffer of bytes, the same for every x86
// ISA. Each format has a file of its own, format_<name>.h.
//
// Packed, every format:
//
//     offset 0      PackedHeader            64 bytes
//     ...           parts of the format, each on a 64-byte boundary
//
// N16 = N rounded up to 16, K64 = K rounded up to 64; padding holds zeros, and padded activations are zero.
#pragma once
#include <cstdint>

#include "gossamer/isa.h"
#include "gossamer/lane.h"

namespace gossamer {

enum class FormatId : uint32_t {
    int8 = 1,
    int4 = 2,
    nf4 = 3,
    fp4 = 4,
    mxfp4 = 5,
    fp8_e4m3 = 6,
    fp8_e5m2 = 7,
    bf16 = 8,
    sparse_int8 = 9,
    sparse_int4 = 10,
    sparse_bf16 = 11,
    sparse_f32 = 12,
    f32 = 13,
    low_rank = 14,
    sum = 15
};
inline constexpr FormatId kLastFormat = FormatId::sum;

// What happens to x: int8 rounds each row (quantize.h), with a scale of its own or the input scale of the header, and multiplies on the s8
// lane; int8_group rounds each group of each row, the groups being those of the weight, so that an outlier costs only its group the
// accuracy; exact multiplies x as it is, bf16 on the bf16 lane where the ISA has one, everything else on the f32 lane.
enum class Activations : uint8_t { int8 = 0, exact = 1, int8_group = 2 };

enum class ScaleType : uint8_t { f32 = 0, bf16 = 1, f16 = 2, e8m0 = 3 };

inline constexpr char kPackedMagic[8] = {'G', 'O', 'S', 'S', 'A', 'M', 'E', 'R'};
inline constexpr uint32_t kPackedLayout = 1;  // changes whenever packed bytes of an earlier version would be misread

struct PackedHeader {
    char magic[8];
    uint32_t layout;
    FormatId format;
    int64_t N, K, G;  // G = 0: per channel
    Activations activations;
    ScaleType scale_type;
    uint8_t has_zero_points;
    // Of the sparse formats (format_sparse.h), else 0.
    uint8_t pattern, parts;
    uint8_t unused[3];
    int64_t nnz;
    int32_t rank;       // of low_rank and sum (format_low_rank.h), else 0
    float input_scale;  // int8 activations: the scale of every row of x (quantize.h); 0: each has its own
};
static_assert(sizeof(PackedHeader) == 64);

// "int8", "int4", ... "sparse-int8", ... "fp32", "low-rank", "sum"; "int8", "exact", "int8-group"; "float32", "bfloat16", "float16",
// "e8m0".
const char* name(FormatId format);
const char* name(Activations activations);
const char* name(ScaleType scale_type);

// Throws std::invalid_argument unless the bytes begin with the header of a packed weight of this version, at an address that is a multiple
// of 8. Every enum of the header holds one of its values afterwards; N, K and G are for the format to check.
PackedHeader read_header(const void* packed, int64_t packed_bytes);
// Throws as check_activations.
PackedHeader make_header(FormatId format, int64_t N, int64_t K, int64_t G, Activations activations);
// Throws std::invalid_argument where the format does not offer these activations, int8_group meets a weight without groups, or there is an
// input scale that is not for int8 activations, or not finite and above 0.
void check_activations(const PackedHeader& header);
// Throws std::invalid_argument unless N, K >= 1 and N * K is far from overflowing.
void check_shape(const char* format, int64_t N, int64_t K);
// Throws std::invalid_argument unless 0 <= first_row <= last_row <= N.
void check_rows(const char* function, int64_t first_row, int64_t last_row, int64_t N);
// Throws std::invalid_argument unless `right`.
void check_format(const PackedHeader& header, bool right, const char* wanted);
// Throws std::invalid_argument unless `found` == `wanted`.
void check_packed_bytes(const PackedHeader& header, int64_t found, int64_t wanted);
// Asks for 2 MiB pages where the buffer spans some; only a hint, and only before the bytes are first written.
void prefer_huge_pages(void* buffer, int64_t size_bytes);
// Huge pages, zeros, then the header. Returns the first byte.
char* begin_packed(const PackedHeader& header, void* packed, int64_t packed_bytes);

constexpr int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

// One strip (32 columns) of a weight as the s8 lane multiplies it.
struct S8Strip {
    const int8_t* panels;  // [n_panels] panels, panel_stride bytes apart (lane.h)
    int64_t panel_stride;
    const int32_t* init;  // -128 * sum of the values of each sum block: [sum_blocks], group_stride apart, 32 columns
    const float* scales;  // of each sum block if `grouped`, else one for the whole row; likewise
    int64_t group_stride;
    int64_t sum_k;  // k per sum block: a group, or at most kMaxSumK
    int64_t sum_blocks;
    bool grouped;
};

// What the driver asks of the weight W of a format, as overloaded functions:
//
//   int64_t s8_strip_bytes(const W&)                      bytes of buffer that s8_strip needs; 0: strips are used in place
//   S8Strip s8_strip(const W&, int64_t strip, Isa, uint8_t* buffer)     4 bits: and whether groups keep their own scales
//
//   void expand_f32 (const W&, const PanelRange&, Isa, float* out)       values (times scale, unless channel_scales gives it)
//   void expand_bf16(const W&, const PanelRange&, Isa, uint16_t* out)    the same rounded to nearest even bf16
//   const uint16_t* bf16_panels(const W&)                 the panels themselves where they are of the bf16 lane, else null
//   const float* channel_scales(const W&)                 [N16] to be applied to the sums; null: expand applied all scales
//
// A format whose activations can only be exact gives no s8 functions.
struct PanelRange {
    int64_t panel;            // of 16 columns
    int64_t first_k, last_k;  // multiples of 64
};

}  // namespace gossamer
