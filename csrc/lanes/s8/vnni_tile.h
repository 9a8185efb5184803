// The VPDPBUSD tile, written once over the vector type; avx512vnni.cpp (zmm) and avxvnni.cpp (ymm) define, then include this:
//
//   struct Sums { static constexpr int64_t columns; ... };    int32 sums of `columns` columns
//   Sums zero(), load(const int32_t*), add(Sums, Sums);  void store(int32_t*, Sums)
//   Sums load_line(const int8_t*), broadcast4(const uint8_t*)  a vector of B; 4 bytes of A in every column
//   Sums dot(Sums sum, Sums word, Sums line)                  sum += word * line, four products to a column
//   struct Floats;  Floats zero_floats(), scale_add(Floats, Sums, const float* scales);  void store(float*, Floats)
//
// Every loop over a tile is unrolled: the array stays in registers only if no index is left at run time (g++ 12 otherwise stored and loaded
// all sums once per 64 k, 1-2 % of the time).
//
// A tile is rows x vectors x chains: `chains` splits K so that few rows still have enough independent sums to hide the latency.
//
// Tried and lost (Zen 4, one row): software prefetch of B, 512 bytes to 8 KiB ahead, into L1 or L2: 5-20 % slower than the hardware's own,
// which follows one sequential stream per thread well.
#pragma once
#include <cstdint>

#include "few_rows.h"
#include "gossamer/s8.h"

namespace gossamer {
namespace {

inline constexpr int64_t kLineBytes = kPanelColumns * 4;  // one line of B: 16 columns x 4 k

// Vector v of a strip: which panel, and where in its lines.
inline int64_t vector_offset(int64_t v, int64_t b_panel_stride) {
    const int64_t column = v * Sums::columns;
    return column / kPanelColumns * b_panel_stride + column % kPanelColumns * 4;
}

template <int rows, int vectors, int chains>
struct Tile {
    Sums sums[chains][rows][vectors];
};

template <int rows, int vectors, int chains>
inline void multiply(Tile<rows, vectors, chains>& t, const uint8_t* a, const int8_t* b, int64_t b_panel_stride, int64_t lines) {
    for (int64_t i = 0; i < lines; i += chains, a += 4 * chains, b += kLineBytes * chains) {
#pragma GCC unroll 8
        for (int u = 0; u < chains; ++u) {
            Sums line[vectors];
#pragma GCC unroll 8
            for (int v = 0; v < vectors; ++v) {
                line[v] = load_line(b + u * kLineBytes + vector_offset(v, b_panel_stride));
            }
#pragma GCC unroll 8
            for (int r = 0; r < rows; ++r) {
                const Sums word = broadcast4(a + r * kChunk + 4 * u);
#pragma GCC unroll 8
                for (int v = 0; v < vectors; ++v) t.sums[u][r][v] = dot(t.sums[u][r][v], word, line[v]);
            }
        }
    }
}

// The first chain starts from `before`, rows row_stride apart; the others from zero.
template <int rows, int vectors, int chains>
inline void start(Tile<rows, vectors, chains>& t, const int32_t* before, int64_t row_stride) {
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

template <int rows, int vectors, int chains>
void run_tile(const S8Block& block, const uint8_t* a, int64_t first_vector, int32_t* c) {
    c += first_vector * Sums::columns;
    Tile<rows, vectors, chains> t;
    if (block.init != nullptr) {
        start(t, block.init + first_vector * Sums::columns, 0);
    } else {
        start(t, c, kStripColumns);
    }
    const int8_t* b = block.b + vector_offset(first_vector, block.b_panel_stride);
    for (int64_t k = 0; k < block.K; k += kChunk, a += block.panel_rows * kChunk, b += kChunk * kPanelColumns) {
        multiply(t, a, b, block.b_panel_stride, (block.K - k < kChunk ? block.K - k : kChunk) / 4);
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 8
        for (int v = 0; v < vectors; ++v) store(c + r * kStripColumns + v * Sums::columns, total(t, r, v));
    }
}

// The same over all groups of K. Each group starts new sums, so groups overlap in the pipeline and need few chains.
template <int rows, int vectors, int chains>
void run_tile_grouped(const S8GroupedBlock& block, const uint8_t* a, int64_t first_vector, float* sum) {
    const int64_t first_column = first_vector * Sums::columns;
    const int64_t chunk_stride = block.panel_rows * kChunk;
    const int64_t step = block.group_k < kChunk ? block.group_k : kChunk;
    const int8_t* b = block.b + vector_offset(first_vector, block.b_panel_stride);
    const int32_t* init = block.init + first_column;
    const float* scales = block.scales + first_column;
    Floats scaled[rows][vectors];
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 8
        for (int v = 0; v < vectors; ++v) scaled[r][v] = zero_floats();
    }
    for (int64_t first_k = 0; first_k < block.K; first_k += block.group_k, init += block.group_stride, scales += block.group_stride) {
        const int64_t last_k = first_k + block.group_k < block.K ? first_k + block.group_k : block.K;
        Tile<rows, vectors, chains> t;
        start(t, init, 0);
        for (int64_t k = first_k; k < last_k; k += step) {
            const uint8_t* ak = a + k / kChunk * chunk_stride + k % kChunk;
            multiply(t, ak, b + k * kPanelColumns, block.b_panel_stride, step / 4);
        }
#pragma GCC unroll 8
        for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 8
            for (int v = 0; v < vectors; ++v) scaled[r][v] = scale_add(scaled[r][v], total(t, r, v), scales + v * Sums::columns);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 8
        for (int v = 0; v < vectors; ++v) store(sum + r * kStripColumns + first_column + v * Sums::columns, scaled[r][v]);
    }
}

// Tiles from left to right over the strip.
template <int rows, int vectors, int chains>
void run_rows_grouped(const S8GroupedBlock& block, const uint8_t* a, float* sum) {
    const int64_t count = block.n_panels * kPanelColumns / Sums::columns;
    int64_t v = 0;
    for (; v + vectors <= count; v += vectors) run_tile_grouped<rows, vectors, chains>(block, a, v, sum);
    for (; v < count; ++v) run_tile_grouped<rows, 1, chains>(block, a, v, sum);
}

template <int rows, int vectors, int chains>
void run_rows(const S8Block& block, const uint8_t* a, int32_t* c) {
    const int64_t count = block.n_panels * kPanelColumns / Sums::columns;
    int64_t v = 0;
    for (; v + vectors <= count; v += vectors) run_tile<rows, vectors, chains>(block, a, v, c);
    for (; v < count; ++v) run_tile<rows, 1, chains>(block, a, v, c);
}

}  // namespace
}  // namespace gossamer
