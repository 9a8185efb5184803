// Depthwise convolution of 3x3 taps at stride 1, the common one. Contract: conv_kernels.h.
//
// Tiles of a few rows by four pixels, their sums in registers: each vector of channels of the image is loaded and widened once for all the
// outputs of the tile that it is a tap of.
#pragma once
#include <algorithm>
#include <cstdint>

#include "depthwise_vector.h"

namespace gossamer {
namespace {

constexpr int64_t kTilePixels = 4;
// As many as the registers hold sums of.
constexpr int64_t kTileRows = Vec::width == 16 ? 4 : 2;

inline bool is_3x3(const ConvShape& s) {
    return s.kernel_h == 3 && s.kernel_w == 3 && s.stride_h == 1 && s.stride_w == 1 && s.dilation_h == 1 && s.dilation_w == 1;
}

template <class T, int64_t tile_rows>
struct DepthwiseTile {
    const DepthwiseRows& rows;
    const ConvShape& s;
    int64_t first_row, first_x;  // of the output; rows counted from rows.first_y

    // The sums of one vector of channels.
    template <bool whole>
    void channels(int64_t c, int64_t present) const {
        Vec sum[tile_rows][kTilePixels];
        const Vec bias = load(rows.bias + c);
        for (auto& row : sum) {
            for (Vec& v : row) v = bias;
        }
        Vec taps[3][3];
        for (int64_t r = 0; r < 3; ++r) {
            for (int64_t t = 0; t < 3; ++t) taps[r][t] = load(rows.taps + (r * 3 + t) * rows.taps_stride + c);
        }
        static constexpr T outside[Vec::width] = {};
        const int64_t y = rows.first_y + first_row - s.pad_top, x = first_x - s.pad_left;
        const T* image = static_cast<const T*>(rows.image) + (y * s.width + x) * s.channels + c;
#pragma GCC unroll 8
        for (int64_t j = 0; j < tile_rows + 2; ++j, image += s.width * s.channels) {
            const bool row_inside = 0 <= y + j && y + j < s.height;
#pragma GCC unroll 8
            for (int64_t i = 0; i < kTilePixels + 2; ++i) {
                const bool inside = row_inside && 0 <= x + i && x + i < s.width;
                const Vec pixel = load_channels<whole>(inside ? image + i * s.channels : outside, present);
                // Tap (j - o, i - p) of the output at (o, p).
#pragma GCC unroll 8
                for (int64_t o = 0; o < tile_rows; ++o) {
#pragma GCC unroll 8
                    for (int64_t p = 0; p < kTilePixels; ++p) {
                        const int64_t r = j - o, t = i - p;
                        if (0 <= r && r < 3 && 0 <= t && t < 3) sum[o][p] = multiply_add(pixel, taps[r][t], sum[o][p]);
                    }
                }
            }
        }
#pragma GCC unroll 8
        for (int64_t o = 0; o < tile_rows; ++o) {
#pragma GCC unroll 8
            for (int64_t p = 0; p < kTilePixels; ++p) {
                store_channels<whole>(rows, ((first_row + o) * s.out_width + first_x + p) * s.channels + c, present, sum[o][p]);
            }
        }
    }

    void run() const {
        int64_t c = 0;
        for (; c + Vec::width <= s.channels; c += Vec::width) channels<true>(c, Vec::width);
        if (c < s.channels) channels<false>(c, s.channels - c);
    }
};

// The last tile of a row overlaps the one before.
template <class T, int64_t tile_rows>
void row_of_tiles(const DepthwiseRows& rows, int64_t first_row) {
    const ConvShape& s = rows.shape;
    for (int64_t x = 0; x < s.out_width; x += kTilePixels) {
        DepthwiseTile<T, tile_rows>{rows, s, first_row, std::min(x, s.out_width - kTilePixels)}.run();
    }
}

template <class T>
void depthwise_3x3(const DepthwiseRows& rows) {
    int64_t row = 0;
    for (; row + kTileRows <= rows.rows; row += kTileRows) row_of_tiles<T, kTileRows>(rows, row);
    for (; row < rows.rows; ++row) row_of_tiles<T, 1>(rows, row);
}

}  // namespace
}  // namespace gossamer
