// Compiled with AMX flags. A refused instruction arrives as SIGILL, which is caught for the length of the test.
#include "amx_self_test.h"

#include <immintrin.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>

namespace gossamer {
namespace {

sigjmp_buf before_test;

void on_illegal_instruction(int) { siglongjmp(before_test, 1); }

struct alignas(64) TileConfig {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64};
    uint8_t rows[16] = {16, 16, 16};
};

bool product_is_right() {
    alignas(64) uint8_t a[16][64];
    alignas(64) int8_t b[16][64];
    alignas(64) int32_t c[16][16] = {};
    for (int i = 0; i < 16; ++i) {
        for (int j = 0; j < 64; ++j) {
            a[i][j] = static_cast<uint8_t>(255 - 7 * i - j);
            b[i][j] = static_cast<int8_t>(-128 + 5 * i + 3 * j);
        }
    }
    TileConfig config;
    asm volatile("" ::"r"(&config) : "memory");
    _tile_loadconfig(&config);
    _tile_zero(0);
    _tile_loadd(1, a, 64);
    _tile_loadd(2, b, 64);
    _tile_dpbusd(0, 1, 2);
    _tile_stored(0, c, 64);
    _tile_release();
    for (int m = 0; m < 16; ++m) {
        for (int n = 0; n < 16; ++n) {
            int32_t expected = 0;
            for (int k = 0; k < 64; ++k) expected += a[m][k] * b[k / 4][n * 4 + k % 4];
            if (c[m][n] != expected) return false;
        }
    }
    return true;
}

}  // namespace

bool amx_self_test() {
    struct sigaction catching = {}, before = {};
    catching.sa_handler = on_illegal_instruction;
    if (sigaction(SIGILL, &catching, &before) != 0) return false;
    const bool right = sigsetjmp(before_test, 1) == 0 && product_is_right();
    sigaction(SIGILL, &before, nullptr);
    return right;
}

}  // namespace gossamer
