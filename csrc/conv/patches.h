// Gathering patches of an image into the panels of a lane; each <isa>.cpp compiles it with its own flags. Contract: conv_kernels.h.
//
// Where dilation is 1 and there is one group, the taps of a row of the kernel lie side by side in the image, so that a patch is kernel_h
// pieces, cut at the 64-byte lines of the panel.
#pragma once
#include <cstdint>
#include <cstring>

#include "gossamer/conv_kernels.h"

namespace gossamer {
namespace {

constexpr int64_t kLine = 64;

inline int64_t smaller(int64_t x, int64_t y) { return x < y ? x : y; }
inline int64_t clamped(int64_t x, int64_t low, int64_t high) { return x < low ? low : smaller(x, high); }

template <int size>
inline void copy_ends(uint8_t* to, const uint8_t* from, int64_t n) {
    std::memcpy(to, from, size);
    std::memcpy(to + n - size, from + n - size, size);
}

// n in [1, 64], without a call: two pieces that may overlap.
inline void copy_piece(uint8_t* to, const uint8_t* from, int64_t n) {
    if (n >= 32) return copy_ends<32>(to, from, n);
    if (n >= 16) return copy_ends<16>(to, from, n);
    if (n >= 8) return copy_ends<8>(to, from, n);
    if (n >= 4) return copy_ends<4>(to, from, n);
    for (int64_t i = 0; i < n; ++i) to[i] = from[i];
}

// Writes one row of a panel from left to right, over lines that are `stride` bytes apart.
struct RowWriter {
    uint8_t* line;
    int64_t stride;
    int64_t at = 0;  // in the line

    void advance(int64_t n) {
        at += n;
        if (at == kLine) {
            line += stride;
            at = 0;
        }
    }
    void copy(const uint8_t* from, int64_t n) {
        if (at == 0) {
            for (; n >= kLine; n -= kLine, from += kLine, line += stride) std::memcpy(line, from, kLine);
        }
        while (n > 0) {
            const int64_t piece = smaller(n, kLine - at);
            copy_piece(line + at, from, piece);
            advance(piece);
            from += piece;
            n -= piece;
        }
    }
    void fill(uint8_t value, int64_t n) {
        while (n > 0) {
            const int64_t piece = smaller(n, kLine - at);
            std::memset(line + at, value, static_cast<size_t>(piece));
            advance(piece);
            n -= piece;
        }
    }
    void finish(uint8_t value) {
        if (at > 0) fill(value, kLine - at);
    }
};

// `taps` taps that lie side by side from column x on; those outside the image are zero.
inline void gather_side_by_side(const GatherPatches& p, const uint8_t* image_row, int64_t x, int64_t taps, RowWriter& out) {
    const int64_t left = clamped(-x, 0, taps), right = clamped(p.shape.width - x, left, taps);
    out.fill(p.zero, left * p.tap_bytes);
    out.copy(image_row + (x + left) * p.pixel_bytes, (right - left) * p.tap_bytes);
    out.fill(p.zero, (taps - right) * p.tap_bytes);
}

inline void gather_patch(const GatherPatches& p, const uint8_t* sample, int64_t out_y, int64_t out_x, RowWriter out) {
    const ConvShape& s = p.shape;
    const bool side_by_side = s.dilation_w == 1 && p.tap_bytes == p.pixel_bytes;
    const int64_t first_y = out_y * s.stride_h - s.pad_top, first_x = out_x * s.stride_w - s.pad_left;
    for (int64_t r = 0; r < s.kernel_h; ++r) {
        const int64_t y = first_y + r * s.dilation_h;
        if (y < 0 || y >= s.height) {
            out.fill(p.zero, s.kernel_w * p.tap_bytes);
            continue;
        }
        const uint8_t* row = sample + y * s.width * p.pixel_bytes;
        if (side_by_side) {
            gather_side_by_side(p, row, first_x, s.kernel_w, out);
        } else {
            for (int64_t t = 0; t < s.kernel_w; ++t) gather_side_by_side(p, row, first_x + t * s.dilation_w, 1, out);
        }
    }
    out.finish(p.zero);
}

void gather(const GatherPatches& p) {
    const ConvShape& s = p.shape;
    const int64_t lines = (s.taps() * p.tap_bytes + kLine - 1) / kLine, panel_bytes = lines * p.panel_rows * kLine;
    const int64_t pixel = p.first_pixel + p.first_row, in_sample = pixel % s.out_pixels();
    int64_t out_y = in_sample / s.out_width, out_x = in_sample % s.out_width;
    const uint8_t* sample = p.image + pixel / s.out_pixels() * s.height * s.width * p.pixel_bytes;
    for (int64_t m = p.first_row; m < p.last_row; ++m) {
        uint8_t* line = p.panels + m / p.panel_rows * panel_bytes + m % p.panel_rows * kLine;
        gather_patch(p, sample, out_y, out_x, {line, p.panel_rows * kLine});
        if (++out_x < s.out_width) continue;
        out_x = 0;
        if (++out_y < s.out_height) continue;
        out_y = 0;
        sample += s.height * s.width * p.pixel_bytes;
    }
}

}  // namespace
}  // namespace gossamer
