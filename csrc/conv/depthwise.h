// Depthwise convolution, written once over the vector type of simd/<isa>.h. Contract: conv_kernels.h.
//
// One vector of channels at a time. Four neighbouring pixels share each tap's weights; in the common case, a row of three taps at stride 1,
// they share their columns of the image too.
#pragma once
#include <cstdint>

#include "../simd/load_as.h"
#include "gossamer/conv_kernels.h"

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

inline void store_as(void* out, DType dtype, int64_t offset, Vec y) {
    switch (dtype) {
        case DType::f32: return store(static_cast<float*>(out) + offset, y);
        case DType::bf16: return store_bf16(static_cast<uint16_t*>(out) + offset, y);
        case DType::f16: return store_f16(static_cast<uint16_t*>(out) + offset, y);
    }
}

// One row of the output at one vector of channels, of which `present` exist: all of them if `whole`.
template <class T, bool whole>
struct DepthwiseLane {
    const DepthwiseRow& row;
    const ConvShape& s;
    int64_t c, present;
    int64_t first_y;
    Span rows;    // of the kernel, inside the image
    Span middle;  // pixels of the output whose taps are all inside

    const T* image_row(int64_t r) const {
        return static_cast<const T*>(row.image) + (first_y + r * s.dilation_h) * s.width * s.channels + c;
    }
    Vec load_pixel(const T* image, int64_t x) const {
        const T* p = image + x * s.channels;
        return whole ? load_as(p) : load_tail(p, present);
    }
    Vec tap(int64_t r, int64_t t) const { return load(row.taps + (r * s.kernel_w + t) * row.taps_stride + c); }
    Vec bias() const { return load(row.bias + c); }

    void store_pixel(int64_t i, Vec y) const {
        const int64_t offset = i * s.channels + c;
        if (whole) return store_as(row.out, row.out_dtype, offset, y);
        float buffer[Vec::width];
        store_as(buffer, row.out_dtype, 0, y);
        const int64_t element = size_bytes(row.out_dtype);
        std::memcpy(static_cast<char*>(row.out) + offset * element, buffer, static_cast<size_t>(present * element));
    }

    // Any pixel: only the taps inside the image.
    Vec pixel(int64_t x) const {
        const Span columns = inside(x, s.dilation_w, s.kernel_w, 0, s.width - 1);
        Vec sum = bias();
        for (int64_t r = rows.first; r < rows.last; ++r) {
            const T* image = image_row(r);
            for (int64_t t = columns.first; t < columns.last; ++t) {
                sum = multiply_add(load_pixel(image, x + t * s.dilation_w), tap(r, t), sum);
            }
        }
        return sum;
    }

    // Neighbours in the middle.
    void pixels(int64_t x, Vec (&sum)[kPixels]) const {
        for (int64_t r = rows.first; r < rows.last; ++r) {
            const T* image = image_row(r);
            for (int64_t t = 0; t < s.kernel_w; ++t) {
                const Vec weights = tap(r, t);
                for (int64_t i = 0; i < kPixels; ++i) {
                    sum[i] = multiply_add(load_pixel(image, x + t * s.dilation_w + i * s.stride_w), weights, sum[i]);
                }
            }
        }
    }

    // The same for three taps in a row, stride and dilation 1.
    void pixels_of_three_taps(int64_t x, Vec (&sum)[kPixels]) const {
        for (int64_t r = rows.first; r < rows.last; ++r) {
            const T* image = image_row(r);
            Vec column[kPixels + 2];
            for (int64_t i = 0; i < kPixels + 2; ++i) column[i] = load_pixel(image, x + i);
            for (int64_t t = 0; t < 3; ++t) {
                const Vec weights = tap(r, t);
                for (int64_t i = 0; i < kPixels; ++i) sum[i] = multiply_add(column[i + t], weights, sum[i]);
            }
        }
    }

    void edge(int64_t first, int64_t last) const {
        for (int64_t i = first; i < last; ++i) store_pixel(i, pixel(i * s.stride_w - s.pad_left));
    }

    void run() const {
        const bool three_taps = s.kernel_w == 3 && s.stride_w == 1 && s.dilation_w == 1;
        if (middle.last - middle.first < kPixels) return edge(0, s.out_width);
        edge(0, middle.first);
        for (int64_t i = middle.first; i < middle.last; i += kPixels) {
            // The last ones overlap those before.
            i = i + kPixels <= middle.last ? i : middle.last - kPixels;
            Vec sum[kPixels];
            for (Vec& v : sum) v = bias();
            const int64_t x = i * s.stride_w - s.pad_left;
            three_taps ? pixels_of_three_taps(x, sum) : pixels(x, sum);
            for (int64_t j = 0; j < kPixels; ++j) store_pixel(i + j, sum[j]);
        }
        edge(middle.last, s.out_width);
    }
};

template <class T>
void depthwise_of(const DepthwiseRow& row) {
    const ConvShape& s = row.shape;
    const int64_t first_y = row.out_y * s.stride_h - s.pad_top;
    const Span rows = inside(first_y, s.dilation_h, s.kernel_h, 0, s.height - 1);
    const int64_t last_x = s.width - 1 - (s.kernel_w - 1) * s.dilation_w;
    const Span middle = inside(-s.pad_left, s.stride_w, s.out_width, 0, last_x);
    for (int64_t c = 0; c < s.channels; c += Vec::width) {
        if (s.channels - c >= Vec::width) {
            DepthwiseLane<T, true>{row, s, c, Vec::width, first_y, rows, middle}.run();
        } else {
            DepthwiseLane<T, false>{row, s, c, s.channels - c, first_y, rows, middle}.run();
        }
    }
}

void depthwise(const DepthwiseRow& row) {
    switch (row.x_dtype) {
        case DType::f32: return depthwise_of<float>(row);
        case DType::bf16: return depthwise_of<Bf16>(row);
        case DType::f16: return depthwise_of<F16>(row);
    }
}

}  // namespace
}  // namespace gossamer
