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

constexpr int64_t kSumColumns = 32, kPixels = 4;

struct TapRange {
    int64_t first, last;
};

// The taps that fall on [0, size), the first one at `position`.
inline TapRange taps_inside(int64_t position, int64_t dilation, int64_t taps, int64_t size) {
    const int64_t before = position < 0 ? (-position + dilation - 1) / dilation : 0;
    const int64_t inside = position < size ? (size - position + dilation - 1) / dilation : 0;
    return {before < taps ? before : taps, inside < taps ? inside : taps};
}

// One row of the output at one vector of channels; `present` of them exist.
template <class T, bool whole>
struct DepthwiseRow {
    const DepthwiseRun& run;
    const ConvShape& s;
    const T* image;     // at the first channel
    const float* taps;  // likewise
    int64_t present;
    int64_t first_y;
    TapRange rows;

    Vec load_pixel(const T* row, int64_t x) const {
        const T* p = row + x * s.channels;
        return whole ? load_as(p) : load_tail(p, present);
    }
    const T* image_row(int64_t r) const { return image + (first_y + r * s.dilation_h) * s.width * s.channels; }
    Vec tap(int64_t r, int64_t t) const { return load(taps + (r * s.kernel_w + t) * run.taps_stride); }

    // Any pixel: only the taps inside the image.
    Vec pixel(int64_t x) const {
        const TapRange columns = taps_inside(x, s.dilation_w, s.kernel_w, s.width);
        Vec sum = broadcast(0.0f);
        for (int64_t r = rows.first; r < rows.last; ++r) {
            const T* row = image_row(r);
            for (int64_t t = columns.first; t < columns.last; ++t) {
                sum = multiply_add(load_pixel(row, x + t * s.dilation_w), tap(r, t), sum);
            }
        }
        return sum;
    }

    // Pixels whose taps are all inside the image.
    void pixels(int64_t x, Vec (&sum)[kPixels]) const {
        for (Vec& v : sum) v = broadcast(0.0f);
        for (int64_t r = rows.first; r < rows.last; ++r) {
            const T* row = image_row(r);
            for (int64_t t = 0; t < s.kernel_w; ++t) {
                const Vec weights = tap(r, t);
                for (int64_t i = 0; i < kPixels; ++i) {
                    sum[i] = multiply_add(load_pixel(row, x + t * s.dilation_w + i * s.stride_w), weights, sum[i]);
                }
            }
        }
    }

    // The same for three taps in a row, stride and dilation 1.
    void pixels_of_three_taps(int64_t x, Vec (&sum)[kPixels]) const {
        for (Vec& v : sum) v = broadcast(0.0f);
        for (int64_t r = rows.first; r < rows.last; ++r) {
            const T* row = image_row(r);
            Vec column[kPixels + 2];
            for (int64_t i = 0; i < kPixels + 2; ++i) column[i] = load_pixel(row, x + i);
            for (int64_t t = 0; t < 3; ++t) {
                const Vec weights = tap(r, t);
                for (int64_t i = 0; i < kPixels; ++i) sum[i] = multiply_add(column[i + t], weights, sum[i]);
            }
        }
    }

    void fill(float* out) const {
        const bool three_taps = s.kernel_w == 3 && s.stride_w == 1 && s.dilation_w == 1;
        const int64_t reach = (s.kernel_w - 1) * s.dilation_w;
        for (int64_t i = run.first_x; i < run.last_x;) {
            const int64_t x = i * s.stride_w - s.pad_left;
            const bool inside = i + kPixels <= run.last_x && x >= 0 && x + (kPixels - 1) * s.stride_w + reach < s.width;
            if (!inside) {
                store(out + (i - run.first_x) * kSumColumns, pixel(x));
                ++i;
                continue;
            }
            Vec sum[kPixels];
            three_taps ? pixels_of_three_taps(x, sum) : pixels(x, sum);
            for (int64_t j = 0; j < kPixels; ++j) store(out + (i + j - run.first_x) * kSumColumns, sum[j]);
            i += kPixels;
        }
    }
};

template <class T>
void depthwise_of(const DepthwiseRun& run) {
    const ConvShape& s = run.shape;
    const int64_t first_y = run.out_y * s.stride_h - s.pad_top;
    const TapRange rows = taps_inside(first_y, s.dilation_h, s.kernel_h, s.height);
    for (int64_t c = 0; c < run.channels; c += Vec::width) {
        const T* image = static_cast<const T*>(run.image) + c;
        const int64_t present = run.channels - c;
        if (present >= Vec::width) {
            DepthwiseRow<T, true>{run, s, image, run.taps + c, Vec::width, first_y, rows}.fill(run.sum + c);
        } else {
            DepthwiseRow<T, false>{run, s, image, run.taps + c, present, first_y, rows}.fill(run.sum + c);
        }
    }
}

void depthwise(const DepthwiseRun& run) {
    switch (run.x_dtype) {
        case DType::f32: return depthwise_of<float>(run);
        case DType::bf16: return depthwise_of<Bf16>(run);
        case DType::f16: return depthwise_of<F16>(run);
    }
}

}  // namespace
}  // namespace gossamer
