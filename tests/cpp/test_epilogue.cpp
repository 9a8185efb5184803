// The epilogue of every ISA: activations against fp64, rounding to the output's dtype exhaustively, tails and strides.
#include <limits>
#include <string>
#include <vector>

#include "bounds.h"
#include "check.h"
#include "dispatch/lists.h"
#include "values.h"

namespace gossamer::test {
namespace {

constexpr Activation kActivations[] = {Activation::none, Activation::relu, Activation::gelu, Activation::gelu_tanh, Activation::silu};
const char* const kActivationNames[] = {"none", "relu", "gelu", "gelu_tanh", "silu"};

template <class Body>
void for_each_kernel(const Body& body) {
    for (const EpilogueKernels* kernel : epilogue_list()) {
        if (isa_available(kernel->isa)) body(*kernel, std::string(isa_name(kernel->isa)));
    }
}

// Sends values through finish_f32 unscaled: out[i] = activation(x[i]) in the dtype. The bias is -0, which changes nothing.
Values apply(const EpilogueKernels& kernel, const std::vector<float>& x, Activation activation, DType dtype) {
    const int64_t M = (static_cast<int64_t>(x.size()) + kStripColumns - 1) / kStripColumns;
    Guarded<float> sum(M * kStripColumns), row_scale(M), column_scale(kStripColumns), bias(kStripColumns);
    for (int64_t i = 0; i < sum.size(); ++i) sum[i] = i < static_cast<int64_t>(x.size()) ? x[static_cast<size_t>(i)] : 0.0f;
    for (float& s : row_scale) s = 1.0f;
    for (float& s : column_scale) s = 1.0f;
    for (float& b : bias) b = -0.0f;
    Values out(dtype, M * kStripColumns);
    kernel.finish_f32(
        {M, kStripColumns, row_scale.data(), column_scale.data(), bias.data(), nullptr, 0, activation, out.data(), dtype, kStripColumns},
        sum.data());
    return out;
}

// A sample of all finite floats, of both signs and every exponent.
std::vector<float> sample_of_floats(uint32_t step) {
    std::vector<float> x;
    for (uint64_t bits = 0; bits < uint64_t{1} << 32; bits += step) {
        const float value = bits_float(static_cast<uint32_t>(bits));
        if (std::isfinite(value)) x.push_back(value);
    }
    return x;
}

void test_activations() {
    std::vector<float> x = sample_of_floats(16381);
    for (int i = -4096; i <= 4096; ++i) x.push_back(static_cast<float>(i) / 256.0f);  // where the shape is
    for_each_kernel([&](const EpilogueKernels& kernel, const std::string& isa) {
        for (const Activation activation : kActivations) {
            const Values out = apply(kernel, x, activation, DType::f32);
            for (size_t i = 0; i < x.size(); ++i) {
                const double z = x[i], wanted = reference::activate(activation, z);
                const double bound = activation_bound(activation, z) + rounding_bound(DType::f32, wanted);
                const double got = out.get(static_cast<int64_t>(i));
                if (std::fabs(got - wanted) <= bound) continue;
                check_near(got, wanted, bound, isa + ": " + kActivationNames[static_cast<int>(activation)] + "(" + std::to_string(z) + ")");
            }
            check(true, isa + ": activations");
        }
    });
}

void test_nan_stays_nan() {
    std::vector<float> x;
    for (int i = 0; i < 40; ++i) x.push_back(bits_float(i % 2 == 0 ? 0x7fc00000 : 0xff800001));
    for_each_kernel([&](const EpilogueKernels& kernel, const std::string& isa) {
        for (const Activation activation : kActivations) {
            for (const DType dtype : kDTypes) {
                const Values out = apply(kernel, x, activation, dtype);
                for (int64_t i = 0; i < 40; ++i) {
                    check(std::isnan(out.get(i)),
                          isa + ": " + kActivationNames[static_cast<int>(activation)] + ": NaN in " + dtype_name(dtype));
                }
            }
        }
    });
}

// Every value of a 16-bit type, the tie between it and the next, and the floats on either side of the tie.
void test_rounding(DType dtype) {
    std::vector<float> x;
    for (uint32_t bits = 0; bits < 65536; ++bits) {
        Values pair(dtype, 2);
        pair.set_bits(0, static_cast<uint16_t>(bits));
        pair.set_bits(1, static_cast<uint16_t>(bits + 1));
        const double low = pair.get(0), high = pair.get(1);
        x.push_back(static_cast<float>(low));
        if (!std::isfinite(low) || !std::isfinite(high)) continue;
        const float tie = static_cast<float>((low + high) / 2);
        for (const float value : {tie, std::nextafterf(tie, HUGE_VALF), std::nextafterf(tie, -HUGE_VALF)}) x.push_back(value);
    }
    // Around the step to infinity, and beyond.
    for (const float edge : {65504.0f, 65519.996f, 65520.0f, 65536.0f, 3.3895314e38f, 3.3961775e38f, 3.4028235e38f, HUGE_VALF}) {
        x.push_back(edge);
        x.push_back(-edge);
    }
    for_each_kernel([&](const EpilogueKernels& kernel, const std::string& isa) {
        const Values out = apply(kernel, x, Activation::none, dtype);
        std::vector<uint16_t> got, wanted;
        for (size_t i = 0; i < x.size(); ++i) {
            if (std::isnan(x[i])) continue;
            got.push_back(out.bits(static_cast<int64_t>(i)));
            wanted.push_back(dtype == DType::bf16 ? reference::to_bf16(x[i]) : reference::to_f16(x[i]));
        }
        check_equal(got.data(), wanted.data(), static_cast<int64_t>(got.size()), isa + ": rounding to " + dtype_name(dtype));
    });
}

// One tile with everything in it; `sums` integers go through finish_s32, or as floats through finish_f32.
void check_tile(const EpilogueKernels& kernel, const std::string& isa, int64_t M, int64_t N, bool with_addend, DType dtype,
                Activation activation, Random& random) {
    const int64_t out_stride = N + 3, addend_stride = N + 5;
    Guarded<int32_t> acc(M * kStripColumns);
    Guarded<float> sum(M * kStripColumns), row_scale(M), column_scale(kStripColumns), bias(kStripColumns),
        addend((M - 1) * addend_stride + N);
    for (int64_t i = 0; i < acc.size(); ++i) {
        acc[i] = static_cast<int32_t>(random.integer(-2000000000, 2000000000));
        sum[i] = static_cast<float>(acc[i]);
    }
    for (float& s : row_scale) s = static_cast<float>(std::fabs(random.uniform()));
    for (float& s : column_scale) s = static_cast<float>(std::fabs(random.uniform()) * 1e-8);
    for (float& b : bias) b = static_cast<float>(random.uniform());
    for (float& a : addend) a = static_cast<float>(random.uniform());
    for (const bool integers : {true, false}) {
        Values out(dtype, (M - 1) * out_stride + N);
        const Values untouched(dtype, out.count);
        const FinishTile tile{M,
                              N,
                              row_scale.data(),
                              column_scale.data(),
                              bias.data(),
                              with_addend ? addend.data() : nullptr,
                              addend_stride,
                              activation,
                              out.data(),
                              dtype,
                              out_stride};
        integers ? kernel.finish_s32(tile, acc.data()) : kernel.finish_f32(tile, sum.data());
        const std::string what = isa + ": " + kActivationNames[static_cast<int>(activation)] + " " + dtype_name(dtype) + " " +
                                 std::to_string(M) + " x " + std::to_string(N);
        for (int64_t i = 0; i < out.count; ++i) {
            const int64_t m = i / out_stride, n = i % out_stride;
            if (n >= N) {
                check(std::memcmp(out.at(i), untouched.at(i), static_cast<size_t>(size_bytes(dtype))) == 0, what + ": wrote between rows");
                continue;
            }
            const double part = static_cast<double>(acc[m * kStripColumns + n]) * column_scale[n] * row_scale[m];
            const double plus = with_addend ? addend[m * addend_stride + n] : 0.0f;
            const reference::Preactivation z{part + bias[n] + plus, std::fabs(part) + std::fabs(bias[n]) + std::fabs(plus)};
            check_near(out.get(i), reference::activate(activation, z.value), output_bound(z, 4, activation, dtype), what);
        }
    }
}

void test_tiles() {
    Random random(1);
    for_each_kernel([&](const EpilogueKernels& kernel, const std::string& isa) {
        for (int64_t N = 1; N <= kStripColumns; ++N) {
            for (const DType dtype : kDTypes) {
                for (const Activation activation : kActivations) {
                    check_tile(kernel, isa, 1 + N % 3, N, N % 2 == 0, dtype, activation, random);
                    check_tile(kernel, isa, 1, N, N % 2 == 1, dtype, activation, random);
                }
            }
        }
    });
}

void test_scale_add() {
    Random random(2);
    for_each_kernel([&](const EpilogueKernels& kernel, const std::string& isa) {
        for (const int64_t columns : {16, 32}) {
            const int64_t M = 5;
            Guarded<int32_t> acc(M * kStripColumns);
            const int64_t stride = 3;  // of the row scales
            Guarded<float> sum(M * kStripColumns), scale(columns), row_scale((M - 1) * stride + 1);
            for (int32_t& a : acc) a = static_cast<int32_t>(random.integer(-1000000, 1000000));
            for (float& s : scale) s = static_cast<float>(random.uniform());
            for (float& s : row_scale) s = static_cast<float>(random.uniform());
            for (const float* rows : {static_cast<const float*>(nullptr), static_cast<const float*>(row_scale.data())}) {
                kernel.scale_add({M, columns, acc.data(), scale.data(), rows, stride, true, sum.data()});
                kernel.scale_add({M, columns, acc.data(), scale.data(), rows, stride, false, sum.data()});
                for (int64_t i = 0; i < sum.size(); ++i) {
                    if (i % kStripColumns >= columns) continue;
                    const double by_row = rows == nullptr ? 1.0 : static_cast<double>(rows[i / kStripColumns * stride]);
                    const double once = static_cast<double>(acc[i]) * static_cast<double>(scale[i % kStripColumns]) * by_row;
                    check_near(sum[i], 2 * once, 5 * kHalfUlp * std::fabs(2 * once), isa + ": scale_add");
                }
            }
        }
    });
}

// The scales are as far apart as they get; the output is an ordinary number.
void test_scales_far_apart() {
    for_each_kernel([&](const EpilogueKernels& kernel, const std::string& isa) {
        Guarded<int32_t> acc(kStripColumns);
        Guarded<float> row_scale(1), column_scale(kStripColumns), bias(kStripColumns);
        for (int64_t n = 0; n < kStripColumns; ++n) acc[n] = n % 2 == 0 ? 0 : 1000, column_scale[n] = 1e30f, bias[n] = 1.0f;
        row_scale[0] = 1e-30f;
        Values out(DType::f32, kStripColumns);
        kernel.finish_s32({1, kStripColumns, row_scale.data(), column_scale.data(), bias.data(), nullptr, 0, Activation::none, out.data(),
                           DType::f32, kStripColumns},
                          acc.data());
        for (int64_t n = 0; n < kStripColumns; ++n) check_near(out.get(n), n % 2 == 0 ? 1.0 : 1001.0, 2e-4, isa + ": scales far apart");
    });
}

}  // namespace
}  // namespace gossamer::test

int main() {
    using namespace gossamer::test;
    test_activations();
    test_nan_stays_nan();
    test_rounding(gossamer::DType::bf16);
    test_rounding(gossamer::DType::f16);
    test_tiles();
    test_scale_add();
    test_scales_far_apart();
    return finish();
}
