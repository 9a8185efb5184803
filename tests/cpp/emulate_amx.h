// AMX tiles in plain C++: included (-include) before lanes/<lane>/amx.cpp, so that the kernel runs on machines without AMX. It honours the
// loaded configuration and ends the test where a processor would fault, or where the tiles are left configured.
#pragma once
#include <immintrin.h>

#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace emulated_amx {
namespace {

constexpr int kTiles = 8, kRows = 16, kRowBytes = 64;

struct Tiles {
    bool configured = false;
    int rows[kTiles] = {}, row_bytes[kTiles] = {};
    uint8_t data[kTiles][kRows][kRowBytes] = {};
};
thread_local Tiles tiles;

[[noreturn]] void fail(const char* what, int tile) noexcept {
    std::fprintf(stderr, "emulated AMX: tile %d: %s\n", tile, what);
    std::abort();
}

// Threads whose tiles are configured; there must be none when the test ends.
struct ConfiguredThreads {
    std::atomic<int> count{0};
    ~ConfiguredThreads() {
        if (count != 0) fail("left configured by a thread", -1);
    }
};
ConfiguredThreads configured_threads;

void loadconfig(const void* config) {
    uint8_t bytes[64];
    std::memcpy(bytes, config, 64);
    if (bytes[0] != 1) fail("palette is not 1", -1);
    for (int i = 1; i < 16; ++i) {
        if (bytes[i] != 0) fail("start row or reserved byte is not 0", -1);
    }
    if (!tiles.configured) ++configured_threads.count;
    tiles = Tiles{};
    tiles.configured = true;
    for (int t = 0; t < 16; ++t) {
        const int row_bytes = bytes[16 + 2 * t] | bytes[17 + 2 * t] << 8, rows = bytes[48 + t];
        if (row_bytes > kRowBytes || rows > kRows || (rows == 0) != (row_bytes == 0)) fail("no such shape", t);
        if (t >= kTiles && rows != 0) fail("no such tile", t);
        if (t >= kTiles) continue;
        tiles.rows[t] = rows;
        tiles.row_bytes[t] = row_bytes;
    }
}

void release() {
    if (tiles.configured) --configured_threads.count;
    tiles = Tiles{};
}

void need(int tile) {
    if (!tiles.configured || tiles.rows[tile] == 0) fail("used without a configuration", tile);
}

void zero(int tile) {
    need(tile);
    std::memset(tiles.data[tile], 0, sizeof tiles.data[tile]);
}

void loadd(int tile, const void* base, int64_t stride) {
    zero(tile);
    for (int r = 0; r < tiles.rows[tile]; ++r) {
        std::memcpy(tiles.data[tile][r], static_cast<const char*>(base) + r * stride, static_cast<size_t>(tiles.row_bytes[tile]));
    }
}

void stored(int tile, void* base, int64_t stride) {
    need(tile);
    for (int r = 0; r < tiles.rows[tile]; ++r) {
        std::memcpy(static_cast<char*>(base) + r * stride, tiles.data[tile][r], static_cast<size_t>(tiles.row_bytes[tile]));
    }
}

void need_product(int c, int a, int b) {
    for (int tile : {c, a, b}) need(tile);
    if (c == a || c == b || a == b) fail("one tile in two places of a product", c);
    if (tiles.rows[c] != tiles.rows[a]) fail("rows of C and A differ", c);
    if (tiles.row_bytes[c] != tiles.row_bytes[b]) fail("columns of C and B differ", c);
    if (tiles.row_bytes[a] != 4 * tiles.rows[b]) fail("k of A and B differ", a);
}

// c += a (unsigned) x b (signed), four bytes along K at a time.
[[maybe_unused]] void dpbusd(int c, int a, int b) {
    need_product(c, a, b);
    for (int m = 0; m < tiles.rows[c]; ++m) {
        int32_t sums[kRowBytes / 4];
        std::memcpy(sums, tiles.data[c][m], kRowBytes);
        for (int k = 0; k < tiles.row_bytes[a]; ++k) {
            for (int n = 0; n < tiles.row_bytes[c] / 4; ++n) {
                sums[n] += tiles.data[a][m][k] * static_cast<int8_t>(tiles.data[b][k / 4][4 * n + k % 4]);
            }
        }
        std::memcpy(tiles.data[c][m], sums, kRowBytes);
    }
}

// Denormals count as zero, before and after each operation.
float flushed(float x) { return std::fpclassify(x) == FP_SUBNORMAL ? 0.0f : x; }

float element(int tile, int row, int byte) {
    uint16_t bf16;
    std::memcpy(&bf16, &tiles.data[tile][row][byte], 2);
    const uint32_t bits = static_cast<uint32_t>(bf16) << 16;
    float x;
    std::memcpy(&x, &bits, 4);
    return flushed(x);
}

// c += a x b, two bf16 along K at a time: even and odd k are summed apart, fused, and added to c at the end.
[[maybe_unused]] void dpbf16ps(int c, int a, int b) {
    need_product(c, a, b);
    for (int m = 0; m < tiles.rows[c]; ++m) {
        for (int n = 0; n < tiles.row_bytes[c] / 4; ++n) {
            float sums[2] = {};
            for (int k = 0; k < tiles.row_bytes[a] / 2; ++k) {
                sums[k % 2] = flushed(std::fma(element(a, m, 2 * k), element(b, k / 2, 4 * n + 2 * (k % 2)), sums[k % 2]));
            }
            float before;
            std::memcpy(&before, &tiles.data[c][m][4 * n], 4);
            const float after = flushed(flushed(before) + flushed(sums[0] + sums[1]));
            std::memcpy(&tiles.data[c][m][4 * n], &after, 4);
        }
    }
}

}  // namespace
}  // namespace emulated_amx

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stream_loadd
#undef _tile_stored
#undef _tile_dpbusd
#undef _tile_dpbf16ps
#define _tile_loadconfig(config) emulated_amx::loadconfig(config)
#define _tile_release() emulated_amx::release()
#define _tile_zero(tile) emulated_amx::zero(tile)
#define _tile_loadd(tile, base, stride) emulated_amx::loadd(tile, base, stride)
#define _tile_stream_loadd(tile, base, stride) emulated_amx::loadd(tile, base, stride)
#define _tile_stored(tile, base, stride) emulated_amx::stored(tile, base, stride)
#define _tile_dpbusd(c, a, b) emulated_amx::dpbusd(c, a, b)
#define _tile_dpbf16ps(c, a, b) emulated_amx::dpbf16ps(c, a, b)
