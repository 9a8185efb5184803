// Convolutions as products whose rows are patches of the image; depthwise ones go their own way.
#include "gossamer/conv.h"

#include <stdexcept>
#include <string>

#include "depthwise_image.h"
#include "dispatch/lists.h"
#include "image.h"

namespace gossamer {
namespace {

// The patches of one group.
class PatchRows final : public RowSource {
public:
    PatchRows(const ConvCall& call, const Image& image, int64_t group)
        : shape_(call.shape),
          image_(image),
          kernels_(select_kernels(conv_list(), call.isa)),
          pixel_bytes_(call.shape.channels * image.element_bytes),
          tap_bytes_(pixel_bytes_ / call.weight.groups()),
          first_byte_(group * tap_bytes_) {}

    void fill(const Target& t) const override {
        kernels_.gather({shape_, image_.data + first_byte_, image_.end, pixel_bytes_, tap_bytes_, image_.zero, t.first_row, t.begin, t.end,
                         t.panel_rows, static_cast<uint8_t*>(t.panels)});
        if (image_.scales.empty()) return;
        for (int64_t m = t.begin; m < t.end; ++m) {
            t.scale[m] = image_.scales[static_cast<size_t>((t.first_row + m) / shape_.out_pixels())];
        }
    }

private:
    const ConvShape& shape_;
    const Image& image_;
    const ConvKernels& kernels_;
    int64_t pixel_bytes_, tap_bytes_, first_byte_;
};

// Each group writes its own columns of the output.
Epilogue epilogue_of(const ConvCall& call, int64_t group) {
    const int64_t first_channel = group * call.weight.parts().front().N;
    Epilogue e;
    if (call.bias != nullptr) e.bias = static_cast<const char*>(call.bias) + first_channel * size_bytes(call.bias_dtype);
    e.bias_dtype = call.bias_dtype;
    e.out = static_cast<char*>(call.out) + first_channel * size_bytes(call.out_dtype);
    e.out_dtype = call.out_dtype;
    e.out_row_stride = call.weight.N();
    return e;
}

void require(bool right, const char* argument, int64_t got, int64_t wanted) {
    if (right) return;
    throw std::invalid_argument(std::string("conv2d: ") + argument + ": got " + std::to_string(got) + ", wanted " + std::to_string(wanted));
}

}  // namespace

ConvWeight::ConvWeight(const void* packed, int64_t packed_bytes, int64_t groups, bool depthwise) : groups_(groups), N_(0) {
    const int64_t parts = depthwise ? 1 : groups;
    require(groups >= 1 && packed_bytes % parts == 0, "packed: bytes for each group", packed_bytes, round_up(packed_bytes, parts));
    const int64_t bytes = packed_bytes / parts;
    for (int64_t i = 0; i < parts; ++i) {
        parts_.push_back(weight_view(static_cast<const char*>(packed) + i * bytes, bytes));
        require(parts_[static_cast<size_t>(i)].N == parts_[0].N, "packed: rows of a group", parts_.back().N, parts_[0].N);
        require(parts_[static_cast<size_t>(i)].K == parts_[0].K, "packed: columns of a group", parts_.back().K, parts_[0].K);
        N_ += parts_.back().N;
    }
    if (!depthwise) return;
    require(N_ == groups, "packed: channels of a depthwise convolution", N_, groups);
    taps_ = depthwise_taps(parts_.front());
}

void conv2d(const ConvCall& call) {
    const ConvShape& s = call.shape;
    const ConvWeight& w = call.weight;
    require(s.channels % w.groups() == 0, "x: channels", s.channels, round_up(s.channels, w.groups()));
    require(s.taps() * s.channels / w.groups() == w.K(), "weight: columns", w.K(), s.taps() * s.channels / w.groups());
    if (s.batch * s.out_pixels() == 0) return;
    if (!w.taps().empty()) return conv2d_depthwise(call);
    const Lane lane = lane_of(w.parts().front(), call.x_dtype, call.isa);
    const Image image = make_image(call, lane);
    for (int64_t g = 0; g < w.groups(); ++g) {
        const Weight& part = w.parts()[static_cast<size_t>(g)];
        const PatchRows rows(call, image, g);
        product({rows, s.batch * s.out_pixels(), part, lane, epilogue_of(call, g), call.threads, call.isa});
    }
}

}  // namespace gossamer
