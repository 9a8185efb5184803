// Formats made of two packed weights: low-rank, and the sum of a weight and a low-rank one.
//
//   low_rank   W = U V         U [N, R], V [R, K]: fp32, bf16 or int8 with one scale per channel
//   sum        W = B + U V     B [N, K]: int8, 4 bits, fp8 or sparse
//
// Packed (format.h), R in the header's `rank`, G of a sum that of B:
//
//     offset 0      PackedHeader    64 bytes
//     offset 64     PackedParts     64 bytes
//     offset 128    first part      a packed weight with a header of its own: V, or B
//     ...           second part     on the next 64-byte boundary: U, or a low_rank
//
// Activations: those of V, which are those of U; those of B. The low-rank part of a sum rounds x where B does and the factors are int8.
// Multiplication: linear.h.
#pragma once
#include <cstdint>
#include <memory>

#include "gossamer/format.h"

namespace gossamer {

struct Weight;

struct PackedParts {
    int64_t first_bytes, second_bytes;
    int64_t reserved[6];
};
static_assert(sizeof(PackedParts) == 64);

// Where a part lies.
struct PackedPart {
    int64_t offset, size_bytes;
};
struct TwoParts {
    PackedPart first, second;
    int64_t size_bytes;  // of both with the headers
};

TwoParts two_parts(int64_t first_bytes, int64_t second_bytes);
// Throws std::invalid_argument unless the header is that of a low_rank or a sum and its parts fill the bytes.
TwoParts read_parts(const void* packed, int64_t packed_bytes);

struct LowRankWeight {
    int64_t N, K, R;
    std::shared_ptr<const Weight> V, U;
};

struct SumWeight {
    int64_t N, K;
    std::shared_ptr<const Weight> base, low_rank;
};

// Throw std::invalid_argument where the parts are not packed weights that fit together.
LowRankWeight low_rank_view(const void* packed, int64_t packed_bytes);
SumWeight sum_view(const void* packed, int64_t packed_bytes);

// Bytes of a packed part.
struct PartBytes {
    const void* data;
    int64_t size_bytes;
};
void low_rank_pack(const PartBytes& V, const PartBytes& U, void* packed, int64_t packed_bytes);
void sum_pack(const PartBytes& base, const PartBytes& low_rank, void* packed, int64_t packed_bytes);

void dequantize(const LowRankWeight& weight, int64_t first_row, int64_t last_row, float* out, int threads);
void dequantize(const SumWeight& weight, int64_t first_row, int64_t last_row, float* out, int threads);

}  // namespace gossamer
