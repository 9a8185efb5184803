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

void configure() {
    TileConfig config;
    asm volatile("" ::"r"(&config) : "memory");
    _tile_loadconfig(&config);
    _tile_zero(0);
}

bool int8_product_is_right() {
    alignas(64) uint8_t a[16][64];
    alignas(64) int8_t b[16][64];
    alignas(64) int32_t c[16][16] = {};
    for (int i = 0; i < 16; ++i) {
        for (int j = 0; j < 64; ++j) {
            a[i][j] = static_cast<uint8_t>(255 - 7 * i - j);
            b[i][j] = static_cast<int8_t>(-128 + 5 * i + 3 * j);
        }
    }
    configure();
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

uint16_t small_integer_bf16(int x) {
    const float value = static_cast<float>(x);
    uint32_t bits;
    __builtin_memcpy(&bits, &value, 4);
    return static_cast<uint16_t>(bits >> 16);
}

// Integers of at most 8 bits are exact in bf16, and their sums in fp32.
bool bf16_product_is_right() {
    const auto a_value = [](int m, int k) { return 9 * m - 5 * k; };
    const auto b_value = [](int k, int n) { return 3 * k - 7 * n + 1; };
    alignas(64) uint16_t a[16][32], b[16][32];
    alignas(64) float c[16][16] = {};
    for (int i = 0; i < 16; ++i) {
        for (int j = 0; j < 32; ++j) {
            a[i][j] = small_integer_bf16(a_value(i, j));
            b[i][j] = small_integer_bf16(b_value(2 * i + j % 2, j / 2));
        }
    }
    configure();
    _tile_loadd(1, a, 64);
    _tile_loadd(2, b, 64);
    _tile_dpbf16ps(0, 1, 2);
    _tile_stored(0, c, 64);
    _tile_release();
    for (int m = 0; m < 16; ++m) {
        for (int n = 0; n < 16; ++n) {
            int expected = 0;
            for (int k = 0; k < 32; ++k) expected += a_value(m, k) * b_value(k, n);
            if (c[m][n] != static_cast<float>(expected)) return false;
        }
    }
    return true;
}

}  // namespace

bool amx_self_test() {
    struct sigaction catching = {}, before = {};
    catching.sa_handler = on_illegal_instruction;
    if (sigaction(SIGILL, &catching, &before) != 0) return false;
    const bool right = sigsetjmp(before_test, 1) == 0 && int8_product_is_right() && bf16_product_is_right();
    sigaction(SIGILL, &before, nullptr);
    return right;
}

}  // namespace gossamer
