// Depthwise convolution, written once over the vector type of simd/<isa>.h. Contract: conv_kernels.h.
//
// Any taps: one row of the output and one vector of channels at a time, four neighbouring pixels sharing each tap's weights.
#pragma once
#include <cstdint>

#include "depthwise_3x3.h"
#include "depthwise_vector.h"

namespace gossamer {
namespace {

constexpr int64_t kPixels = 4;

struct Span {
    int64_t first, last;
};

// The i in [0, count) for which first <= start + i * step <= last. Loops, since i is off by few and a division takes as long as a pixel.
inline Span inside(int64_t start, int64_t step, int64_t count, int64_t first, int64_t last) {
    Span span{0, count};
    while (span.first < span.last && start + span.first * step < first) ++span.first;
    while (span.last > span.first && start + (span.last - 1) * step > last) --span.last;
    return span;
}

// One row of the output at one vector of channels, of which `present` exist: all of them if `whole`.
template <class T, bool whole>
struct DepthwiseLane {
    const DepthwiseRows& rows;
    const ConvShape& s;
    int64_t row, c, present;
    int64_t first_y;
    Span taps;    // rows of the kernel, inside the image
    Span middle;  // pixels of the output whose taps are all inside

    const T* image_row(int64_t r) const {
        return static_cast<const T*>(rows.image) + (first_y + r * s.dilation_h) * s.width * s.channels + c;
    }
    Vec load_pixel(const T* image, int64_t x) const { return load_channels<whole>(image + x * s.channels, present); }
    Vec tap(int64_t r, int64_t t) const { return load(rows.taps + (r * s.kernel_w + t) * rows.taps_stride + c); }
    Vec bias() const { return load(rows.bias + c); }
    void store_pixel(int64_t i, Vec y) const { store_channels<whole>(rows, (row * s.out_width + i) * s.channels + c, present, y); }

    // Any pixel: only the taps inside the image.
    Vec pixel(int64_t x) const {
        const Span columns = inside(x, s.dilation_w, s.kernel_w, 0, s.width - 1);
        Vec sum = bias();
        for (int64_t r = taps.first; r < taps.last; ++r) {
            const T* image = image_row(r);
            for (int64_t t = columns.first; t < columns.last; ++t) {
                sum = multiply_add(load_pixel(image, x + t * s.dilation_w), tap(r, t), sum);
            }
        }
        return sum;
    }

    // Neighbours in the middle.
    void pixels(int64_t x, Vec (&sum)[kPixels]) const {
        for (int64_t r = taps.first; r < taps.last; ++r) {
            const T* image = image_row(r);
            for (int64_t t = 0; t < s.kernel_w; ++t) {
                const Vec weights = tap(r, t);
                for (int64_t i = 0; i < kPixels; ++i) {
                    sum[i] = multiply_add(load_pixel(image, x + t * s.dilation_w + i * s.stride_w), weights, sum[i]);
                }
            }
        }
    }

    void edge(int64_t first, int64_t last) const {
        for (int64_t i = first; i < last; ++i) store_pixel(i, pixel(i * s.stride_w - s.pad_left));
    }

    void run() const {
        if (middle.last - middle.first < kPixels) return edge(0, s.out_width);
        edge(0, middle.first);
        for (int64_t i = middle.first; i < middle.last; i += kPixels) {
            // The last ones overlap those before.
            i = i + kPixels <= middle.last ? i : middle.last - kPixels;
            Vec sum[kPixels];
            for (Vec& v : sum) v = bias();
            pixels(i * s.stride_w - s.pad_left, sum);
            for (int64_t j = 0; j < kPixels; ++j) store_pixel(i + j, sum[j]);
        }
        edge(middle.last, s.out_width);
    }
};

template <class T>
void depthwise_row(const DepthwiseRows& rows, int64_t row) {
    const ConvShape& s = rows.shape;
    const int64_t first_y = (rows.first_y + row) * s.stride_h - s.pad_top;
    const Span taps = inside(first_y, s.dilation_h, s.kernel_h, 0, s.height - 1);
    const int64_t last_x = s.width - 1 - (s.kernel_w - 1) * s.dilation_w;
    const Span middle = inside(-s.pad_left, s.stride_w, s.out_width, 0, last_x);
    for (int64_t c = 0; c < s.channels; c += Vec::width) {
        if (s.channels - c >= Vec::width) {
            DepthwiseLane<T, true>{rows, s, row, c, Vec::width, first_y, taps, middle}.run();
        } else {
            DepthwiseLane<T, false>{rows, s, row, c, s.channels - c, first_y, taps, middle}.run();
        }
    }
}

template <class T>
void depthwise_of(const DepthwiseRows& rows) {
    if (is_3x3(rows.shape) && rows.shape.out_width >= kTilePixels) return depthwise_3x3<T>(rows);
    for (int64_t row = 0; row < rows.rows; ++row) depthwise_row<T>(rows, row);
}

void depthwise(const DepthwiseRows& rows) {
    switch (rows.x_dtype) {
        case DType::f32: return depthwise_of<float>(rows);
        case DType::bf16: return depthwise_of<Bf16>(rows);
        case DType::f16: return depthwise_of<F16>(rows);
    }
}

}  // namespace
}  // namespace gossamer
