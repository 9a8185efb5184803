// The tile of tile.h over all groups of K: each group starts new sums, so groups overlap in the pipeline and need few chains. Beside what
// tile.h asks for:
//
//   struct Floats;  Floats zero_floats(), scale_add(Floats, Sums, const float* scales);  void store(float*, Floats)
#pragma once
#include <cstdint>

#include "../tile.h"
#include "gossamer/s8.h"

namespace gossamer {
namespace {

template <int rows, int vectors, int chains>
void run_tile_grouped(const S8GroupedBlock& block, const uint8_t* a, int64_t first_vector, float* sum) {
    constexpr int64_t chunk = S8Block::chunk;
    const int64_t first_column = first_vector * Sums::columns;
    const int64_t step = block.group_k < chunk ? block.group_k : chunk;
    const int8_t* b = block.b + vector_offset<S8Block>(first_vector, block.b_panel_stride);
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
            const uint8_t* ak = a + k / chunk * block.panel_rows * chunk + k % chunk;
            multiply<S8Block>(t, ak, b + k * kPanelColumns, block.b_panel_stride, step / S8Block::word);
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

template <int rows, int vectors, int chains>
void run_rows_grouped(const S8GroupedBlock& block, const uint8_t* a, float* sum) {
    const int64_t count = block.n_panels * kPanelColumns / Sums::columns;
    int64_t v = 0;
    for (; v + vectors <= count; v += vectors) run_tile_grouped<rows, vectors, chains>(block, a, v, sum);
    for (; v < count; ++v) run_tile_grouped<rows, 1, chains>(block, a, v, sum);
}

}  // namespace
}  // namespace gossamer
