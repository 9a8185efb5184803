// Convolutions against plain loops in fp64: on quantized images sums are exact and outputs within the bounds of fp32, the same bits for
// every thread count; exact activations within the bound of their lane; nothing is read or written outside the arrays.
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "bounds.h"
#include "check.h"
#include "dispatch/lists.h"
#include "gossamer/conv.h"
#include "values.h"

namespace gossamer::test {
namespace {

std::vector<Isa> available_isas() {
    std::vector<Isa> isas;
    for (int i = 0; i < kIsaCount; ++i) {
        if (isa_available(static_cast<Isa>(i))) isas.push_back(static_cast<Isa>(i));
    }
    return isas;
}

struct Case {
    ConvShape shape;  // out_height and out_width 0: as far as pad_bottom = pad_top and pad_right = pad_left go
    int64_t N, groups;
    DType dtype = DType::f32;
    Activations activations = Activations::int8;
    float input_scale = 0;
};

ConvShape completed(ConvShape s) {
    const auto length = [](int64_t size, int64_t kernel, int64_t stride, int64_t pad, int64_t dilation) {
        return (size + 2 * pad - dilation * (kernel - 1) - 1) / stride + 1;
    };
    if (s.out_height == 0) s.out_height = length(s.height, s.kernel_h, s.stride_h, s.pad_top, s.dilation_h);
    if (s.out_width == 0) s.out_width = length(s.width, s.kernel_w, s.stride_w, s.pad_left, s.dilation_w);
    return s;
}

// A case with its numbers.
struct Layer {
    Case c;
    ConvShape s;
    bool depthwise;
    int64_t K;
    Values x, bias;
    Guarded<int8_t> values;  // [N, K]
    Guarded<float> scales;   // [N]
    Guarded<uint8_t> packed;

