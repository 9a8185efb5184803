// Quantizing or widening an image, once, in blocks that are shared out over a team.
#include "image.h"

#include <algorithm>
#include <bit>
#include <limits>

#include "dispatch/lists.h"
#include "gossamer/parallel.h"
#include "linear/workspace.h"

namespace gossamer {
namespace {

thread_local Workspace image_workspace;

// Of 64 elements each, so that no two threads write the same line: 64 KiB of fp32 stay in L2 between the two passes.
constexpr int64_t kBlockElements = int64_t{16} << 10;
constexpr uint32_t kInfinityBits = 0x7f800000;

int64_t ceil_div(int64_t x, int64_t y) { return (x + y - 1) / y; }

// From an fp32's bits; the same rule as for rows (quantize.h).
struct SampleScale {
    float before, inverse, scale;

    SampleScale(uint32_t largest, float given) : before(1), inverse(0), scale(0) {
        if (largest >= kInfinityBits) {
            scale = std::numeric_limits<float>::quiet_NaN();
        } else if (given > 0) {
            before = given < 0x1p-100f ? 0x1p100f : 1.0f;
            inverse = 1 / (given * before);
            scale = given;
        } else if (largest > 0) {
            const float amax = std::bit_cast<float>(largest);
            before = amax < 0x1p-100f ? 0x1p100f : 1.0f;
            inverse = 127.0f / (amax * before);
            scale = amax / 127.0f;
        }
    }
};

class QuantizedImage {
public:
    QuantizedImage(const ConvCall& call, uint8_t* out)
        : call_(call),
          kernels_(select_kernels(conv_list(), call.isa)),
          n_(call.shape.sample_size()),
          blocks_(ceil_div(n_, kBlockElements)),
          largest_(static_cast<size_t>(call.shape.batch * blocks_)),
          out_(out) {}

    std::vector<float> run() {
        const int64_t blocks = call_.shape.batch * blocks_;
        parallel(static_cast<int>(std::min<int64_t>(call_.threads, blocks)), [&](Team team) {
            const Range mine = split_range(blocks, team.rank, team.size);
            for (int64_t i = mine.begin; i < mine.end; ++i) {
                find_largest(i);
                if (call_.input_scale > 0) quantize(i);  // while the block is in L1 or L2
            }
            if (call_.input_scale > 0) return;
            team.barrier();
            for (int64_t i = mine.begin; i < mine.end; ++i) quantize(i);
        });
        std::vector<float> scales;
        for (int64_t b = 0; b < call_.shape.batch; ++b) scales.push_back(SampleScale(largest_of_sample(b), call_.input_scale).scale);
        return scales;
    }

private:
    struct Block {
        const char* x;
        int64_t first, size;
    };
    Block block(int64_t i) const {
        const int64_t in_sample = i % blocks_ * kBlockElements, first = i / blocks_ * n_ + in_sample;
        return {static_cast<const char*>(call_.x) + first * size_bytes(call_.x_dtype), first, std::min(kBlockElements, n_ - in_sample)};
    }
    void find_largest(int64_t i) {
        const Block b = block(i);
        largest_[static_cast<size_t>(i)] = kernels_.largest(b.x, call_.x_dtype, b.size);
    }
    uint32_t largest_of_sample(int64_t sample) const {
        const auto first = largest_.begin() + sample * blocks_;
        return *std::max_element(first, first + blocks_);
    }
    void quantize(int64_t i) {
        const Block b = block(i);
        const bool given = call_.input_scale > 0;
        const uint32_t largest = largest_[static_cast<size_t>(i)];
        const SampleScale scale(given ? largest : largest_of_sample(i / blocks_), call_.input_scale);
        kernels_.quantize({b.x, call_.x_dtype, b.size, scale.before, scale.inverse, given, out_ + b.first});
    }

    const ConvCall& call_;
    const ConvKernels& kernels_;
    int64_t n_, blocks_;  // of a sample
    std::vector<uint32_t> largest_;
    uint8_t* out_;
};

// All samples at once: where one ends does not matter.
void widen(const ConvCall& call, float* out) {
    const ConvertKernels& kernels = select_kernels(convert_list(), call.isa);
    const int64_t n = call.shape.batch * call.shape.sample_size(), blocks = ceil_div(n, kBlockElements);
    parallel(static_cast<int>(std::min<int64_t>(call.threads, blocks)), [&](Team team) {
        const Range mine = split_range(blocks, team.rank, team.size);
        const int64_t first = mine.begin * kBlockElements, last = std::min(mine.end * kBlockElements, n);
        if (first >= last) return;
        // With one row to a panel, a panel is a plain row.
        const char* x = static_cast<const char*>(call.x) + first * size_bytes(call.x_dtype);
        kernels.to_f32({x, call.x_dtype, 0, 0, 1, last - first, 1, out + first});
    });
}

}  // namespace

Image make_image(const ConvCall& call, Lane lane) {
    const int64_t n = call.shape.batch * call.shape.sample_size();
    if (lane == Lane::s8) {
        uint8_t* out = image_workspace.reserve(n);
        return {out, out + n, 1, 128, QuantizedImage(call, out).run()};
    }
    const auto* x = static_cast<const uint8_t*>(call.x);
    if (lane == Lane::bf16) return {x, x + 2 * n, 2, 0, {}};
    if (call.x_dtype == DType::f32) return {x, x + 4 * n, 4, 0, {}};
    uint8_t* out = image_workspace.reserve(round_up(n, F32Block::chunk) * 4);
    widen(call, reinterpret_cast<float*>(out));
    return {out, out + 4 * n, 4, 0, {}};
}

}  // namespace gossamer
