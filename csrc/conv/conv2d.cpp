// Convolutions as products whose rows are patches of the image; depthwise ones go their own way.
#include <algorithm>
#include <stdexcept>
#include <string>

#include "depthwise_image.h"
#include "dispatch/lists.h"
#include "gossamer/conv.h"
#include "gossamer/parallel.h"
#include "image.h"
#include "linear/grid.h"

namespace gossamer {
namespace {

// Pixels of the output that are gathered and multiplied together: few enough for their panels to stay in L2, and for all threads to have
// some; enough for a weight that is expanded each time.
constexpr int64_t kPixelsTogether = 256, kPanelBytes = 512 << 10;

// A convolution as products, one for each group and piece of the output.
struct Products {
    const ConvCall& call;
    const Image& image;
    Lane lane;
    int64_t pixels, pieces;  // of a group

    Products(const ConvCall& c, const Image& i, Lane l)
        : call(c), image(i), lane(l), pixels(c.shape.batch * c.shape.out_pixels()), pieces(1) {
        const Weight& part = call.weight.parts().front();
        const int64_t most = std::clamp(kPanelBytes / (part.K * image.element_bytes), kPanelRows, kPixelsTogether);
        // A multiple of 4, for 2 or 4 threads; whatever the number of threads, so that they all give the same bits.
        if (pixels > part.N) pieces = round_up(ceil_div(pixels, most), 4);
    }
    // The pixels of one piece: whole panels.
    Range piece(int64_t index) const {
        const Range panels = split_range(ceil_div(pixels, kPanelRows), index, pieces);
        return {panels.begin * kPanelRows, std::min(panels.end * kPanelRows, pixels)};
    }
    void run() const;
    void run_piece(int64_t group, Range range, int threads) const;
};

// The patches of one group, from one pixel of the output on.
class PatchRows final : public RowSource {
public:
    PatchRows(const Products& products, int64_t group, int64_t first_pixel)
        : shape_(products.call.shape),
          image_(products.image),
          kernels_(select_kernels(conv_list(), products.call.isa)),
          pixel_bytes_(shape_.channels * image_.element_bytes),
          tap_bytes_(pixel_bytes_ / products.call.weight.groups()),
          first_byte_(group * tap_bytes_),
          first_pixel_(first_pixel) {}

    void fill(const Target& t) const override {
        const int64_t first_pixel = first_pixel_ + t.first_row;
        kernels_.gather({shape_, image_.data + first_byte_, image_.end, pixel_bytes_, tap_bytes_, image_.zero, first_pixel, t.begin, t.end,
                         t.panel_rows, static_cast<uint8_t*>(t.panels)});
        if (image_.scales.empty()) return;
        for (int64_t m = t.begin; m < t.end; ++m) {
            t.scale[m] = image_.scales[static_cast<size_t>((first_pixel + m) / shape_.out_pixels())];
        }
    }

private:
    const ConvShape& shape_;
    const Image& image_;
    const ConvKernels& kernels_;
    int64_t pixel_bytes_, tap_bytes_, first_byte_, first_pixel_;
};

void Products::run_piece(int64_t group, Range range, int threads) const {
    const Weight& part = call.weight.parts()[static_cast<size_t>(group)];
    const int64_t N = call.weight.N(), first_channel = group * part.N;
    Epilogue e;
    if (call.bias != nullptr) e.bias = static_cast<const char*>(call.bias) + first_channel * size_bytes(call.bias_dtype);
    e.bias_dtype = call.bias_dtype;
    e.out = static_cast<char*>(call.out) + (range.begin * N + first_channel) * size_bytes(call.out_dtype);
    e.out_dtype = call.out_dtype;
    e.out_row_stride = N;
    const PatchRows rows(*this, group, range.begin);
    product({rows, range.end - range.begin, part, lane, e, threads, call.isa});
}

// Each thread multiplies the patches that it gathered: panels from another core's cache would cost more than reading the weight again.
// Where the weight is larger than the patches, the threads share its columns instead.
void Products::run() const {
    const int64_t groups = call.weight.groups();
    if (pieces == 1) {
        for (int64_t g = 0; g < groups; ++g) run_piece(g, {0, pixels}, call.threads);
        return;
    }
    const double weights = static_cast<double>(call.weight.N() * call.weight.K());
    const int threads = useful_threads({weights, weights * static_cast<double>(pixels), lane == Lane::s8 ? 150e3 : 40e3}, call.threads);
    parallel(threads, [&](Team team) {
        const Range mine = split_range(groups * pieces, team.rank, team.size);
        for (int64_t i = mine.begin; i < mine.end; ++i) run_piece(i / pieces, piece(i % pieces), 1);
    });
}

void require(bool right, const char* argument, int64_t got, int64_t wanted) {
    if (right) return;
    throw std::invalid_argument(std::string("conv2d: ") + argument + ": got " + std::to_string(got) + ", wanted " + std::to_string(wanted));
}

}  // namespace

ConvWeight::ConvWeight(const void* packed, int64_t packed_bytes, int64_t groups, bool depthwise) : groups_(groups), N_(0) {
    const int64_t parts = depthwise ? 1 : groups;
    require(groups >= 1, "groups", groups, 1);
    require(packed_bytes % parts == 0, "packed: bytes for all groups", packed_bytes, round_up(packed_bytes, parts));
    const int64_t bytes = packed_bytes / parts;
    for (int64_t i = 0; i < parts; ++i) {
        parts_.push_back(weight_view(static_cast<const char*>(packed) + i * bytes, bytes));
        require(parts_[static_cast<size_t>(i)].N == parts_[0].N, "packed: rows of a group", parts_.back().N, parts_[0].N);
        require(parts_[static_cast<size_t>(i)].K == parts_[0].K, "packed: columns of a group", parts_.back().K, parts_[0].K);
        if (parts_.back().input_scale > 0) throw std::invalid_argument("conv2d: packed: has an input scale, wanted that as an argument");
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
    Products(call, image, lane).run();
}

}  // namespace gossamer
