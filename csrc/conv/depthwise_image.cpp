// Rows of the output are shared out over a team; of each row, 32 channels of up to 128 pixels are summed in L1 and finished from there.
#include "depthwise_image.h"

#include <algorithm>
#include <variant>

#include "dispatch/lists.h"
#include "linear/finish.h"

namespace gossamer {
namespace {

class DepthwiseLayer {
public:
    explicit DepthwiseLayer(const ConvCall& call)
        : call_(call),
          kernels_(select_kernels(conv_list(), call.isa)),
          epilogue_(select_kernels(epilogue_list(), call.isa)),
          channels32_(round_up(call.shape.channels, kStripColumns)) {}

    void run() const {
        const ConvShape& s = call_.shape;
        const int64_t rows = s.batch * s.out_height;
        const double outputs = static_cast<double>(rows * s.out_width * s.channels);
        const int threads = useful_threads({outputs, outputs * static_cast<double>(s.taps()), 20e3}, call_.threads);
        parallel(threads, [&](Team team) {
            const Range mine = split_range(rows, team.rank, team.size);
            for (int64_t row = mine.begin; row < mine.end; ++row) {
                for (int64_t c = 0; c < s.channels; c += kStripColumns) run_row(row, c);
            }
        });
    }

private:
    // 32 channels from c on, of one row of the output, counted over all samples.
    void run_row(int64_t row, int64_t c) const {
        const ConvShape& s = call_.shape;
        const int64_t first_element = row / s.out_height * s.sample_size() + c;
        const void* image = static_cast<const char*>(call_.x) + first_element * size_bytes(call_.x_dtype);
        const Cell channels{0, 0, c / kStripColumns, std::min(kStripColumns, s.channels - c)};
        const StripBias bias(call_.epilogue, channels);
        alignas(64) float sum[kMaxBlockRows * kStripColumns];
        for (int64_t x = 0; x < s.out_width; x += kMaxBlockRows) {
            const int64_t last_x = std::min(x + kMaxBlockRows, s.out_width);
            kernels_.depthwise({s, image, call_.x_dtype, call_.weight.taps().data() + c, channels32_, channels.columns, row % s.out_height,
                                x, last_x, sum});
            const Cell cell{0, last_x - x, channels.strip, channels.columns};
            const Scales ones{kOneRows.values, kOneColumns.values};
            epilogue_.finish_f32(finish_tile(call_.epilogue, row * s.out_width + x, cell, ones, bias), sum);
        }
    }

    const ConvCall& call_;
    const ConvKernels& kernels_;
    const EpilogueKernels& epilogue_;
    int64_t channels32_;
};

}  // namespace

std::vector<float> depthwise_taps(const Weight& weight) {
    const int64_t channels = weight.N, taps = weight.K, stride = round_up(channels, kStripColumns);
    std::vector<float> rows(static_cast<size_t>(channels * taps)), columns(static_cast<size_t>(taps * stride));
    std::visit([&](const auto& form) { dequantize(form, 0, channels, rows.data(), 1); }, weight.form);
    for (int64_t c = 0; c < channels; ++c) {
        for (int64_t t = 0; t < taps; ++t) columns[static_cast<size_t>(t * stride + c)] = rows[static_cast<size_t>(c * taps + t)];
    }
    return columns;
}

void conv2d_depthwise(const ConvCall& call) { DepthwiseLayer(call).run(); }

}  // namespace gossamer
