// Whole layers against the reference: sums bit for bit, outputs within the bounds of fp32, the same bits for every thread count.
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "bounds.h"
#include "check.h"
#include "dispatch/lists.h"
#include "linear_layer.h"

namespace gossamer::test {
namespace {

constexpr Activation kActivations[] = {Activation::none, Activation::relu, Activation::gelu, Activation::gelu_tanh, Activation::silu};
constexpr int kThreads[] = {1, 2, 4};

// With a list of one kernel (one_kernel.cpp) every ISA would run the same one.
std::vector<Isa> available_isas() {
    if (s8_list().size() == 1) return {isa_active()};
    std::vector<Isa> isas;
    for (int i = 0; i < kIsaCount; ++i) {
        if (isa_available(static_cast<Isa>(i))) isas.push_back(static_cast<Isa>(i));
    }
    return isas;
}

using Layer = LinearLayer<RandomWeight>;

struct Expected {
    std::vector<double> value, bound;  // [M, N]
};

Expected expected_output(const Layer& layer) {
    const RandomWeight& w = layer.weight;
    const LayerOptions& o = layer.options;
    Expected e;
    for (int64_t m = 0; m < layer.M; ++m) {
        const reference::QuantizedRow row = reference::quantize_row(layer.x.at(m * layer.x_stride), o.x_dtype, w.K);
        for (int64_t n = 0; n < w.N; ++n) {
            const double bias = o.bias ? layer.bias.get(n) : 0, addend = o.addend ? layer.addend[m * layer.addend_stride + n] : 0.0f;
            const auto z = reference::preactivation(row, w.values.data() + n * w.K, w.scales.data() + n * w.groups, w.G, bias, addend);
            e.value.push_back(reference::activate(o.activation, z.value));
            e.bound.push_back(output_bound(z, 3 + 2 * w.groups, o.activation, o.out_dtype));
        }
    }
    return e;
}

// All ISAs and thread counts on one layer.
void check_layer(const Layer& layer) {
    const Expected wanted = expected_output(layer);
    for (const Isa isa : available_isas()) {
        const std::string what = std::string(isa_name(isa)) + ": " + layer.text();
        const Values first = layer.run(isa, 1);
        check_output(layer, wanted.value, wanted.bound, first, what);
        check_threads(layer, isa, first, what);
    }
}

// The sums alone, for arbitrary int8 inputs, -128 included.
void check_sums(const RandomWeight& w, int64_t M, uint64_t seed) {
    Random random(seed);
    const int64_t stride = w.K + 3;
    Guarded<int8_t> x((M - 1) * stride + w.K);
    for (int8_t& v : x) v = static_cast<int8_t>(random.integer(-128, 127));
    std::vector<int8_t> dense;
    for (int64_t m = 0; m < M; ++m) dense.insert(dense.end(), x.data() + m * stride, x.data() + m * stride + w.K);
    const std::vector<int64_t> wanted = reference::multiply(dense.data(), w.values.data(), M, w.N, w.K);
    for (const Isa isa : available_isas()) {
        for (const int threads : kThreads) {
            Guarded<int64_t> out(M * w.N);
            accumulate({x.data(), M, stride, w.view(), out.data(), threads, isa});
            check_equal(out.data(), wanted.data(), out.size(),
                        std::string(isa_name(isa)) + ": sums: M = " + std::to_string(M) + ", " + w.text());
        }
    }
}

// Every shape with another choice of everything else.
void test_shapes() {
    const int64_t counts[] = {1, 2, 3, 4, 5, 8, 15, 16, 17, 32, 33, 70}, ns[] = {1, 15, 16, 17, 32, 33, 100},
                  ks[] = {1, 32, 33, 64, 100, 257, 517};
    const int64_t groups[] = {0, 32, 64, 128};
    Random random(1);
    auto pick = [&](int64_t n) { return random.integer(0, n - 1); };
    for (const int64_t M : counts) {
        for (const int64_t N : ns) {
            const RandomWeight w(N, ks[pick(7)], groups[pick(4)], random.bits());
            const LayerOptions options{kDTypes[pick(3)], kDTypes[pick(3)], pick(3) > 0,
                                       pick(2) > 0,      kDTypes[pick(3)], kActivations[pick(5)]};
            check_layer(Layer(w, M, options, random.bits()));
            check_sums(w, M, random.bits());
        }
    }
}

void test_every_option() {
    const RandomWeight channel(37, 96, 0, 1), grouped(37, 96, 64, 2);
    uint64_t seed = 0;
    for (const DType x : kDTypes) {
        for (const DType out : kDTypes) {
            for (const DType bias : kDTypes) {
                for (const Activation activation : kActivations) {
                    const bool addend = ++seed % 2 == 0;
                    check_layer(Layer(seed % 3 == 0 ? grouped : channel, 6, {x, out, seed % 5 != 0, addend, bias, activation}, seed));
                }
            }
        }
    }
}

// Enough work for every thread count, with rows for the small-M path, for AMX, and for more than one slab.
void test_large() {
    const RandomWeight wide(1003, 517, 0, 3), grouped(515, 517, 32, 4), narrow(33, 70, 0, 5);
    for (const int64_t M : {1, 4, 37}) check_layer(Layer(wide, M, {DType::bf16, DType::f32, true, false, DType::f32, Activation::gelu}, 6));
    check_layer(Layer(grouped, 18, {}, 7));
    check_layer(Layer(narrow, 2 * 2048 + 3, {}, 8));
    check_sums(wide, 37, 9);
}

void test_long_k() {
    const RandomWeight w(20, 70000, 0, 10), grouped(3, 70000, 128, 11), longest(3, 1000000, 0, 12);
    for (const int64_t M : {1, 2, 17}) {
        check_layer(Layer(w, M, {}, 13));
        check_sums(w, M, 14);
    }
    check_layer(Layer(grouped, 3, {}, 15));
    check_layer(Layer(longest, 2, {}, 16));
    check_sums(longest, 2, 17);
    // So long that a slab holds one panel of rows.
    const RandomWeight slabs(3, 600000, 0, 25);
    check_layer(Layer(slabs, 18, {}, 26));
}

// The largest sums of one sign, over more than one block of int32.
void test_extreme_sums() {
    RandomWeight w(2, 200000, 0, 18);
    for (const int sign : {-128, 127}) {
        for (int8_t& v : w.values) v = static_cast<int8_t>(sign);
        int8_pack(w.values.data(), w.scales.data(), w.view().layout, Activations::int8, w.packed.data(), 1);
        std::vector<int8_t> x(static_cast<size_t>(w.K), int8_t{-128});
        for (const Isa isa : available_isas()) {
            std::vector<int64_t> out(2), wanted(2, int64_t{-128} * sign * w.K);
            accumulate({x.data(), 1, w.K, w.view(), out.data(), 2, isa});
            check_equal(out.data(), wanted.data(), 2, std::string(isa_name(isa)) + ": extreme sums");
        }
    }
}

void test_special_rows() {
    for (const int64_t G : {0, 64}) {
        const RandomWeight w(40, 130, G, 19);
        for (const Activation activation : kActivations) {
            Layer layer(w, 19, {DType::f32, DType::f32, true, true, DType::f32, activation}, 20);
            const double specials[] = {std::nan(""), HUGE_VAL, -HUGE_VAL};
            for (int64_t m = 0; m < 3; ++m) layer.x.set(m * layer.x_stride + 129 - 64 * m, specials[m]);
            for (int64_t k = 0; k < w.K; ++k) layer.x.set(5 * layer.x_stride + k, 0);
            const Expected wanted = expected_output(layer);
            for (const Isa isa : available_isas()) {
                const Values out = layer.run(isa, 2);
                for (int64_t m = 0; m < layer.M; ++m) {
                    for (int64_t n = 0; n < w.N; ++n) {
                        const double got = out.get(m * layer.out_stride + n);
                        const size_t at = static_cast<size_t>(m * w.N + n);
                        if (m < 3) check(std::isnan(got), std::string(isa_name(isa)) + ": a row with NaN or infinity gives NaN");
                        if (m >= 3)
                            check_near(got, wanted.value[at], wanted.bound[at],
                                       std::string(isa_name(isa)) + ": the other rows do not notice");
                    }
                }
            }
        }
    }
}

void test_nothing_to_do() {
    const RandomWeight w(5, 7, 0, 21);
    linear({nullptr, DType::f32, 0, 7, packed_weight(w), {}, 2, Isa::scalar});
    accumulate({nullptr, 0, 7, w.view(), nullptr, 2, Isa::scalar});
    check(true, "M = 0");
}

void test_several_callers() {
    const RandomWeight w(515, 517, 0, 22);
    const Layer few(w, 2, {}, 23), many(w, 50, {}, 24);
    for (const Isa isa : available_isas()) {
        const Values wanted_few = few.run(isa, 1), wanted_many = many.run(isa, 1);
        std::vector<int> differences(4, 0);
        std::vector<std::thread> callers;
        for (size_t i = 0; i < 4; ++i) {
            callers.emplace_back([&, i] {
                for (int round = 0; round < 5; ++round) {
                    const Layer& layer = (static_cast<size_t>(round) + i) % 2 == 0 ? few : many;
                    const Values& wanted = &layer == &few ? wanted_few : wanted_many;
                    const Values out = layer.run(isa, 2);
                    differences[i] += std::memcmp(out.bytes(), wanted.bytes(), static_cast<size_t>(out.size_in_bytes())) != 0;
                }
            });
        }
        for (std::thread& caller : callers) caller.join();
        for (const int count : differences) check(count == 0, std::string(isa_name(isa)) + ": several callers at once");
    }
}

}  // namespace
}  // namespace gossamer::test

int main() {
    using namespace gossamer::test;
    if (!gossamer::isa_available(gossamer::s8_list().back()->isa)) return kSkipped;
    test_nothing_to_do();
    test_shapes();
    test_every_option();
    test_large();
    test_long_k();
    test_extreme_sums();
    test_special_rows();
    test_several_callers();
    return finish();
}
