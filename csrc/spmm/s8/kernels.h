// Kernels of the skip-compute product with sparse int8 weights. Contract: spmm.h; the order of the weight: part_layout.h.
//
//   c[n][m] += sum_i x[index_i][m][0..3] . word_i[0..3]        over the stored groups i of row n in one block of K, exact in int32
//
// x is transposed, so that the rows of x stand in the vector and a stored group of four k is broadcast: tiles of up to 16 * tile_vectors
// rows,
//
//   tile   [K/4 groups][vectors][16 rows][4 k]         u = q + 128, a word of 4 bytes a row (s8.h)
//                      [vectors][2 x 8 rows][2 pairs][8 rows][2 k] of int16 where word_bytes is 8, as AVX2 wants it
//
// Reads: the words, indices and counts of the block, and lines of x that indices name; nothing past any of them.
#pragma once
#include <cstdint>

#include "gossamer/isa.h"
#include "gossamer/lane.h"

namespace gossamer {

// 32 rows of the weight (a strip of y) over one block of K.
struct SpmmS8Block {
    const uint8_t* x;        // the tile, at the block's first group
    int64_t vectors;         // of 16 rows, in the tile
    const uint16_t* counts;  // [32] groups of each row of the weight
    const int32_t* words;    // four k each, row after row
    const uint8_t* indices;  // of the group within the block, likewise
    const uint8_t* next;     // what follows in memory, to be prefetched
    const int32_t* init;     // [32], or null: c holds the sums of the blocks before
    int32_t* c;              // [32][16 * vectors]
};

struct SpmmS8Kernels {
    Isa isa;
    int64_t tile_vectors;  // at most, of 16 rows
    int64_t word_bytes;    // of a group of one row in a tile
    void (*run)(const SpmmS8Block& block);
    // 64 k of up to 16 rows, a line of 64 bytes each, to 16 groups of a tile, group_stride bytes apart; the rows that are not there become
    // 0.
    void (*transpose_lines)(const uint8_t* lines, int64_t rows, uint8_t* x, int64_t group_stride);
    // 16 x 16 words of 4 bytes: out[j][i] = in[i][j]; rows of `in` from `rows` on count as zero. Strides in words.
    void (*transpose)(const void* in, int64_t in_stride, int64_t rows, void* out, int64_t out_stride);
};

}  // namespace gossamer
