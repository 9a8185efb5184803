// s8 lane on AMX-INT8. Contract: s8.h.
//
// TDPBUSD multiplies 16 x 64 bytes by 64 x 16 bytes in 16 cycles. Tiles: 2 x 2 of C, 2 of A, 2 of B, so each step of 64 k loads 4 tiles
// (64 lines) for 4 products (64 cycles): one line a cycle, which L1 gives and L2 does not. Hence block_k = 512 and block_rows = 128: the
// strip of B (2 panels x 512 k) and the block of C (128 rows x 32 columns) take 16 KiB of L1 each, while the panels of A, contiguous,
// stream from L2 (128 rows x 4096 k are 512 KiB). These sizes follow from the caches; they have not been tuned on a machine with AMX yet.
//
//             B tmm6   B tmm7          A tile: 16 rows x 64 k, contiguous in its panel (quantize.h)
//   A tmm4    C tmm0   C tmm1          B tile: 16 lines of [16 columns][4 k], contiguous in its panel (s8.h)
//   A tmm5    C tmm2   C tmm3
//
// The sums start from init by a tile load with stride 0, which repeats one row. Rows of C beyond M are computed and ignored.
// Tile configuration belongs to the thread and torch's own kernels change it: begin() loads ours, end() releases it.
#include <immintrin.h>

#include <cstdint>

#include "gossamer/s8.h"

namespace gossamer {
namespace {

struct alignas(64) TileConfig {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
};

void configure(int64_t panel_rows, int64_t step_k) {
    TileConfig config;
    for (int i = 0; i < 4; ++i) {  // C
        config.rows[i] = static_cast<uint8_t>(panel_rows);
        config.row_bytes[i] = 64;
    }
    for (int i = 4; i < 6; ++i) {  // A
        config.rows[i] = static_cast<uint8_t>(panel_rows);
        config.row_bytes[i] = static_cast<uint16_t>(step_k);
    }
    for (int i = 6; i < 8; ++i) {  // B
        config.rows[i] = static_cast<uint8_t>(step_k / 4);
        config.row_bytes[i] = 64;
    }
    // The intrinsic names only the first bytes as its input; without this the compiler may drop the rest of the stores.
    asm volatile("" ::"r"(&config) : "memory");
    _tile_loadconfig(&config);
}

void begin(int64_t panel_rows) { configure(panel_rows, S8Block::chunk); }
void end() { _tile_release(); }

template <int panels_of_a, int panels_of_b>
void run_tiles(const S8Block& t, const uint8_t* a, int32_t* c) {
    constexpr int64_t c_stride = kStripColumns * static_cast<int64_t>(sizeof(int32_t));
    const int64_t before_stride = t.init != nullptr ? 0 : c_stride;
    const int64_t c_panel = t.panel_rows * kStripColumns;
    const int32_t* before0 = t.init != nullptr ? t.init : c;
    const int32_t* before1 = t.init != nullptr ? t.init : c + c_panel;
    _tile_loadd(0, before0, before_stride);
    if constexpr (panels_of_b == 2) _tile_loadd(1, before0 + kPanelColumns, before_stride);
    if constexpr (panels_of_a == 2) _tile_loadd(2, before1, before_stride);
    if constexpr (panels_of_a == 2 && panels_of_b == 2) _tile_loadd(3, before1 + kPanelColumns, before_stride);
    const int8_t* b = t.b;
    for (int64_t k = 0; k < t.K; k += S8Block::chunk, a += t.panel_rows * S8Block::chunk, b += S8Block::chunk * kPanelColumns) {
        _tile_loadd(4, a, S8Block::chunk);
        _tile_loadd(6, b, 64);
        _tile_dpbusd(0, 4, 6);
        if constexpr (panels_of_b == 2) {
            _tile_loadd(7, b + t.b_panel_stride, 64);
            _tile_dpbusd(1, 4, 7);
        }
        if constexpr (panels_of_a == 2) {
            _tile_loadd(5, a + t.a_panel_stride, S8Block::chunk);
            _tile_dpbusd(2, 5, 6);
            if constexpr (panels_of_b == 2) _tile_dpbusd(3, 5, 7);
        }
    }
    _tile_stored(0, c, c_stride);
    if constexpr (panels_of_b == 2) _tile_stored(1, c + kPanelColumns, c_stride);
    if constexpr (panels_of_a == 2) _tile_stored(2, c + c_panel, c_stride);
    if constexpr (panels_of_a == 2 && panels_of_b == 2) _tile_stored(3, c + c_panel + kPanelColumns, c_stride);
}

template <int panels_of_b>
void run_strip(const S8Block& t) {
    const int64_t panels = (t.M + t.panel_rows - 1) / t.panel_rows, c_panel = t.panel_rows * kStripColumns;
    int64_t p = 0;
    for (; p + 2 <= panels; p += 2) run_tiles<2, panels_of_b>(t, t.a + p * t.a_panel_stride, t.c + p * c_panel);
    if (p < panels) run_tiles<1, panels_of_b>(t, t.a + p * t.a_panel_stride, t.c + p * c_panel);
}

void run(const S8Block& t) {
    const bool half_step = t.K < S8Block::chunk;  // groups of 32
    if (half_step) configure(t.panel_rows, t.K);
    if (t.n_panels == 2) {
        run_strip<2>(t);
    } else {
        run_strip<1>(t);
    }
    if (half_step) configure(t.panel_rows, S8Block::chunk);
}

}  // namespace

extern const S8Kernels s8_amx;
const S8Kernels s8_amx = {{Isa::amx, 128, 512, run, begin, end}, nullptr};
}  // namespace gossamer
