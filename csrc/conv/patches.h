// Gathering patches of an image into the panels of a lane; each <isa>.cpp compiles it with its own flags. Contract: conv_kernels.h.
//
// Where dilation is 1 and there is one group, the taps of a row of the kernel lie side by side in the image, so that a patch is kernel_h
// pieces, cut at the 64-byte lines of the panel. Pieces shorter than a line, as few channels make them, are first put side by side in L1
// with copies of a whole line each, whose ends the next piece overwrites; cut at the lines, they would cost three times as much.
#pragma once
#include <cstdint>
#include <cstring>

#include "gossamer/conv_kernels.h"

namespace gossamer {
namespace {

constexpr int64_t kLine = 64, kFlatBytes = 8 << 10;

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
struct LineWriter {
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

// Writes one row side by side; up to a line behind it is overwritten.
struct FlatWriter {
    uint8_t* to;
    const uint8_t* image_end;

    void copy(const uint8_t* from, int64_t n) {
        uint8_t* const end = to + n;
        for (; image_end - from >= kLine && to < end; to += kLine, from += kLine) std::memcpy(to, from, kLine);
        if (to < end) std::memcpy(to, from, static_cast<size_t>(end - to));
        to = end;
    }
    void fill(uint8_t value, int64_t n) {
        for (; n > 0; n -= kLine) {
            std::memset(to, value, kLine);
            to += smaller(n, kLine);
        }
    }
    void finish(uint8_t value) { std::memset(to, value, kLine); }
};

// Where the patches of consecutive pixels of the output begin.
struct Position {
    const GatherPatches& p;
    const uint8_t* sample;
    int64_t y, x;  // of the output

    explicit Position(const GatherPatches& patches) : p(patches) {
        const int64_t pixel = p.first_pixel + p.first_row, in_sample = pixel % p.shape.out_pixels();
        y = in_sample / p.shape.out_width;
        x = in_sample % p.shape.out_width;
        sample = p.image + pixel / p.shape.out_pixels() * sample_bytes();
    }
    int64_t sample_bytes() const { return p.shape.height * p.shape.width * p.pixel_bytes; }
    void advance() {
        if (++x < p.shape.out_width) return;
        x = 0;
        if (++y < p.shape.out_height) return;
        y = 0;
        sample += sample_bytes();
    }
};

// `taps` taps that lie side by side from column x on; those outside the image are zero.
template <class Writer>
inline void gather_side_by_side(const GatherPatches& p, const uint8_t* image_row, int64_t x, int64_t taps, Writer& out) {
    const int64_t left = clamped(-x, 0, taps), right = clamped(p.shape.width - x, left, taps);
    out.fill(p.zero, left * p.tap_bytes);
    out.copy(image_row + (x + left) * p.pixel_bytes, (right - left) * p.tap_bytes);
    out.fill(p.zero, (taps - right) * p.tap_bytes);
}

inline bool side_by_side(const GatherPatches& p) { return p.shape.dilation_w == 1 && p.tap_bytes == p.pixel_bytes; }

template <class Writer>
inline void gather_patch(const Position& at, Writer out) {
    const GatherPatches& p = at.p;
    const ConvShape& s = p.shape;
    const int64_t first_y = at.y * s.stride_h - s.pad_top, first_x = at.x * s.stride_w - s.pad_left;
    for (int64_t r = 0; r < s.kernel_h; ++r) {
        const int64_t y = first_y + r * s.dilation_h;
        if (y < 0 || y >= s.height) {
            out.fill(p.zero, s.kernel_w * p.tap_bytes);
            continue;
        }
        const uint8_t* row = at.sample + y * s.width * p.pixel_bytes;
        if (side_by_side(p)) {
            gather_side_by_side(p, row, first_x, s.kernel_w, out);
        } else {
            for (int64_t t = 0; t < s.kernel_w; ++t) gather_side_by_side(p, row, first_x + t * s.dilation_w, 1, out);
        }
    }
    out.finish(p.zero);
}

inline uint8_t* first_line(const GatherPatches& p, int64_t row, int64_t lines) {
    return p.panels + row / p.panel_rows * lines * p.panel_rows * kLine + row % p.panel_rows * kLine;
}

void gather_lines(const GatherPatches& p, int64_t lines) {
    Position at(p);
    for (int64_t m = p.first_row; m < p.last_row; ++m, at.advance()) {
        gather_patch(at, LineWriter{first_line(p, m, lines), p.panel_rows * kLine});
    }
}

// Several rows at a time, so that a line is read long after its parts were written.
void gather_flat(const GatherPatches& p, int64_t lines) {
    alignas(kLine) uint8_t flat[kFlatBytes];
    const int64_t stride = (lines + 1) * kLine, together = kFlatBytes / stride;
    Position at(p);
    for (int64_t first = p.first_row; first < p.last_row; first += together) {
        const int64_t rows = smaller(together, p.last_row - first);
        for (int64_t i = 0; i < rows; ++i, at.advance()) gather_patch(at, FlatWriter{flat + i * stride, p.image_end});
        for (int64_t i = 0; i < rows; ++i) {
            uint8_t* line = first_line(p, first + i, lines);
            for (int64_t j = 0; j < lines; ++j) std::memcpy(line + j * p.panel_rows * kLine, flat + i * stride + j * kLine, kLine);
        }
    }
}

void gather(const GatherPatches& p) {
    const int64_t lines = (p.shape.taps() * p.tap_bytes + kLine - 1) / kLine;
    const int64_t piece = (side_by_side(p) ? p.shape.kernel_w : 1) * p.tap_bytes;
    if (piece % kLine != 0 && (lines + 1) * kLine <= kFlatBytes) return gather_flat(p, lines);
    gather_lines(p, lines);
}

}  // namespace
}  // namespace gossamer
