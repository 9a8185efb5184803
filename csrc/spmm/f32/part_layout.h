// The part "spmm" of sparse fp32 weights, in bytes.
//
//   header    PartHeader                    64 bytes
//   tiles     Tile [row blocks][k blocks] + 1    where the slices and values of a tile begin; the last entry: how many there are
//   slices    SpmmF32Slice                  tile after tile: 4 rows of the block each, and how many values each of them has
//   indices   uint8 [quads][4]              slice after slice: k within the block of the i-th value of each of its four rows
//   values    float [quads][4]              likewise
//
// Each on a 64-byte boundary, zeros between. A tile is block_rows rows x block_k of K. Its rows are sorted by how many values they have in
// it, the most first, so that four rows of a slice have nearly the same number and the loop over slices seldom changes its length; the
// shorter are filled up with value 0 at index 0. Slices without values are not stored. Row numbers are a permutation, so those beyond N can
// fill the last slice of a tile.
//
// Bytes: 5 for a value, 6 for a slice, 1 % of zeros (at 90 %, uniform). A tile of 64 rows of x takes 256 bytes a k: 128 k are 32 KiB of L1.
// Below a density of 1/16 a row has few values in 128 k, and loading and storing its sums weighs more: 256 k.
#pragma once
#include <cstdint>

#include "gossamer/format.h"
#include "kernels.h"

namespace gossamer::spmm_f32 {

inline constexpr int64_t kShortBlock = 128, kLongBlock = 256;  // k; an index is a byte
inline constexpr int64_t kSliceRows = 4;

struct PartHeader {
    int64_t N, K;
    int64_t block_rows, block_k;
    int64_t slices, quads;
    int64_t nnz;  // values, the zeros that fill up not counted
    int64_t reserved;
};
static_assert(sizeof(PartHeader) == 64);

struct Tile {
    int64_t slice, quad;
};

constexpr int64_t count_of(int64_t x, int64_t size) { return (x + size - 1) / size; }

// Few rows: smaller blocks, so that there are enough of them to share out.
constexpr int64_t rows_of_block(int64_t N) { return N >= 1024 ? 128 : 64; }

// A part; it does not own the bytes.
struct Part {
    const uint8_t* bytes;

    const PartHeader& header() const { return *reinterpret_cast<const PartHeader*>(bytes); }
    int64_t row_blocks() const { return count_of(header().N, header().block_rows); }
    int64_t k_blocks() const { return count_of(header().K, header().block_k); }
    int64_t tile_count() const { return row_blocks() * k_blocks(); }

    int64_t tiles_offset() const { return sizeof(PartHeader); }
    int64_t slices_offset() const { return round_up(tiles_offset() + (tile_count() + 1) * static_cast<int64_t>(sizeof(Tile)), 64); }
    int64_t indices_offset() const { return round_up(slices_offset() + header().slices * static_cast<int64_t>(sizeof(SpmmF32Slice)), 64); }
    int64_t values_offset() const { return round_up(indices_offset() + header().quads * kSliceRows, 64); }
    int64_t size_bytes() const { return round_up(values_offset() + header().quads * kSliceRows * 4, 64); }

    const Tile* tiles() const { return reinterpret_cast<const Tile*>(bytes + tiles_offset()); }
    const SpmmF32Slice* slices() const { return reinterpret_cast<const SpmmF32Slice*>(bytes + slices_offset()); }
    const uint8_t* indices() const { return bytes + indices_offset(); }
    const float* values() const { return reinterpret_cast<const float*>(bytes + values_offset()); }
};

}  // namespace gossamer::spmm_f32
