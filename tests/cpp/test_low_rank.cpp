// Products with low-rank weights, alone and added to every kind of base, against fp64: within the bounds of linear.h, the same bits for
// every thread count, on every ISA.
#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>
#include <vector>

#include "bounds.h"
#include "check.h"
#include "dispatch/lists.h"
#include "gossamer/conv.h"
#include "linear_layer.h"
#include "low_rank_weight.h"

namespace gossamer::test {
namespace {

constexpr FormatId int8 = FormatId::int8, bf16 = FormatId::bf16, f32 = FormatId::f32;
constexpr FactorKind kRounding{int8, int8, Activations::int8};
constexpr FactorKind kFactors[] = {kRounding, {bf16, bf16}, {f32, f32}, {int8, int8}, {f32, bf16}, {int8, bf16}, {bf16, f32}};

// With a list of one kernel (one_kernel.cpp) every ISA would run the same one.
std::vector<Isa> available_isas() {
    if (s8_list().size() == 1 || bf16_list().size() == 1) return {isa_active()};
    std::vector<Isa> isas;
    for (int i = 0; i < kIsaCount; ++i) {
        if (isa_available(static_cast<Isa>(i))) isas.push_back(static_cast<Isa>(i));
    }
    return isas;
}

LayerOptions some_options(Random& random) {
    const auto dtype = [&] { return kDTypes[random.integer(0, 2)]; };
    return {dtype(),
            dtype(),
            random.integer(0, 2) > 0,
            random.integer(0, 1) > 0,
            dtype(),
            static_cast<Activation>(random.integer(0, kActivationCount - 1))};
}

struct Expected {
    std::vector<double> value, bound;
};

template <class Layer>
std::vector<BranchRow> branch_rows(const Layer& layer, const LowRankFactors& low_rank) {
    std::vector<BranchRow> rows;
    for (int64_t m = 0; m < layer.M; ++m) rows.push_back(branch_row(low_rank, layer.x.at(m * layer.x_stride), layer.options.x_dtype));
    return rows;
}

// Of a base's sums z_base [M, N] (fp32; null: none), the low-rank part, and what else is added.
template <class Layer>
Expected expected_output(const Layer& layer, const std::vector<BranchRow>& rows, const float* z_base) {
    constexpr int64_t kRoundings = 6;
    const LayerOptions& o = layer.options;
    const int64_t N = layer.weight.N;
    Expected e;
    for (int64_t m = 0; m < layer.M; ++m) {
        const BranchRow& row = rows[static_cast<size_t>(m)];
        for (int64_t n = 0; n < N; ++n) {
            const size_t i = static_cast<size_t>(n);
            const double base = z_base == nullptr ? 0 : static_cast<double>(z_base[m * N + n]);
            const double bias = o.bias ? layer.bias.get(n) : 0;
            const double addend = o.addend ? static_cast<double>(layer.addend[m * layer.addend_stride + n]) : 0;
            reference::Preactivation z{base + bias + addend + row.value[i], 0};
            z.magnitude = std::fabs(base) + std::fabs(bias) + std::fabs(addend) + std::fabs(row.value[i]);
            z.magnitude += row.bound[i] / (kRoundings * kHalfUlp);
            e.value.push_back(reference::activate(o.activation, z.value));
            e.bound.push_back(output_bound(z, kRoundings, o.activation, o.out_dtype));
        }
    }
    return e;
}

// What the base makes of the same rows alone; other tests hold it to fp64.
std::vector<float> base_sums(const LinearLayer<SumOfWeights>& layer, Isa isa) {
    const Weight base = layer.weight.base.view();
    std::vector<float> sums(static_cast<size_t>(layer.M * layer.weight.N));
    Epilogue to_sums;
    to_sums.out = sums.data();
    to_sums.out_row_stride = layer.weight.N;
    linear({layer.x.bytes(), layer.options.x_dtype, layer.M, layer.x_stride, base, to_sums, 1, isa});
    return sums;
}

void check_layer(const LinearLayer<LowRankFactors>& layer) {
    const Expected wanted = expected_output(layer, branch_rows(layer, layer.weight), nullptr);
    for (const Isa isa : available_isas()) {
        const std::string what = std::string(isa_name(isa)) + ": " + layer.text();
        const Values first = layer.run(isa, 1);
        check_output(layer, wanted.value, wanted.bound, first, what);
        check_threads(layer, isa, first, what);
    }
}

void check_layer(const LinearLayer<SumOfWeights>& layer) {
    const std::vector<BranchRow> rows = branch_rows(layer, layer.weight.low_rank);
    for (const Isa isa : available_isas()) {
        const std::string what = std::string(isa_name(isa)) + ": " + layer.text();
        const std::vector<float> sums = base_sums(layer, isa);
        const Expected wanted = expected_output(layer, rows, sums.data());
        const Values first = layer.run(isa, 1);
        check_output(layer, wanted.value, wanted.bound, first, what);
        check_threads(layer, isa, first, what);
    }
}

constexpr int64_t kRows[] = {0, 1, 2, 4, 5, 16, 17, 33};

// Every kind of factors with every number of rows, and another choice of everything else.
void test_low_rank() {
    Random random(1);
    constexpr int64_t shapes[][3] = {{1, 1, 1}, {17, 40, 15}, {33, 101, 17}, {71, 257, 33}, {49, 129, 32}, {31, 65, 64}, {48, 430, 100}};
    for (const FactorKind& kind : kFactors) {
        int64_t i = 0;
        for (const int64_t M : kRows) {
            const auto& [N, K, R] = shapes[i++ % 7];
            const LowRankFactors w(kind, N, K, R, random.bits());
            check_layer({w, M, some_options(random), random.bits()});
        }
    }
}

// Enough work for every thread count, more than one row block, and more than one slab.
void test_large() {
    Random random(2);
    for (const FactorKind& kind : kFactors) {
        for (const DType x_dtype : {DType::f32, DType::bf16}) {
            const LayerOptions options{x_dtype, DType::f32, true, true, DType::f32, Activation::silu};
            const LowRankFactors wide(kind, 1031, 1200, 150, random.bits()), long_k(kind, 60, 700, 33, random.bits());
            check_layer({wide, random.integer(1, 4), options, random.bits()});
            check_layer({long_k, 200, options, random.bits()});
        }
        const LowRankFactors narrow(kind, 20, 40, 17, random.bits());
        check_layer({narrow, 2048 + 3, {DType::bf16, DType::bf16}, random.bits()});
    }
}

std::vector<AnyKind> base_kinds() {
    constexpr ScaleType s32 = ScaleType::f32, s16 = ScaleType::f16;
    std::vector<AnyKind> kinds = {{FormatId::fp8_e4m3},
                                  {FormatId::fp8_e5m2, s32, false, 128},
                                  {FormatId::sparse_bf16},
                                  {FormatId::sparse_f32},
                                  {FormatId::sparse_f32, s32, false, 0, Activations::exact, false, kPartSpmm}};
    kinds.push_back({FormatId::sparse_int8, s32, false, 0, Activations::int8, false, kPartSpmm});
    for (const Activations a : {Activations::int8, Activations::exact}) {
        kinds.push_back({FormatId::int8, s32, false, 0, a});
        kinds.push_back({FormatId::nf4, ScaleType::bf16, false, 64, a});
        kinds.push_back({FormatId::mxfp4, ScaleType::e8m0, false, 32, a});
        kinds.push_back({FormatId::sparse_int8, s32, false, 0, a});
    }
    for (const Activations a : {Activations::int8, Activations::exact, Activations::int8_group}) {
        kinds.push_back({FormatId::int8, s32, false, 64, a});
        kinds.push_back({FormatId::int4, s16, false, 128, a});
        kinds.push_back({FormatId::int4, s32, true, 32, a});
        kinds.push_back({FormatId::sparse_int4, s16, false, 64, a});
    }
    return kinds;
}

// Every base beside every kind of factors that it takes, with few rows and with many.
void test_sums() {
    Random random(3);
    for (const AnyKind& base : base_kinds()) {
        for (const FactorKind& factors : kFactors) {
            if (factors.activations == Activations::int8 && base.activations == Activations::exact) continue;
            constexpr int64_t ranks[] = {1, 16, 31, 32, 33, 65};
            const SumOfWeights w(base, factors, random.integer(1, 99), random.integer(1, 300), ranks[random.integer(0, 5)], random.bits());
            for (const int64_t M : {random.integer(1, 4), random.integer(5, 40)}) check_layer({w, M, some_options(random), random.bits()});
        }
    }
}

// Every number of rows on the paths that matter most, and more work than one thread takes.
void test_sums_of_many_rows() {
    Random random(4);
    const AnyKind int4{FormatId::int4, ScaleType::f16, false, 128, Activations::int8}, fp8{FormatId::fp8_e4m3};
    for (const AnyKind& base : {int4, fp8}) {
        for (const FactorKind& factors : {kRounding, kFactors[1]}) {
            if (factors.activations == Activations::int8 && base.activations == Activations::exact) continue;
            const SumOfWeights w(base, factors, 200, 520, 32, random.bits());
            for (const int64_t M : kRows) check_layer({w, M, some_options(random), random.bits()});
            check_layer({w, 200, some_options(random), random.bits()});
            const SumOfWeights wide(base, factors, 1031, 1030, 40, random.bits()), narrow(base, factors, 20, 40, 17, random.bits());
            for (const int64_t M : {1, 3}) check_layer({wide, M, some_options(random), random.bits()});
            check_layer({narrow, 2048 + 3, {DType::bf16, DType::f32}, random.bits()});
        }
    }
}

// The dequantized weight is what a layer with exact activations multiplies by.
template <class W>
void check_dequantized(const W& w) {
    std::vector<float> dense(static_cast<size_t>(w.N * w.K));
    const Weight view = w.view();
    std::visit([&](const auto& form) { dequantize(form, 0, w.N, dense.data(), 2); }, view.form);
    const std::vector<double> values(dense.begin(), dense.end());
    const LinearLayer<W> layer(w, 21, {}, 5);
    Expected e;
    for (int64_t m = 0; m < layer.M; ++m) {
        std::vector<double> x;
        for (int64_t k = 0; k < w.K; ++k) x.push_back(layer.x.get(m * layer.x_stride + k));
        for (int64_t n = 0; n < w.N; ++n) {
            const auto z = reference::preactivation(x.data(), values.data() + n * w.K, w.K, layer.bias.get(n), 0);
            e.value.push_back(z.value);
            e.bound.push_back(output_bound(z, 20 * (w.K + 50), Activation::none, DType::f32));
        }
    }
    for (const Isa isa : available_isas()) check_output(layer, e.value, e.bound, layer.run(isa, 2), "dequantized: " + layer.text());
    std::vector<float> rows(static_cast<size_t>(5 * w.K));
    std::visit([&](const auto& form) { dequantize(form, 3, 8, rows.data(), 1); }, view.form);
    check(std::equal(rows.begin(), rows.end(), dense.begin() + 3 * w.K), w.text() + ": some rows dequantized");
}

void test_dequantized() {
    for (const FactorKind& factors : kFactors) {
        if (factors.activations == Activations::int8) continue;
        check_dequantized(LowRankFactors(factors, 45, 90, 20, 6));
        check_dequantized(SumOfWeights({FormatId::int4, ScaleType::f16, false, 128}, factors, 45, 90, 20, 7));
        check_dequantized(SumOfWeights({FormatId::sparse_f32}, factors, 45, 90, 20, 8));
    }
}

// NaN in a row of x makes the row NaN, infinity too where x is rounded; zeros give the bias; the other rows do not notice.
template <class W>
void check_special_rows(const W& w, int64_t M) {
    LinearLayer<W> layer(w, M, {}, 10);
    const LinearLayer<W> before(w, M, {}, 10);
    layer.x.set(2, std::nan(""));
    for (int64_t k = 0; k < w.K; ++k) layer.x.set(layer.x_stride + k, 0);
    for (const Isa isa : available_isas()) {
        const Values out = layer.run(isa, 2), plain = before.run(isa, 2);
        const std::string what = std::string(isa_name(isa)) + ": " + layer.text();
        int64_t wrong = 0;
        for (int64_t n = 0; n < w.N; ++n) {
            wrong += !std::isnan(out.get(n));
            wrong += out.get(layer.out_stride + n) != layer.bias.get(n);
            for (int64_t m = 2; m < M; ++m) wrong += out.get(m * layer.out_stride + n) != plain.get(m * layer.out_stride + n);
        }
        check(wrong == 0, what + ": special rows");
    }
}

void test_special_rows() {
    for (const FactorKind& factors : kFactors) {
        for (const int64_t M : {4, 20}) {
            check_special_rows(LowRankFactors(factors, 40, 130, 20, 1), M);
            check_special_rows(SumOfWeights({FormatId::int4, ScaleType::f16, false, 64, Activations::int8}, factors, 40, 130, 20, 2), M);
        }
    }
}

// Rows from elsewhere: a convolution of single pixels is a linear layer.
void check_pixels(const Guarded<uint8_t>& packed, const std::vector<float>& x, int64_t pixels, int64_t N, int64_t K) {
    const Weight weight = weight_view(packed.data(), packed.size());
    const ConvWeight conv_weight(packed.data(), packed.size(), 1, false);
    for (const Isa isa : available_isas()) {
        std::vector<float> wanted(static_cast<size_t>(pixels * N)), got = wanted;
        Epilogue to_wanted;
        to_wanted.out = wanted.data();
        to_wanted.out_row_stride = N;
        linear({x.data(), DType::f32, pixels, K, weight, to_wanted, 1, isa});
        for (const int threads : {1, 2}) {
            std::fill(got.begin(), got.end(), 0.0f);
            const ConvShape shape{1, 1, pixels, K, 1, pixels, 1, 1, 1, 1, 0, 0, 1, 1};
            const ConvCall call{x.data(), DType::f32, shape, conv_weight, 0, nullptr, DType::f32, got.data(), DType::f32, threads, isa};
            conv2d(call);
            check(got == wanted, std::string(isa_name(isa)) + ": convolution");
        }
    }
}

void test_rows_from_elsewhere() {
    constexpr int64_t N = 40, K = 70, R = 20, pixels = 23;  // no more than N: they are multiplied together
    Random random(11);
    std::vector<float> x(static_cast<size_t>(pixels * K));
    for (float& value : x) value = static_cast<float>(random.uniform());
    for (size_t m = 0; m < pixels; ++m) x[m * K] = 4;  // the scale of each row is that of the sample
    const AnyKind int8_base{int8, ScaleType::f32, false, 0, Activations::int8}, exact{FormatId::fp8_e4m3};
    check_pixels(SumOfWeights(int8_base, kRounding, N, K, R, 1).packed, x, pixels, N, K);
    check_pixels(SumOfWeights(exact, {f32, f32}, N, K, R, 1).packed, x, pixels, N, K);
    for (const FactorKind& factors : kFactors) check_pixels(LowRankFactors(factors, N, K, R, 1).packed, x, pixels, N, K);
    const SumOfWeights mixed(int8_base, {f32, f32}, N, K, R, 1);
    check_throws<std::invalid_argument>([&] { check_pixels(mixed.packed, x, pixels, N, K); },
                                        "got a low-rank part on lane f32 beside a base on lane s8, wanted the same");
}

}  // namespace
}  // namespace gossamer::test

int main() {
    using namespace gossamer::test;
    if (!gossamer::isa_available(gossamer::s8_list().back()->isa)) return kSkipped;
    test_low_rank();
    test_large();
    test_sums();
    test_sums_of_many_rows();
    test_dequantized();
    test_special_rows();
    test_rows_from_elsewhere();
    return finish();
}
