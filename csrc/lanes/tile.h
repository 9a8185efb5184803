// The register tile of every lane, written once over the vector type. An ISA's file defines, then includes this:
//
//   struct Sums { static constexpr int64_t columns; ... };         sums of `columns` columns
//   Sums zero(), load(const Sum*), add(Sums, Sums);  void store(Sum*, Sums)
//   Sums load_line(const B*), broadcast_word(const A*)             a vector of B; a word of A in every column
//   Sums dot(Sums sum, Sums word, Sums line)                       sum += word * line, a word of products to a column
//
// Every loop over a tile is unrolled: the array stays in registers only if no index is left at run time (g++ 12 otherwise stored and loaded
// all sums once per chunk, 1-2 % of the time).
//
// A tile is rows x vectors x chains: `chains` splits K so that few rows still have enough independent sums to hide the latency.
//
// Tried and lost (Zen 4, one row): software prefetch of B, 512 bytes to 8 KiB ahead, into L1 or L2: 5-20 % slower than the hardware's own,
// which follows one sequential stream per thread well.
#pragma once
#include <cstdint>

#include "few_rows.h"
#include "gossamer/lane.h"

namespace gossamer {
namespace {

// Where vector v of a strip starts, in elements of B: which panel, and where in its lines.
template <class Block>
inline int64_t vector_offset(int64_t v, int64_t b_panel_stride) {
    const int64_t column = v * Sums::columns;
    return column / kPanelColumns * b_panel_stride + column % kPanelColumns * Block::word;
}

template <int rows, int vectors, int chains>
struct Tile {
    Sums sums[chains][rows][vectors];
};

template <class Block, int rows, int vectors, int chains>
inline void multiply(Tile<rows, vectors, chains>& t, const typename Block::A* a, const typename Block::B* b, int64_t b_panel_stride,
                     int64_t lines) {
    constexpr int64_t line_size = kPanelColumns * Block::word;
    for (int64_t i = 0; i < lines; i += chains, a += Block::word * chains, b += line_size * chains) {
#pragma GCC unroll 8
        for (int u = 0; u < chains; ++u) {
            Sums line[vectors];
#pragma GCC unroll 8
            for (int v = 0; v < vectors; ++v) line[v] = load_line(b + u * line_size + vector_offset<Block>(v, b_panel_stride));
#pragma GCC unroll 8
            for (int r = 0; r < rows; ++r) {
                const Sums word = broadcast_word(a + r * Block::chunk + Block::word * u);
#pragma GCC unroll 8
                for (int v = 0; v < vectors; ++v) t.sums[u][r][v] = dot(t.sums[u][r][v], word, line[v]);
            }
        }
    }
}

// The first chain starts from `before`, rows row_stride apart; the others from zero.
template <class Sum, int rows, int vectors, int chains>
inline void start(Tile<rows, vectors, chains>& t, const Sum* before, int64_t row_stride) {
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 8
        for (int v = 0; v < vectors; ++v) {
            t.sums[0][r][v] = load(before + r * row_stride + v * Sums::columns);
#pragma GCC unroll 8
            for (int u = 1; u < chains; ++u) t.sums[u][r][v] = zero();
        }
    }
}

// All chains of one sum.
template <int rows, int vectors, int chains>
inline Sums total(const Tile<rows, vectors, chains>& t, int r, int v) {
    Sums sum = t.sums[0][r][v];
#pragma GCC unroll 8
    for (int u = 1; u < chains; ++u) sum = add(sum, t.sums[u][r][v]);
    return sum;
}

template <int rows, int vectors, int chains, class Block>
void run_tile(const Block& block, const typename Block::A* a, int64_t first_vector, typename Block::Sum* c) {
    c += first_vector * Sums::columns;
    Tile<rows, vectors, chains> t;
    if (block.init != nullptr) {
        start(t, block.init + first_vector * Sums::columns, 0);
    } else {
        start(t, c, kStripColumns);
    }
    const typename Block::B* b = block.b + vector_offset<Block>(first_vector, block.b_panel_stride);
    for (int64_t k = 0; k < block.K; k += Block::chunk, a += block.panel_rows * Block::chunk, b += Block::chunk * kPanelColumns) {
        multiply<Block>(t, a, b, block.b_panel_stride, (block.K - k < Block::chunk ? block.K - k : Block::chunk) / Block::word);
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 8
        for (int v = 0; v < vectors; ++v) store(c + r * kStripColumns + v * Sums::columns, total(t, r, v));
    }
}

// Tiles from left to right over the strip.
template <int rows, int vectors, int chains, class Block>
void run_rows(const Block& block, const typename Block::A* a, typename Block::Sum* c) {
    const int64_t count = block.n_panels * kPanelColumns / Sums::columns;
    int64_t v = 0;
    for (; v + vectors <= count; v += vectors) run_tile<rows, vectors, chains>(block, a, v, c);
    for (; v < count; ++v) run_tile<rows, 1, chains>(block, a, v, c);
}

}  // namespace
}  // namespace gossamer
