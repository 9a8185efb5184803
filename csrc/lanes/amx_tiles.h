// The walk over AMX tiles, the same for every lane. A lane's amx.cpp defines GOSSAMER_TILE_PRODUCT as the intrinsic that multiplies two
// tiles, then includes this; a macro, because g++'s intrinsics take literal tile numbers only.
//
// Tiles: 2 x 2 of C, 2 of A, 2 of B, so each step of a chunk loads 4 tiles (64 lines) for 4 products of 16 cycles: one line a cycle, which
// L1 gives and L2 does not.
//
//             B tmm6   B tmm7          A tile: 16 rows of 64 bytes, contiguous in its panel
//   A tmm4    C tmm0   C tmm1          B tile: 16 lines of [16 columns][word], contiguous in its panel (lane.h)
//   A tmm5    C tmm2   C tmm3
//
// The sums start from init by a tile load with stride 0, which repeats one row. Rows of C beyond M are computed and ignored.
// Tile configuration belongs to the thread and torch's own kernels change it: begin() loads ours, end() releases it.
#pragma once
#include <immintrin.h>

#include <cstdint>

#include "gossamer/lane.h"

namespace gossamer {
namespace {

struct alignas(64) TileConfig {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
};

// step_bytes of each row of A to a product: 64, or less for a group shorter than a chunk.
void configure(int64_t panel_rows, int64_t step_bytes) {
    TileConfig config;
    for (int i = 0; i < 4; ++i) {  // C
        config.rows[i] = static_cast<uint8_t>(panel_rows);
        config.row_bytes[i] = 64;
    }
    for (int i = 4; i < 6; ++i) {  // A
        config.rows[i] = static_cast<uint8_t>(panel_rows);
        config.row_bytes[i] = static_cast<uint16_t>(step_bytes);
    }
    for (int i = 6; i < 8; ++i) {  // B
        config.rows[i] = static_cast<uint8_t>(step_bytes / 4);
        config.row_bytes[i] = 64;
    }
    // The intrinsic names only the first bytes as its input; without this the compiler may drop the rest of the stores.
    asm volatile("" ::"r"(&config) : "memory");
    _tile_loadconfig(&config);
}

void begin(int64_t panel_rows) { configure(panel_rows, 64); }
void end() { _tile_release(); }

template <int panels_of_a, int panels_of_b, class Block>
void run_tiles(const Block& t, const typename Block::A* a, typename Block::Sum* c) {
    constexpr int64_t c_stride = kStripColumns * 4;
    const int64_t before_stride = t.init != nullptr ? 0 : c_stride;
    const int64_t c_panel = t.panel_rows * kStripColumns;
    const typename Block::Sum* before0 = t.init != nullptr ? t.init : c;
    const typename Block::Sum* before1 = t.init != nullptr ? t.init : c + c_panel;
    _tile_loadd(0, before0, before_stride);
    if constexpr (panels_of_b == 2) _tile_loadd(1, before0 + kPanelColumns, before_stride);
    if constexpr (panels_of_a == 2) _tile_loadd(2, before1, before_stride);
    if constexpr (panels_of_a == 2 && panels_of_b == 2) _tile_loadd(3, before1 + kPanelColumns, before_stride);
    const typename Block::B* b = t.b;
    for (int64_t k = 0; k < t.K; k += Block::chunk, a += t.panel_rows * Block::chunk, b += Block::chunk * kPanelColumns) {
        _tile_loadd(4, a, 64);
        _tile_loadd(6, b, 64);
        GOSSAMER_TILE_PRODUCT(0, 4, 6);
        if constexpr (panels_of_b == 2) {
            _tile_loadd(7, b + t.b_panel_stride, 64);
            GOSSAMER_TILE_PRODUCT(1, 4, 7);
        }
        if constexpr (panels_of_a == 2) {
            _tile_loadd(5, a + t.a_panel_stride, 64);
            GOSSAMER_TILE_PRODUCT(2, 5, 6);
            if constexpr (panels_of_b == 2) GOSSAMER_TILE_PRODUCT(3, 5, 7);
        }
    }
    _tile_stored(0, c, c_stride);
    if constexpr (panels_of_b == 2) _tile_stored(1, c + kPanelColumns, c_stride);
    if constexpr (panels_of_a == 2) _tile_stored(2, c + c_panel, c_stride);
    if constexpr (panels_of_a == 2 && panels_of_b == 2) _tile_stored(3, c + c_panel + kPanelColumns, c_stride);
}

template <int panels_of_b, class Block>
void run_strip(const Block& t) {
    const int64_t panels = (t.M + t.panel_rows - 1) / t.panel_rows, c_panel = t.panel_rows * kStripColumns;
    int64_t p = 0;
    for (; p + 2 <= panels; p += 2) run_tiles<2, panels_of_b>(t, t.a + p * t.a_panel_stride, t.c + p * c_panel);
    if (p < panels) run_tiles<1, panels_of_b>(t, t.a + p * t.a_panel_stride, t.c + p * c_panel);
}

template <class Block>
void run(const Block& t) {
    const bool short_step = t.K < Block::chunk;
    if (short_step) configure(t.panel_rows, t.K * static_cast<int64_t>(sizeof(typename Block::A)));
    if (t.n_panels == 2) {
        run_strip<2>(t);
    } else {
        run_strip<1>(t);
    }
    if (short_step) configure(t.panel_rows, 64);
}

}  // namespace
}  // namespace gossamer
