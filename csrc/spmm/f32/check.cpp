// That nothing in a part leads outside of it or of a row of x. Layout: part_layout.h.
#include <bit>
#include <bitset>
#include <cstring>
#include <stdexcept>
#include <string>

#include "part.h"
#include "part_layout.h"

namespace gossamer::spmm_f32 {
namespace {

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument("sparse-fp32: part spmm: " + what); }

void check_header(const SparseSpec& spec, const Part& part, int64_t part_bytes) {
    if (part_bytes < static_cast<int64_t>(sizeof(PartHeader)))
        refuse("got " + std::to_string(part_bytes) + " bytes, wanted a header of 64");
    const PartHeader& h = part.header();
    if (h.N != spec.N || h.K != spec.K) {
        refuse("got N = " + std::to_string(h.N) + ", K = " + std::to_string(h.K) + ", wanted those of the weight");
    }
    if (h.block_rows != rows_of_block(h.N) || (h.block_k != kShortBlock && h.block_k != kLongBlock) || h.reserved != 0) {
        refuse("got blocks of " + std::to_string(h.block_rows) + " rows x " + std::to_string(h.block_k) +
               " k, which this version does not know");
    }
    // The sizes below are sums of products of these, which cannot overflow then.
    const bool small = h.slices >= 0 && h.slices <= part_bytes && h.quads >= 0 && h.quads <= part_bytes && part.tile_count() <= part_bytes;
    if (!small || part.size_bytes() != part_bytes)
        refuse("got " + std::to_string(part_bytes) + " bytes, wanted as many as its header says");
}

void check_offsets(const Part& part) {
    const Tile* tiles = part.tiles();
    const int64_t count = part.tile_count();
    bool right =
        tiles[0].slice == 0 && tiles[0].quad == 0 && tiles[count].slice == part.header().slices && tiles[count].quad == part.header().quads;
    for (int64_t t = 0; t < count; ++t) right = right && tiles[t].slice <= tiles[t + 1].slice && tiles[t].quad <= tiles[t + 1].quad;
    if (!right) refuse("the offsets of its tiles are not ascending");
}

bool is_fill(float value, uint8_t index) { return std::bit_cast<uint32_t>(value) == 0 && index == 0; }

// How many values a row of a slice has; -1 where their indices do not ascend within `k_end`, or a zero stands among them.
int64_t check_row(const uint8_t* index, const float* value, int64_t count, int64_t k_end) {
    int64_t stored = 0, before = -1;
    while (stored < count && (std::bit_cast<uint32_t>(value[stored * kSliceRows]) << 1) != 0) {
        const int64_t k = index[stored * kSliceRows];
        if (k <= before || k >= k_end) return -1;
        before = k;
        ++stored;
    }
    for (int64_t i = stored; i < count; ++i) {
        if (!is_fill(value[i * kSliceRows], index[i * kSliceRows])) return -1;
    }
    return stored;
}

// Returns how many values it has.
int64_t check_tile(const Part& part, int64_t row_block, int64_t k_block) {
    const PartHeader& h = part.header();
    const Tile* tile = part.tiles() + row_block * part.k_blocks() + k_block;
    const int64_t rows = std::min(h.block_rows, h.N - row_block * h.block_rows), k_end = std::min(h.block_k, h.K - k_block * h.block_k);
    std::bitset<256> seen;
    int64_t quad = tile[0].quad, nnz = 0;
    bool right = true;
    for (int64_t s = tile[0].slice; right && s < tile[1].slice; ++s) {
        const SpmmF32Slice& slice = part.slices()[s];
        right = slice.count > 0 && slice.count <= tile[1].quad - quad;
        for (int64_t i = 0; right && i < kSliceRows; ++i) {
            const int64_t first = quad * kSliceRows + i;
            const int64_t stored = check_row(part.indices() + first, part.values() + first, slice.count, k_end);
            right = slice.rows[i] < h.block_rows && !seen[slice.rows[i]] && stored >= 0 && (slice.rows[i] < rows || stored == 0);
            seen.set(slice.rows[i]);
            nnz += stored;
        }
        quad += slice.count;
    }
    if (!right || quad != tile[1].quad) {
        refuse("a row or an index of the tile at row " + std::to_string(row_block * h.block_rows) + ", k " +
               std::to_string(k_block * h.block_k) + " is wrong");
    }
    return nnz;
}

}  // namespace

void check(const SparseSpec& spec, const uint8_t* bytes, int64_t part_bytes) {
    const Part part{bytes};
    check_header(spec, part, part_bytes);
    check_offsets(part);
    int64_t nnz = 0;
    for (int64_t r = 0; r < part.row_blocks(); ++r) {
        for (int64_t k = 0; k < part.k_blocks(); ++k) nnz += check_tile(part, r, k);
    }
    if (nnz != part.header().nnz) refuse("got " + std::to_string(part.header().nnz) + " values, found " + std::to_string(nnz));
}

}  // namespace gossamer::spmm_f32
