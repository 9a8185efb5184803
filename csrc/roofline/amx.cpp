// TDPBUSD and TDPBF16PS peaks: four accumulator tiles of 16 x 16, 64 bytes deep.
#include <immintrin.h>

#include "peak.h"

namespace gossamer {
namespace {

struct alignas(64) TileConfig {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

void load_configuration() {
    TileConfig config;
    asm volatile("" ::"r"(&config) : "memory");
    _tile_loadconfig(&config);
}

void run_int8(int64_t calls) {
    load_configuration();
    for (int64_t c = 0; c < calls; ++c) {
        _tile_dpbusd(0, 4, 6);
        _tile_dpbusd(1, 4, 7);
        _tile_dpbusd(2, 5, 6);
        _tile_dpbusd(3, 5, 7);
    }
    _tile_release();
}

void run_bf16(int64_t calls) {
    load_configuration();
    for (int64_t c = 0; c < calls; ++c) {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_release();
}

}  // namespace

extern const PeakKernels peak_amx;
const PeakKernels peak_amx = {Isa::amx, {{"amx-int8", 4 * 16 * 16 * 64 * 2, run_int8}, {"amx-bf16", 4 * 16 * 16 * 32 * 2, run_bf16}}};
}  // namespace gossamer