    Layer(const Case& wanted, uint64_t seed)
        : c(wanted),
          s(completed(wanted.shape)),
          depthwise(c.groups > 1 && c.groups == c.N && c.N == s.channels),
          K(s.taps() * s.channels / c.groups),
          x(c.dtype, s.batch * s.sample_size()),
          bias(DType::f32, c.N),
          values(c.N * K),
          scales(c.N),
          packed(parts() * layout().size_bytes) {
        Random random(seed);
        fill(x, random, 3.0);
        fill(bias, random);
        for (int8_t& v : values) v = static_cast<int8_t>(random.integer(-127, 127));
        for (float& v : scales) v = static_cast<float>(0.01 + std::fabs(random.uniform()) / 100);
        for (int64_t i = 0; i < parts(); ++i) {
            const int64_t row = i * layout().N;
            int8_pack(values.data() + row * K, scales.data() + row, layout(), c.activations, packed.data() + i * layout().size_bytes, 1);
        }
    }
    int64_t parts() const { return depthwise ? 1 : c.groups; }
    Int8Layout layout() const { return int8_layout(c.N / parts(), K, 0); }
    Values output() const { return Values(c.dtype, s.batch * s.out_pixels() * c.N); }
    void run(Isa isa, int threads, Values& out) const {
        const ConvWeight weight(packed.data(), packed.size(), c.groups, depthwise);
        conv2d({x.bytes(), c.dtype, s, weight, c.input_scale, bias.bytes(), DType::f32, out.data(), c.dtype, threads, isa});
    }
    std::string text() const {
        const auto n = [](int64_t value) { return std::to_string(value) + " "; };
        return "batch, height, width, channels " + n(s.batch) + n(s.height) + n(s.width) + n(s.channels) + ", kernel " + n(s.kernel_h) +
               n(s.kernel_w) + ", stride " + n(s.stride_h) + n(s.stride_w) + ", padding " + n(s.pad_top) + n(s.pad_left) + ", dilation " +
               n(s.dilation_h) + n(s.dilation_w) + ", N, groups " + n(c.N) + n(c.groups) + dtype_name(c.dtype);
    }
};

// One sample as the lane sees it: numbers and what they are to be multiplied with.
struct Sample {
    std::vector<double> x;
    double scale;
};

Sample sample_of(const Layer& layer, int64_t b) {
    const int64_t n = layer.s.sample_size();
    Sample sample{std::vector<double>(static_cast<size_t>(n)), 1};
    const bool rounded = layer.c.activations == Activations::int8 && !layer.depthwise;
    if (rounded && layer.c.input_scale == 0) {
        const auto row = reference::quantize_row(layer.x.at(b * n), layer.c.dtype, n);
        sample.scale = row.scale;
        for (size_t i = 0; i < sample.x.size(); ++i) sample.x[i] = row.q[i];
        return sample;
    }
    for (int64_t i = 0; i < n; ++i) {
        const double x = layer.x.get(b * n + i);
        const double q = std::nearbyint(static_cast<double>(static_cast<float>(x) * (1 / layer.c.input_scale)));
        sample.x[static_cast<size_t>(i)] = rounded ? std::fmin(std::fmax(q, -127), 127) : x;
    }
    if (rounded) sample.scale = layer.c.input_scale;
    return sample;
}

struct Sum {
    double value = 0, magnitude = 0;
};

Sum sum_at(const Layer& layer, const Sample& sample, int64_t i, int64_t j, int64_t n) {
    const ConvShape& s = layer.s;
    const int64_t channels = s.channels / layer.c.groups, first = n / (layer.c.N / layer.c.groups) * channels;
    Sum sum;
    for (int64_t k = 0; k < layer.K; ++k) {
        const int64_t tap = k / channels, c = first + k % channels;
        const int64_t y = i * s.stride_h + tap / s.kernel_w * s.dilation_h - s.pad_top;
        const int64_t x = j * s.stride_w + tap % s.kernel_w * s.dilation_w - s.pad_left;
        if (y < 0 || y >= s.height || x < 0 || x >= s.width) continue;
        const double product = sample.x[static_cast<size_t>((y * s.width + x) * s.channels + c)] * layer.values[n * layer.K + k];
        sum.value += product;
        sum.magnitude += std::fabs(product);
    }
    const double scale = static_cast<double>(layer.scales[n]) * sample.scale, bias = layer.bias.get(n);
    return {sum.value * scale + bias, sum.magnitude * scale + std::fabs(bias)};
}

// Roundings of fp32 on the way to an output.
int64_t roundings(const Layer& layer) {
    const bool exact_sums = layer.c.activations == Activations::int8 && !layer.depthwise;
    return exact_sums ? 4 : 2 * layer.K + 4;
}

void check_output(const Layer& layer, const Values& out, const std::string& what) {
    int64_t at = 0, wrong = 0;
    for (int64_t b = 0; b < layer.s.batch; ++b) {
        const Sample sample = sample_of(layer, b);
        for (int64_t p = 0; p < layer.s.out_pixels(); ++p) {
            for (int64_t n = 0; n < layer.c.N; ++n, ++at) {
                const Sum wanted = sum_at(layer, sample, p / layer.s.out_width, p % layer.s.out_width, n);
                const double fp32 = static_cast<double>(roundings(layer)) * kHalfUlp * wanted.magnitude;
                const double bound = fp32 + rounding_bound(layer.c.dtype, std::fabs(wanted.value) + fp32);
                if (std::fabs(out.get(at) - wanted.value) <= bound) continue;
                if (wrong++ == 0) check_near(out.get(at), wanted.value, bound, what + ": [" + std::to_string(at) + "]");
            }
        }
    }
    check(wrong == 0, what + ": " + std::to_string(wrong) + " of " + std::to_string(at) + " outputs are wrong");
}

void check_case(const Case& c, uint64_t seed) {
    const Layer layer(c, seed);
    for (const Isa isa : available_isas()) {
        const std::string what = std::string(isa_name(isa)) + ": " + layer.text();
        Values first = layer.output();
        layer.run(isa, 1, first);
        check_output(layer, first, what);
        for (const int threads : {2, 3}) {
            Values again = layer.output();
            layer.run(isa, threads, again);
            check(std::memcmp(first.bytes(), again.bytes(), static_cast<size_t>(first.size_in_bytes())) == 0, what + ": the same bits");
        }
    }
}

//                        batch height width channels  out    kernel  stride padding dilation
const Case kCases[] = {
    {{2, 5, 6, 3, 0, 0, 3, 3, 1, 1, 1, 1, 1, 1}, 5, 1},      // few channels
    {{1, 9, 8, 1, 0, 0, 5, 4, 2, 3, 2, 1, 1, 1}, 17, 1},     // one
    {{1, 6, 7, 64, 0, 0, 3, 3, 1, 1, 1, 1, 1, 1}, 33, 1},    // whole lines
    {{3, 4, 5, 48, 0, 0, 1, 1, 1, 1, 0, 0, 1, 1}, 16, 1},    // pixels are rows
    {{1, 21, 19, 17, 0, 0, 3, 2, 1, 2, 2, 3, 2, 3}, 8, 1},   // dilated, more pixels than one panel
    {{2, 6, 5, 12, 0, 0, 3, 3, 1, 1, 1, 1, 1, 1}, 6, 3},     // groups
    {{1, 5, 6, 130, 0, 0, 2, 2, 1, 1, 1, 1, 1, 1}, 40, 2},   // groups, pieces of more than a line
    {{1, 1, 40, 20, 0, 0, 1, 5, 1, 1, 0, 2, 1, 1}, 24, 1},   // one dimension
    {{1, 3, 3, 9, 5, 4, 3, 3, 1, 1, 4, -1, 1, 1}, 4, 1},     // far outside the image; negative padding
    {{2, 17, 18, 8, 0, 0, 3, 3, 1, 1, 1, 1, 1, 1}, 4, 1},    // several pieces of the output
    {{2, 7, 9, 37, 0, 0, 3, 3, 1, 1, 1, 1, 1, 1}, 37, 37},   // depthwise
    {{1, 8, 13, 16, 0, 0, 5, 3, 2, 2, 2, 1, 1, 2}, 16, 16},  // depthwise, with strides and dilation
    {{1, 3, 2, 21, 0, 0, 3, 3, 1, 1, 2, 2, 1, 1}, 21, 21},   // depthwise, hardly a pixel in the middle
};

void test_cases() {
    uint64_t seed = 1;
    for (const Case& wanted : kCases) {
        for (const Activations activations : {Activations::int8, Activations::exact}) {
            for (const DType dtype : kDTypes) {
                Case c = wanted;
                c.dtype = dtype;
                c.activations = activations;
                check_case(c, seed++);
            }
        }
    }
}

void test_given_scale() {
    Case c = kCases[0];
    for (const float scale : {0.03125f, 0.0078125f}) {  // the second clamps: 127 * scale < 1
        c.input_scale = scale;
        check_case(c, 100);
    }
    Layer layer(c, 101);
    set_input_scale(layer.packed.data(), layer.packed.size(), 0.5f);
    check_throws<std::invalid_argument>([&] { ConvWeight(layer.packed.data(), layer.packed.size(), 1, false); },
                                        "conv2d: packed: has an input scale, wanted that as an argument");
}

// Even where the reciprocal of the scale is infinite: everything but zero is clamped.
void test_tiny_given_scale() {
    Case c = kCases[0];
    c.input_scale = 0x1p-140f;
    Layer layer(c, 102), zeros(c, 102);
    for (int64_t i = 0; i < layer.x.count; ++i) layer.x.set(i, 0), zeros.x.set(i, 0);
    layer.x.set(0, 1e30);
    Values out = layer.output(), wanted = zeros.output();
    layer.run(isa_active(), 1, out);
    zeros.run(isa_active(), 1, wanted);
    for (int64_t i = 0; i < out.count; ++i) {
        check(wanted.get(i) == zeros.bias.get(i % c.N), "zeros give the bias: " + std::to_string(i));
        check_near(out.get(i), wanted.get(i), 0x1p-130, "a tiny scale: " + std::to_string(i));
    }
}

// Of three samples one has a NaN or an infinity: its outputs are NaN, the others what they are without it.
void test_not_a_number() {
    for (const double bad : {std::nan(""), HUGE_VAL}) {
        for (const float scale : {0.0f, 0.125f}) {
            Case c{{3, 4, 5, 6, 0, 0, 3, 3, 1, 1, 1, 1, 1, 1}, 7, 1};
            c.input_scale = scale;
            Layer layer(c, 200);
            const Isa isa = isa_active();
            Values clean = layer.output(), out = layer.output();
            layer.run(isa, 2, clean);
            layer.x.set(layer.s.sample_size() + 11, bad);
            layer.run(isa, 2, out);
            const int64_t size = out.count / 3;
            for (int64_t i = 0; i < out.count; ++i) {
                const bool second = i / size == 1;
                check(second ? std::isnan(out.get(i)) : out.get(i) == clean.get(i), "NaN stays in its sample: " + std::to_string(i));
            }
        }
    }
}

void test_tiny_and_zero() {
    Case c = kCases[0];
    for (const double size : {0.0, 0x1p-120, 0x1p-140}) {
        Layer layer(c, 300);
        for (int64_t i = 0; i < layer.x.count; ++i) layer.x.set(i, layer.x.get(i) * size);
        Values out = layer.output();
        layer.run(isa_active(), 1, out);
        check_output(layer, out, "times " + std::to_string(size));
    }
}

void test_errors() {
    const Layer layer(kCases[5], 400);
    const auto view = [&](int64_t bytes, int64_t groups, bool depthwise) { ConvWeight(layer.packed.data(), bytes, groups, depthwise); };
    check_throws<std::invalid_argument>([&] { view(layer.packed.size() - 1, 3, false); }, "packed");
    check_throws<std::invalid_argument>([&] { view(layer.packed.size(), 0, false); }, "groups: got 0");
    check_throws<std::invalid_argument>([&] { view(layer.packed.size(), 3, true); }, "packed");
    const ConvWeight weight(layer.packed.data(), layer.packed.size(), 3, false);
    ConvShape wrong = layer.s;
    wrong.kernel_w = 2;
    Values out = layer.output();
    const ConvCall call{layer.x.bytes(), layer.c.dtype, wrong, weight, 0, nullptr, DType::f32, out.data(), DType::f32, 1, isa_active()};
    check_throws<std::invalid_argument>([&] { conv2d(call); }, "conv2d: weight: columns: got 36, wanted 24");
}

}  // namespace
}  // namespace gossamer::test

int main() {
    using namespace gossamer::test;
    test_cases();
    test_given_scale();
    test_tiny_given_scale();
    test_not_a_number();
    test_tiny_and_zero();
    test_errors();
    return finish();
}
