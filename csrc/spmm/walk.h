// The walk of a skip-compute product, whatever the type of its values: x into tiles, and (tiles x blocks of rows of the weight) shared out
// by stored values.
//
//   tile    [words of K][vectors][16 rows of x]      a word of a row is 4 bytes of A (lane.h), however wide the kernels want it; the rows
//                                                    beyond the last are zero
//
// Each sum is one thread's work from the first k to the last, so the number of threads changes no bit.
//
// Loop nest of one thread, outermost first: slabs of rows of x (linear/grid.h); tiles; blocks of rows of the weight, read once per tile.
#pragma once
#include <algorithm>
#include <cstdint>

#include "linear/walk.h"

namespace gossamer {
namespace {

inline constexpr int64_t kVectorRows = kPanelRows;  // of x, in a vector of a tile

// Rows of x that are multiplied together.
template <class Block>
struct SpmmTile {
    const Panels<Block>& panels;  // of the slab
    int64_t slab;                 // its first row of x
    int64_t first_row, rows;      // of the slab
    int64_t vectors;              // 0: few rows, as they are in the panel
    uint8_t* x;

    const float* row_scales() const { return panels.scales_at(first_row); }
    Cell cell(int64_t first_column, int64_t last_column) const {
        return {first_row, rows, first_column / kStripColumns, std::min(kStripColumns, last_column - first_column)};
    }
};

// 64 bytes of each of up to 16 rows of A, and where their words go.
template <class A>
struct SpmmLines {
    const A* lines;  // [rows][64 bytes]
    int64_t rows;
    uint8_t* x;           // of the first word, in the vector of these rows
    int64_t word_stride;  // bytes from a word of K to the next
};

// Weight, what a type of values brings:
//
//   using Block                                 of its lane (lane.h)
//   int64_t tile_vectors() const                at most, in a tile
//   int64_t word_bytes() const                  of a word of one row in a tile
//   int64_t untransposed_rows() const           up to this M rows are multiplied as they are in the panel
//   void after_fill(panels, rows) const         once these rows of the panels were filled
//   void transpose(SpmmLines<A>) const
//   int64_t blocks() const, work_before(b) const        of rows; stored values before a block, [blocks + 1], and what a block costs anyhow
//   void multiply(SpmmTile, int64_t block) const        sums to the output
template <class Weight>
class SpmmWalk {
    using Block = typename Weight::Block;

public:
    SpmmWalk(const ProductCall& call, const Weight& weight)
        : call_(call),
          weight_(weight),
          row_bytes_(round_up(call.weight.K, Block::chunk) / Block::word * weight.word_bytes()),
          untransposed_(call.M <= weight.untransposed_rows()) {}

    void run(int threads) const {
        const int64_t tiles_bytes = untransposed_ ? 0 : round_up(call_.M, kVectorRows) * row_bytes_;
        for_each_slab<Block>(
            call_, {threads, ceil_div(tiles_bytes, call_.M)}, [&](const Panels<Block>& a, Range rows) { weight_.after_fill(a, rows); },
            [&](const Panels<Block>& a, int64_t slab, int64_t rows, Team team) { run_slab(a, slab, rows, team); });
    }

private:
    using Tile = SpmmTile<Block>;

    int64_t tile_rows() const { return weight_.tile_vectors() * kVectorRows; }

    Tile tile_at(const Panels<Block>& a, int64_t slab, int64_t rows, int64_t first_row) const {
        if (untransposed_) return {a, slab, 0, rows, 0, nullptr};
        const int64_t of_tile = std::min(tile_rows(), rows - first_row);
        return {a, slab, first_row, of_tile, ceil_div(of_tile, kVectorRows), a.end + first_row * row_bytes_};
    }

    void run_slab(const Panels<Block>& a, int64_t slab, int64_t rows, Team team) const {
        const bool private_copies = call_.M <= kPrivateRows;
        if (!untransposed_) transpose(a, slab, rows, private_copies ? Team{0, 1} : team);
        if (!private_copies) team.barrier();
        multiply(a, slab, rows, team);
    }

    // Panels of 16 rows x lines of 64 bytes, shared out line by line.
    void transpose(const Panels<Block>& a, int64_t slab, int64_t rows, Team team) const {
        const int64_t lines = a.K / Block::chunk, vector_bytes = kVectorRows * weight_.word_bytes();
        const Range share = split_range(ceil_div(rows, kVectorRows) * lines, team.rank, team.size);
        for (int64_t i = share.begin; i < share.end; ++i) {
            const int64_t line = i % lines, row = i / lines * kVectorRows;
            const Tile tile = tile_at(a, slab, rows, row / tile_rows() * tile_rows());
            const int64_t word_stride = tile.vectors * vector_bytes;
            uint8_t* x = tile.x + line * (Block::chunk / Block::word) * word_stride + (row - tile.first_row) * weight_.word_bytes();
            weight_.transpose({a.at(row) + line * a.panel_rows * Block::chunk, std::min(kVectorRows, rows - row), x, word_stride});
        }
    }

    // A block and a tile are the work of the thread in whose equal part of all the work their middle lies.
    void multiply(const Panels<Block>& a, int64_t slab, int64_t rows, Team team) const {
        const int64_t blocks = weight_.blocks(), block_work = weight_.work_before(blocks);
        const double equal = static_cast<double>(ceil_div(rows, kVectorRows) * block_work) / team.size;
        for (int64_t row = 0; row < rows; row += tile_rows()) {
            const Tile tile = tile_at(a, slab, rows, row);
            const int64_t vectors = ceil_div(tile.rows, kVectorRows);
            for (int64_t block = 0; block < blocks; ++block) {
                const double middle = static_cast<double>(weight_.work_before(block) + weight_.work_before(block + 1)) / 2;
                const double before = static_cast<double>(row / kVectorRows * block_work) + static_cast<double>(vectors) * middle;
                if (std::min(static_cast<int>(before / equal), team.size - 1) == team.rank) weight_.multiply(tile, block);
            }
        }
    }

    const ProductCall& call_;
    const Weight& weight_;
    int64_t row_bytes_;  // of a row of x in tiles
    bool untransposed_;  // at most kPrivateRows rows
};

}  // namespace
}  // namespace gossamer
