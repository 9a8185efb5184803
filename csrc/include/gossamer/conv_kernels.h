// The kernels of a convolution, plain. What they are for: conv.h.
#pragma once
#include <cstdint>

#include "gossamer/dtype.h"
#include "gossamer/isa.h"

namespace gossamer {

// NHWC in and out. pad_bottom and pad_right follow from the size of the output; negative padding crops.
struct ConvShape {
    int64_t batch, height, width, channels;
    int64_t out_height, out_width;
    int64_t kernel_h, kernel_w;
    int64_t stride_h, stride_w;
    int64_t pad_top, pad_left;
    int64_t dilation_h, dilation_w;

    int64_t taps() const { return kernel_h * kernel_w; }
    int64_t sample_size() const { return height * width * channels; }
    int64_t out_pixels() const { return out_height * out_width; }  // of a sample
};

// n values to bytes q + 128, q = round_half_even(x * before * inverse), any for NaN.
struct QuantizePixels {
    const void* x;
    DType x_dtype;
    int64_t n;
    float before, inverse;
    bool clamp;  // q to [-127, 127], where it could lie outside
    uint8_t* out;
};

// Patches of the image into A panels (lane.h), one row for each pixel of the output. All in bytes, so that one gather serves every lane.
struct GatherPatches {
    const ConvShape& shape;
    const uint8_t* image;  // at the first channel of the group
    const uint8_t* image_end;
    int64_t pixel_bytes;  // all channels
    int64_t tap_bytes;    // the channels of the group
    uint8_t zero;         // the byte that stands for zero
    int64_t first_pixel;  // of the output, counted over all samples: row 0 of the panels
    int64_t first_row, last_row, panel_rows;
    uint8_t* panels;  // [row / R][K bytes / 64][R][64], the last line filled up with `zero`
};

// Neighbouring rows of one sample's output of a depthwise convolution:
//
//   out[x][c] = bias[c] + sum_{r,s} image[..][..][c] * taps[r,s][c]          in fp32, in the order of (r, s), rounded to out_dtype
//
// |error| before that rounding <= taps * 2^-24 * (|bias| + sum |x||taps|).
struct DepthwiseRows {
    const ConvShape& shape;
    const void* image;  // the sample
    DType x_dtype;
    int64_t first_y, rows;  // of the output
    const float* taps;      // [taps][taps_stride], a multiple of 16 columns
    int64_t taps_stride;
    const float* bias;  // [taps_stride]
    void* out;          // [rows][out_width][channels]
    DType out_dtype;
};

struct ConvKernels {
    Isa isa;
    uint32_t (*largest)(const void* x, DType dtype, int64_t n);  // max |x| as the bits of an fp32; a NaN is above all
    void (*quantize)(const QuantizePixels& pixels);
    void (*gather)(const GatherPatches& patches);
    void (*depthwise)(const DepthwiseRows& rows);
};

}  // namespace gossamer
