// Whole layers whose groups of x have scales of their own (int8_group) against fp64, on every ISA and in every regime of M.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "any_weight.h"
#include "bounds.h"
#include "check.h"
#include "dispatch/lists.h"

namespace gossamer::test {
namespace {

constexpr ScaleType f32 = ScaleType::f32, f16 = ScaleType::f16, bf16 = ScaleType::bf16;

std::vector<AnyKind> all_kinds() {
    const Activations by_group = Activations::int8_group;
    return {{FormatId::int8, f32, false, 32, by_group},  {FormatId::int8, f32, false, 64, by_group},
            {FormatId::int8, f32, false, 128, by_group}, {FormatId::int4, f32, false, 16, by_group},
            {FormatId::int4, bf16, true, 32, by_group},  {FormatId::int4, f16, false, 128, by_group},
            {FormatId::int4, f32, true, 256, by_group},  {FormatId::nf4, f32, false, 16, by_group},
            {FormatId::nf4, bf16, false, 64, by_group},  {FormatId::fp4, f16, false, 32, by_group},
            {FormatId::fp4, f32, false, 256, by_group},  {FormatId::mxfp4, ScaleType::e8m0, false, 32, by_group}};
}

// With a list of one kernel (one_kernel.cpp) every ISA would run the same one; the scalar one has no kernels for codes to go around it.
std::vector<Isa> available_isas() {
    if (s8_list().size() == 1) return {Isa::scalar, isa_active()};
    std::vector<Isa> isas;
    for (int i = 0; i < kIsaCount; ++i) {
        if (isa_available(static_cast<Isa>(i))) isas.push_back(static_cast<Isa>(i));
    }
    return isas;
}

// One layer; groups of x differ by up to 2^11, so that a scale taken from another group shows.
struct Layer {
    const AnyWeight& weight;
    int64_t M, x_stride;
    Values x, bias;

