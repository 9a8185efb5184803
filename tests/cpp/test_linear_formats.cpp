// Whole layers of every format, with int8 and with exact activations, against fp64: within the bounds of linear.h, the same bits for every
// thread count, on every ISA.
#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "bounds.h"
#include "check.h"
#include "dispatch/lists.h"
#include "linear_layer.h"

namespace gossamer::test {
namespace {

// With a list of one kernel (one_kernel.cpp) every ISA would run the same one; the scalar one has no u4 kernels to go around it.
std::vector<Isa> available_isas() {
    if (s8_list().size() == 1 && isa_active() != Isa::scalar) return {isa_active(), Isa::scalar};
    if (s8_list().size() == 1 || bf16_list().size() == 1) return {isa_active()};
    std::vector<Isa> isas;
    for (int i = 0; i < kIsaCount; ++i) {
        if (isa_available(static_cast<Isa>(i))) isas.push_back(static_cast<Isa>(i));
    }
    return isas;
}

using Layer = LinearLayer<AnyWeight>;

LayerOptions some_options(Random& random) {
    const auto dtype = [&] { return kDTypes[random.integer(0, 2)]; };
    return {dtype(),
            dtype(),
            random.integer(0, 2) > 0,
            random.integer(0, 1) > 0,
            dtype(),
            static_cast<Activation>(random.integer(0, kActivationCount - 1))};
}

// The numbers that stand for row m of x.
std::vector<double> row_of(const Layer& layer, int64_t m) {
    const int64_t K = layer.weight.K, first = m * layer.x_stride;
    std::vector<double> row;
    if (layer.weight.kind.activations == Activations::exact) {
        for (int64_t k = 0; k < K; ++k) row.push_back(layer.x.get(first + k));
        return row;
    }
    const float input_scale = layer.weight.kind.input_scale;
    const reference::QuantizedRow quantized = input_scale > 0
                                                  ? reference::quantize_row_with(input_scale, layer.x.at(first), layer.options.x_dtype, K)
                                                  : reference::quantize_row(layer.x.at(first), layer.options.x_dtype, K);
    for (const int8_t q : quantized.q) row.push_back(q * static_cast<double>(quantized.scale));
    return row;
}

struct Expected {
    std::vector<double> value;
    std::vector<double> bound, requantized_bound;  // with exact groups, and with one step per column
};

Expected expected_output(const Layer& layer) {
    const AnyWeight& w = layer.weight;
    const LayerOptions& o = layer.options;
    const bool exact = w.kind.activations == Activations::exact;
    // Roundings of fp32: of a float lane two per product, of the s8 lane two per group; then the epilogue's.
    const int64_t groups = w.kind.G == 0 ? 1 : (w.K + w.kind.G - 1) / w.kind.G, roundings = 5 + 2 * (exact ? w.K : groups);
    // The bf16 lane rounds what is expanded to it, unless every value is a bf16.
    const double rounded =
        exact && o.x_dtype == DType::bf16 && w.kind.format != FormatId::bf16 && w.kind.format != FormatId::sparse_f32 ? 0x1p-8 : 0;
    Expected e;
    for (int64_t m = 0; m < layer.M; ++m) {
        const std::vector<double> row = row_of(layer, m);
        double size = 0;
        for (const double x : row) size += std::fabs(x);
        for (int64_t n = 0; n < w.N; ++n) {
            const double bias = o.bias ? layer.bias.get(n) : 0, addend = o.addend ? layer.addend[m * layer.addend_stride + n] : 0.0f;
            reference::Preactivation z = reference::preactivation(row.data(), w.dense.data() + n * w.K, w.K, bias, addend);
            e.value.push_back(reference::activate(o.activation, z.value));
            const double per_rounding = static_cast<double>(roundings) * kHalfUlp;
            z.magnitude += rounded / per_rounding * z.magnitude;
            e.bound.push_back(output_bound(z, roundings, o.activation, o.out_dtype));
            z.magnitude += size * w.step[static_cast<size_t>(n)] / 2 * 1.01 / per_rounding;
            e.requantized_bound.push_back(output_bound(z, roundings, o.activation, o.out_dtype));
        }
    }
    return e;
}

// Few rows are multiplied from the codes, with exact groups; more, and those of codebooks that no kernel takes, from strips.
bool requantizes(const Layer& layer, Isa isa) {
    if (layer.weight.kind.format == FormatId::sparse_int4) return layer.weight.kind.activations != Activations::exact;
    if (!layer.weight.kind.four_bit() || layer.weight.kind.activations == Activations::exact) return false;
    const U4Kernels* u4 = find_kernels(u4_list(), isa);
    const auto& values = codebook(layer.weight.kind.format).s8;
    if (u4 == nullptr || *std::max_element(std::begin(values), std::end(values)) > u4->max_value) return true;
    return layer.M > (isa == Isa::amx ? kPanelRows : u4->max_rows);
}

// All ISAs and thread counts on one layer.
void check_layer(const Layer& layer) {
    const Expected wanted = expected_output(layer);
    for (const Isa isa : available_isas()) {
        const std::string what = std::string(isa_name(isa)) + ": " + layer.text();
        const Values first = layer.run(isa, 1);
        check_output(layer, wanted.value, requantizes(layer, isa) ? wanted.requantized_bound : wanted.bound, first, what);
        check_threads(layer, isa, first, what);
    }
}

std::vector<AnyKind> all_kinds() {
    constexpr ScaleType f32 = ScaleType::f32, f16 = ScaleType::f16, bf16 = ScaleType::bf16;
    std::vector<AnyKind> kinds = {{FormatId::int8},
                                  {FormatId::int8, f32, false, 32},
                                  {FormatId::bf16},
                                  {FormatId::fp8_e4m3},
                                  {FormatId::fp8_e5m2},
                                  {FormatId::fp8_e4m3, f32, false, 128},
                                  {FormatId::fp8_e5m2, f32, false, 128}};
    const Activations int8 = Activations::int8;
    kinds.push_back({FormatId::int8, f32, false, 0, int8});
    for (const Activations activations : {int8, Activations::exact}) {
        kinds.push_back({FormatId::int4, f16, false, 128, activations});
        kinds.push_back({FormatId::int4, f32, false, 16, activations});
        kinds.push_back({FormatId::int4, bf16, true, 32, activations});
        kinds.push_back({FormatId::int4, f32, true, 0, activations});
        kinds.push_back({FormatId::nf4, bf16, false, 64, activations});
        kinds.push_back({FormatId::nf4, f32, false, 0, activations});
        kinds.push_back({FormatId::fp4, f16, false, 256, activations});
        kinds.push_back({FormatId::mxfp4, ScaleType::e8m0, false, 32, activations});
        kinds.push_back({FormatId::sparse_int8, f32, false, 0, activations});
        kinds.push_back({FormatId::sparse_int8, f32, false, 32, activations, false, kPartBitmask, SparsePattern::b1x4});
        kinds.push_back({FormatId::sparse_int4, f16, false, 64, activations});
        kinds.push_back({FormatId::sparse_int4, f32, false, 0, activations, false, kPartBitmask, SparsePattern::b16x1});
    }
    kinds.push_back({FormatId::sparse_int8, f32, false, 0, int8, false, kPartSpmm});
    kinds.push_back({FormatId::sparse_bf16});
    for (const uint8_t parts : {kPartBitmask, kPartSpmm})
        kinds.push_back({FormatId::sparse_f32, f32, false, 0, Activations::exact, false, parts});
    return kinds;
}

// Every kind with every number of rows, and another choice of everything else.
void test_shapes() {
    Random random(1);
    constexpr int64_t sides[][2] = {{1, 1}, {17, 40}, {33, 100}, {70, 257}, {15, 64}, {48, 430}, {32, 320}};
    for (const AnyKind& kind : all_kinds()) {
        for (const int64_t M : {0, 1, 2, 4, 5, 16, 17, 33, 64, 130}) {
            const auto& [N, K] = sides[random.integer(0, 6)];
            const AnyWeight w(kind, N, K, random.bits());
            check_layer(Layer(w, M, some_options(random), random.bits()));
        }
    }
}

// bf16 x on exact activations: the bf16 lane where the ISA has it.
void test_bf16_lane() {
    Random random(2);
    for (const AnyKind& kind : all_kinds()) {
        if (kind.activations == Activations::int8) continue;
        for (const int64_t M : {3, 35}) {
            const AnyWeight w(kind, 17, 530, random.bits());
            check_layer(Layer(w, M, {DType::bf16, DType::f32, true, false, DType::f32, Activation::none}, random.bits()));
            const bool has = kind.format != FormatId::sparse_f32 && find_kernels(bf16_list(), isa_active()) != nullptr;
            check((lane_of(w.view(), DType::bf16, isa_active()) == Lane::bf16) == has, kind.text() + ": lane of bf16");
            check(lane_of(w.view(), DType::f16, isa_active()) == Lane::f32, kind.text() + ": lane of f16");
        }
    }
}

// Strips that keep exact groups: the kernels over all groups at once, and group by group where there are none.
void test_exact_groups() {
    Random random(3);
    for (const FormatId format : {FormatId::int4, FormatId::nf4, FormatId::fp4}) {
        for (const int64_t G : {16, 32, 64}) {
            const AnyKind kind{format, ScaleType::f32, format == FormatId::int4 && G != 32, G, Activations::int8, true};
            for (const int64_t M : {1, 17, 130}) {
                const AnyWeight w(kind, 37, 12 * G + 21, random.bits());
                check_layer(Layer(w, M, {}, random.bits()));
            }
        }
    }
}

// Enough work for every thread count, and more than one slab, row block and block of K.
void test_large() {
    Random random(4);
    for (const AnyKind& kind : all_kinds()) {
        if (kind.G != 0 && kind.G != 16 && kind.format != FormatId::fp8_e4m3) continue;
        const AnyWeight wide(kind, 515, 1030, random.bits()), narrow(kind, 20, 40, random.bits());
        check_layer(Layer(wide, random.integer(1, 4), {DType::bf16, DType::f32}, random.bits()));
        if (kind.G == 0) check_layer(Layer(narrow, 2048 + 3, {DType::bf16, DType::bf16}, random.bits()));
    }
    const AnyKind int4{FormatId::int4, ScaleType::f16, false, 32, Activations::int8}, exact{FormatId::int4, ScaleType::f16, false, 32};
    for (const AnyKind& kind : {int4, exact}) check_layer(Layer(AnyWeight(kind, 100, 1100, 5), 150, {DType::bf16, DType::f32}, 6));
}

// More than 65,536 k: sums of one int32 block after another.
void test_long_k() {
    const ScaleType f32 = ScaleType::f32;
    for (const AnyKind& kind : {AnyKind{FormatId::int4, f32, false, 0, Activations::int8},
                                {FormatId::int4, f32, true, 256, Activations::int8},
                                {FormatId::nf4, f32, false, 64, Activations::int8, true},
                                {FormatId::int4, f32, false, 64}}) {
        const AnyWeight w(kind, 3, kMaxSumK + 130, 7);
        for (const int64_t M : {2, 18}) check_layer(Layer(w, M, {}, 8));
    }
}

// One group whose sums are all of one sign and too large for int32, in whatever way it is multiplied.
void test_sums_beyond_int32() {
    constexpr int64_t K = 140000;  // 127 * 127 * K > 2^31
    RandomFourBitWeight w({FormatId::nf4, ScaleType::f32}, 2, K, 0, 11);
    std::fill(w.codes.begin(), w.codes.end(), 15);  // of value 1
    w.pack();
    const std::vector<float> x(static_cast<size_t>(2 * K), 1.0f);
    const Weight packed = weight_view(w.packed.data(), w.packed.size());
    for (const Isa isa : available_isas()) {
        float out[4];
        Epilogue epilogue;
        epilogue.out = out;
        epilogue.out_row_stride = 2;
        linear({x.data(), DType::f32, 2, K, packed, epilogue, 2, isa});
        for (int i = 0; i < 4; ++i) {
            const double wanted = static_cast<double>(K) * w.scale(i % 2, 0);
            check_near(static_cast<double>(out[i]), wanted, wanted * 8 * kHalfUlp, std::string(isa_name(isa)) + ": sums beyond int32");
        }
    }
}

// NaN and infinity in x: what IEEE makes of exact sums, a row of NaN where x is rounded; the other rows do not notice.
void check_special_rows(const AnyKind& kind, int64_t M, DType x_dtype) {
    const AnyWeight w(kind, 40, 130, 9);
    Layer layer(w, M, {x_dtype, DType::f32, true, true}, 10);
    const double specials[] = {std::nan(""), HUGE_VAL, -HUGE_VAL};
    for (int64_t m = 0; m < 3; ++m) layer.x.set(m * layer.x_stride + 129 - 64 * m, specials[m]);
    for (int64_t k = 0; k < w.K; ++k) layer.x.set(3 * layer.x_stride + k, 0);
    const Expected wanted = expected_output(layer);
    for (const Isa isa : available_isas()) {
        const Values out = layer.run(isa, 2);
        const std::string what = std::string(isa_name(isa)) + ": " + layer.text();
        int64_t wrong = 0, noticed = 0;
        for (int64_t i = 0; i < M * w.N; ++i) {
            const double got = out.get(i / w.N * layer.out_stride + i % w.N), value = wanted.value[static_cast<size_t>(i)];
            const double bound = (requantizes(layer, isa) ? wanted.requantized_bound : wanted.bound)[static_cast<size_t>(i)];
            if (i / w.N < 3) {
                const bool nan = std::isnan(value) || kind.parts == kPartSpmm;  // skipping zeros gives such rows up (spmm.h)
                wrong += nan ? !std::isnan(got) : got != value;
            } else {
                noticed += !(std::fabs(got - value) <= bound);
            }
        }
        check(wrong == 0, what + ": " + std::to_string(wrong) + " outputs of rows with NaN or infinity");
        check(noticed == 0, what + ": the other rows do not notice");
    }
}

void test_special_rows() {
    for (const AnyKind& kind : all_kinds()) {
        for (const DType x_dtype : {DType::f32, DType::bf16}) {
            for (const int64_t M : {4, 70}) check_special_rows(kind, M, x_dtype);
        }
    }
}

// One scale for all rows, in every kind that rounds x. x is in [-4, 4): of the two scales the second clamps three quarters of it.
void test_input_scale() {
    Random random(12);
    for (AnyKind kind : all_kinds()) {
        if (kind.activations != Activations::int8) continue;
        for (const int64_t M : {1, 2, 5, 16, 17, 33, 70}) {
            kind.input_scale = M % 2 == 0 ? 4.0f / 127 : 1.0f / 127;
            const AnyWeight w(kind, 33, 130 + M, random.bits());
            check_layer(Layer(w, M, some_options(random), random.bits()));
        }
        for (const DType x_dtype : {DType::f32, DType::bf16}) check_special_rows(kind, 20, x_dtype);
    }
}

}  // namespace
}  // namespace gossamer::test

int main() {
    using namespace gossamer::test;
    if (!gossamer::isa_available(gossamer::s8_list().back()->isa)) return kSkipped;
    test_shapes();
    test_bf16_lane();
    test_exact_groups();
    test_large();
    test_long_k();
    test_sums_beyond_int32();
    test_special_rows();
    test_input_scale();
    return finish();
}
