// Kernels of the skip-compute product with sparse fp32 weights. Contract: spmm.h; the order of the weight: part_layout.h.
//
//   c[n][m] += sum_i value_i * x[index_i][m]          over the stored values of row n in one block of K, by ascending k
//
// Rows of x stand in the vector, a value of the weight is broadcast. x is finite: rows that are not become NaN afterwards.
//
// Error: |c - exact| <= values * 2^-23 * sum |value||x|, as the f32 lane.
#pragma once
#include <cstdint>

#include "gossamer/isa.h"

namespace gossamer {

// Four rows of a block of the weight whose values stand together.
struct SpmmF32Slice {
    uint16_t count;   // of values of each row
    uint8_t rows[4];  // of the block
};
static_assert(sizeof(SpmmF32Slice) == 6);

// A block of rows of the weight x a block of K.
struct SpmmF32Block {
    const SpmmF32Slice* slices;
    int64_t slice_count;
    const uint8_t* indices;  // [count][4] a slice, k within the block
    const float* values;     // likewise
    const float* x;          // at the block's first k: [k][vectors][16 rows of x]; vectors = 0: [k], of one row
    int64_t k;               // of x in the block
    int64_t vectors;
    float* c;  // [rows][vectors][16], or [rows]
};

struct SpmmF32Kernels {
    Isa isa;
    int64_t tile_vectors;  // at most
    void (*run)(const SpmmF32Block& block);
    // 16 x 16 floats: out[j][i] = in[i][j]; rows of `in` from `rows` on count as zero.
    void (*transpose)(const float* in, int64_t in_stride, int64_t rows, float* out, int64_t out_stride);
    // Whether `lines` times 16 floats, line_stride apart, hold neither NaN nor infinity.
    bool (*finite)(const float* line, int64_t line_stride, int64_t lines);
};

}  // namespace gossamer
