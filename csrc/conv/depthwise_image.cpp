// Rows of the output are shared out over a team.
#include "depthwise_image.h"

#include <algorithm>
#include <variant>

#include "dispatch/lists.h"
#include "linear/finish.h"

namespace gossamer {
namespace {

int64_t padded_channels(int64_t channels) { return round_up(channels, 16); }

std::vector<float> padded_bias(const ConvCall& call) {
    Epilogue with_bias;
    with_bias.bias = call.bias;
    with_bias.bias_dtype = call.bias_dtype;
    std::vector<float> bias(static_cast<size_t>(padded_channels(call.shape.channels)));
    if (call.bias == nullptr) return bias;
    for (int64_t c = 0; c < call.shape.channels; ++c) bias[static_cast<size_t>(c)] = bias_at(with_bias, c);
    return bias;
}

}  // namespace

std::vector<float> depthwise_taps(const Weight& weight) {
    const int64_t channels = weight.N, taps = weight.K, stride = padded_channels(channels);
    std::vector<float> rows(static_cast<size_t>(channels * taps)), columns(static_cast<size_t>(taps * stride));
    std::visit([&](const auto& form) { dequantize(form, 0, channels, rows.data(), 1); }, weight.form);
    for (int64_t c = 0; c < channels; ++c) {
        for (int64_t t = 0; t < taps; ++t) columns[static_cast<size_t>(t * stride + c)] = rows[static_cast<size_t>(c * taps + t)];
    }
    return columns;
}

void conv2d_depthwise(const ConvCall& call) {
    const ConvShape& s = call.shape;
    const ConvKernels& kernels = select_kernels(conv_list(), call.isa);
    const std::vector<float> bias = padded_bias(call);
    const int64_t rows = s.batch * s.out_height;
    const double outputs = static_cast<double>(rows * s.out_width * s.channels);
    const int threads = useful_threads({outputs, outputs * static_cast<double>(s.taps()), 20e3}, call.threads);
    parallel(threads, [&](Team team) {
        const Range mine = split_range(rows, team.rank, team.size);
        for (int64_t row = mine.begin, count = 0; row < mine.end; row += count) {
            const int64_t sample = row / s.out_height, y = row % s.out_height;
            count = std::min(mine.end - row, s.out_height - y);
            const void* image = static_cast<const char*>(call.x) + sample * s.sample_size() * size_bytes(call.x_dtype);
            void* out = static_cast<char*>(call.out) + row * s.out_width * s.channels * size_bytes(call.out_dtype);
            kernels.depthwise({s, image, call.x_dtype, y, count, call.weight.taps().data(), padded_channels(s.channels), bias.data(), out,
                               call.out_dtype});
        }
    });
}

}  // namespace gossamer