    Layer(const AnyWeight& w, int64_t rows, DType x_dtype, uint64_t seed)
        : weight(w), M(rows), x_stride(w.K + 3), x(x_dtype, (rows - 1) * x_stride + w.K), bias(DType::f32, w.N) {
        Random random(seed);
        fill(x, random);
        fill(bias, random);
        for (int64_t i = 0; i < x.count; ++i) {
            const int64_t m = i / x_stride, k = i % x_stride;
            x.set(i, std::ldexp(x.get(i), static_cast<int>((k / w.kind.G * 7 + m * 3) % 12) - 6));
        }
    }
    std::vector<float> run(Isa isa, int threads) const {
        Guarded<float> out(M * weight.N);
        Epilogue epilogue;
        epilogue.bias = bias.bytes();
        epilogue.activation = Activation::relu;
        epilogue.out = out.data();
        epilogue.out_row_stride = weight.N;
        const Weight packed = weight.view();
        linear({x.bytes(), x.dtype, M, x_stride, packed, epilogue, threads, isa});
        return {out.begin(), out.end()};
    }
    std::string text() const { return weight.text() + ", M = " + std::to_string(M) + ", " + dtype_name(x.dtype); }
};

// Row m of x as the kernels see it: rounded group by group.
std::vector<double> rounded_row(const Layer& layer, int64_t m) {
    const int64_t K = layer.weight.K, G = layer.weight.kind.G;
    std::vector<double> row;
    for (int64_t k = 0; k < K; k += G) {
        const int64_t count = std::min(G, K - k);
        const reference::QuantizedRow group = reference::quantize_row(layer.x.at(m * layer.x_stride + k), layer.x.dtype, count);
        for (const int8_t q : group.q) row.push_back(q * static_cast<double>(group.scale));
    }
    return row;
}

// Every rounding of x is taken into account, so the rest is fp32: three roundings per group and those of the epilogue.
void check_layer(const Layer& layer) {
    const AnyWeight& w = layer.weight;
    const int64_t roundings = 6 + 3 * ((w.K + w.kind.G - 1) / w.kind.G);
    std::vector<double> wanted, bound;
    for (int64_t m = 0; m < layer.M; ++m) {
        const std::vector<double> row = rounded_row(layer, m);
        for (int64_t n = 0; n < w.N; ++n) {
            const auto z = reference::preactivation(row.data(), w.dense.data() + n * w.K, w.K, layer.bias.get(n), 0);
            wanted.push_back(reference::activate(Activation::relu, z.value));
            bound.push_back(output_bound(z, roundings, Activation::relu, DType::f32));
        }
    }
    for (const Isa isa : available_isas()) {
        const std::string what = std::string(isa_name(isa)) + ": " + layer.text();
        const std::vector<float> out = layer.run(isa, 1);
        size_t worst = 0;
        const auto excess = [&](size_t i) { return std::fabs(static_cast<double>(out[i]) - wanted[i]) / bound[i]; };
        for (size_t i = 0; i < out.size(); ++i) {
            if (!(excess(i) <= excess(worst))) worst = i;
        }
        check_near(static_cast<double>(out[worst]), wanted[worst], bound[worst], what + ": [" + std::to_string(worst) + "]");
        for (const int threads : {2, 3}) {
            const std::vector<float> again = layer.run(isa, threads);
            check(std::memcmp(out.data(), again.data(), out.size() * sizeof(float)) == 0,
                  what + ": the same bits with " + std::to_string(threads) + " threads");
        }
    }
}

// Few rows, a panel, one row more than a panel, several row blocks of every kernel; K and N that are multiples of nothing.
void test_regimes() {
    Random random(1);
    constexpr int64_t sides[][2] = {{17, 40}, {33, 100}, {70, 257}, {15, 64}, {48, 530}, {1, 7}};
    for (const AnyKind& kind : all_kinds()) {
        for (const int64_t M : {1, 4, 5, 16, 17, 40}) {
            const auto& [N, K] = sides[random.integer(0, 5)];
            const AnyWeight w(kind, N, K, random.bits());
            check_layer(Layer(w, M, kDTypes[random.integer(0, 2)], random.bits()));
        }
    }
}

// Enough work for threads that share rows and strips, and more rows than a slab has.
void test_large() {
    Random random(2);
    for (const AnyKind& kind : {AnyKind{FormatId::int4, f16, false, 32, Activations::int8_group},
                                AnyKind{FormatId::int8, f32, false, 32, Activations::int8_group}}) {
        const AnyWeight wide(kind, 515, 1030, random.bits()), narrow(kind, 20, 70, random.bits());
        for (const int64_t M : {3, 18}) check_layer(Layer(wide, M, DType::bf16, random.bits()));
        check_layer(Layer(narrow, 2048 + 3, DType::f32, random.bits()));
    }
}

// The point of it: beside an outlier a row of small numbers keeps its accuracy in every other group.
void test_outlier() {
    const int64_t N = 40, K = 512, M = 6;
    for (const FormatId format : {FormatId::int8, FormatId::int4}) {
        const AnyWeight grouped({format, f32, false, 64, Activations::int8_group}, N, K, 3);
        const AnyWeight by_row({format, f32, false, 64, Activations::int8}, N, K, 3);
        double error[2] = {};
        for (int i = 0; i < 2; ++i) {
            const AnyWeight& w = i == 0 ? grouped : by_row;
            Layer layer(w, M, DType::f32, 4);
            Random random(5);
            fill(layer.x, random);
            for (int64_t m = 0; m < M; ++m) layer.x.set(m * layer.x_stride + 100, 1000.0);
            const std::vector<float> out = layer.run(isa_active(), 1);
            for (int64_t j = 0; j < M * N; ++j) {
                double exact = layer.bias.get(j % N);
                for (int64_t k = 0; k < K; ++k)
                    exact += layer.x.get(j / N * layer.x_stride + k) * w.dense[static_cast<size_t>(j % N * K + k)];
                error[i] += std::pow(static_cast<double>(out[static_cast<size_t>(j)]) - std::max(exact, 0.0), 2);
            }
        }
        // One group of eight keeps the coarse steps.
        check(std::sqrt(error[0]) < 0.5 * std::sqrt(error[1]), std::string(name(format)) + ": an outlier costs its own group only");
    }
}

// A NaN or an infinity in any group makes the whole row of the output NaN, and no other row.
void test_special_rows() {
    for (const AnyKind& kind : all_kinds()) {
        for (const int64_t M : {4, 20}) {
            const AnyWeight w(kind, 40, 330, 6);
            Layer layer(w, M, DType::f32, 7);
            const std::vector<double> specials = {std::nan(""), HUGE_VAL, -HUGE_VAL};
            for (int64_t m = 0; m < 3; ++m) layer.x.set(m * layer.x_stride + 329 - 120 * m, specials[static_cast<size_t>(m)]);
            for (const Isa isa : available_isas()) {
                const std::vector<float> out = layer.run(isa, 2);
                const auto is_nan = [](float y) { return std::isnan(y); };
                const std::string what = std::string(isa_name(isa)) + ": " + layer.text();
                check(std::all_of(out.begin(), out.begin() + 3 * w.N, is_nan), what + ": rows with NaN or infinity are NaN");
                check(std::none_of(out.begin() + 3 * w.N, out.end(), is_nan), what + ": the other rows do not notice");
            }
        }
    }
}

void test_refusals() {
    check_throws<std::invalid_argument>([] { AnyWeight({FormatId::int4, f16, false, 0, Activations::int8_group}, 8, 64, 8); },
                                        "int4: activations: got int8-group, wanted int8 or exact");
    check_throws<std::invalid_argument>([] { AnyWeight({FormatId::int8, f32, false, 0, Activations::int8_group}, 8, 64, 8); },
                                        "int8: activations: got int8-group, wanted int8 or exact");
    // Bytes of a format that knows only exact activations.
    const std::vector<uint16_t> zeros(64);
    Guarded<uint8_t> bytes(bf16_layout(1, 64).size_bytes);
    bf16_pack(zeros.data(), bf16_layout(1, 64), bytes.data(), 1);
    for (const Activations wrong : {Activations::int8, Activations::int8_group}) {
        std::memcpy(bytes.data() + offsetof(PackedHeader, activations), &wrong, sizeof wrong);
        check_throws<std::invalid_argument>([&] { weight_view(bytes.data(), bytes.size()); },
                                            std::string("bf16: activations: got ") + name(wrong) + ", wanted exact");
    }
    // Rows that have one scale each.
    class OneScale final : public RowSource {
        void fill(const Target&) const override {}
    };
    const AnyWeight w({FormatId::int4, f16, false, 32, Activations::int8_group}, 8, 64, 9);
    const Weight packed = w.view();
    check_throws<std::invalid_argument>([&] { product({OneScale(), 2, packed, Lane::s8, {}, 1, Isa::scalar}); },
                                        "got activations int8-group, wanted int8 or exact");
}

}  // namespace
}  // namespace gossamer::test

int main() {
    using namespace gossamer::test;
    if (!gossamer::isa_available(gossamer::s8_list().back()->isa)) return kSkipped;
    test_regimes();
    test_large();
    test_outlier();
    test_special_rows();
    test_refusals();
    return finish();
}
