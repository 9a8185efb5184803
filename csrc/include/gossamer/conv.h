// Two-dimensional convolution over NHWC images, whatever the format of its weight.
//
//   y[b,i,j,n] = bias[n] + sum_{r,s,c} x[b, i*stride_h + r*dilation_h - pad_top, j*stride_w + s*dilation_w - pad_left, c] * W[n, (r,s,c)]
//
// where x is zero outside the image.
//
// Shapes: x [batch, height, width, channels], y [batch, out_height, out_width, N], both contiguous. With G groups the channels and N fall
// into G equal parts, and part g of y comes from part g of x: G packed weights of [N/G, K], K = kernel_h * kernel_w * channels / G.
//
// A product (linear.h) whose rows are patches of the image. Weights with int8 activations: the image is quantized once, with one scale for
// each sample (as quantize.h does for rows) or with a given one, to which larger values are clamped. Where nothing is clamped
// |y - x W^T| <= sum_k |W[n,k]| * scale[b] / 2 beside the roundings of fp32. Sums are exact integers. A NaN or an infinity in a sample
// makes all outputs of this sample NaN. Exact activations: the error of the lane (f32.h, bf16.h).
//
// Depthwise (G = channels = N): the image is the cost, so it is read once, as it is: whatever the format of the weight, its values meet the
// unrounded x in fp32, whose error conv_kernels.h gives.
//
// The output is bit-identical for every thread count.
#pragma once
#include <cstdint>
#include <vector>

#include "gossamer/conv_kernels.h"
#include "gossamer/linear.h"

namespace gossamer {

// The packed weights of a convolution: of all groups behind one another, each of the same size, a multiple of 64 bytes; or one packed
// [channels, taps] of a depthwise convolution. It does not own the bytes.
class ConvWeight {
public:
    // Throws std::invalid_argument where the bytes are something else.
    ConvWeight(const void* packed, int64_t packed_bytes, int64_t groups, bool depthwise);

    int64_t groups() const { return groups_; }
    int64_t N() const { return N_; }
    int64_t K() const { return parts_.front().K; }
    const std::vector<Weight>& parts() const { return parts_; }
    // Depthwise: [taps][channels rounded up to 16] fp32. Else empty.
    const std::vector<float>& taps() const { return taps_; }

private:
    int64_t groups_, N_;
    std::vector<Weight> parts_;
    std::vector<float> taps_;
};

struct ConvCall {
    const void* x;
    DType x_dtype;
    ConvShape shape;
    const ConvWeight& weight;
    float input_scale;  // of all samples, > 0; or 0: each has its own
    const void* bias;   // [N] or null
    DType bias_dtype;
    void* out;
    DType out_dtype;
    int threads;
    Isa isa;
};

// Throws std::invalid_argument where the shape does not fit the weight.
void conv2d(const ConvCall& call);

}  // namespace gossamer
