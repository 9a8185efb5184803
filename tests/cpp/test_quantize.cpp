// The row quantizer of every ISA, bit for bit against the reference.
#include <limits>
#include <string>

#include "check.h"
#include "dispatch/lists.h"
#include "values.h"

namespace gossamer::test {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity(), kNan = std::numeric_limits<double>::quiet_NaN();

// x [M, K], rows `stride` apart and nothing behind the last one.
struct Input {
    int64_t M, K, stride;
    Values x;
    Input(DType dtype, int64_t rows, int64_t k, int64_t row_stride)
        : M(rows), K(k), stride(row_stride), x(dtype, (rows - 1) * row_stride + k) {}
};

// Rows [first, last) of the input, quantized by one kernel into panels of R rows, with scales of their own or the input scale.
void check_rows(const QuantizeKernels& kernel, const Input& in, int64_t R, int64_t first, int64_t last, const std::string& name,
                float input_scale = 0) {
    const int64_t K64 = padded_k(in.K);
    Guarded<uint8_t> panels((in.M + R - 1) / R * R * K64);
    Guarded<float> scale(in.M);
    kernel.run({in.x.bytes(), in.x.dtype, in.stride, first, last, in.K, R, panels.data(), scale.data(), 0, input_scale});
    const std::string what = std::string(isa_name(kernel.isa)) + ": " + name + ": " + dtype_name(in.x.dtype) + " " + std::to_string(in.M) +
                             " x " + std::to_string(in.K) + ", stride " + std::to_string(in.stride) + ", R = " + std::to_string(R);
    for (int64_t m = 0; m < in.M; ++m) {
        const uint8_t* row = in.x.at(m * in.stride);
        const reference::QuantizedRow wanted = input_scale > 0 ? reference::quantize_row_with(input_scale, row, in.x.dtype, in.K)
                                                               : reference::quantize_row(row, in.x.dtype, in.K);
        const bool written = m >= first && m < last;
        const uint32_t scale_bits = written ? float_bits(wanted.scale) : 0xa5a5a5a5;
        check(float_bits(scale[m]) == scale_bits, what + ": scale of row " + std::to_string(m));
        std::vector<uint8_t> got, expected;
        for (int64_t k = 0; k < K64; ++k) {
            got.push_back(panels[m / R * R * K64 + (k / kChunk * R + m % R) * kChunk + k % kChunk]);
            const int q = k < in.K ? wanted.q[static_cast<size_t>(k)] : 0;
            expected.push_back(static_cast<uint8_t>(written ? q + 128 : 0xa5));
        }
        check_equal(got.data(), expected.data(), K64, what + ": row " + std::to_string(m));
    }
}

void check_input(const Input& in, int64_t R, const std::string& name, float input_scale = 0) {
    for (const QuantizeKernels* kernel : quantize_list()) {
        if (isa_available(kernel->isa)) check_rows(*kernel, in, R, 0, in.M, name, input_scale);
    }
}

void test_tails_and_strides() {
    Random random(1);
    for (const DType dtype : kDTypes) {
        for (const int64_t K : {1, 2, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 200, 517, 1024}) {
            for (const int64_t M : {1, 3, 16, 17}) {
                Input in(dtype, M, K, M == 3 ? K + 13 : K);
                fill(in.x, random, 3.0);
                check_input(in, std::min(M, kPanelRows), "random");
            }
        }
    }
}

// A thread gets part of the rows and must leave the others alone.
void test_part_of_the_rows() {
    Random random(2);
    Input in(DType::f32, 37, 100, 101);
    fill(in.x, random);
    for (const QuantizeKernels* kernel : quantize_list()) {
        if (isa_available(kernel->isa)) check_rows(*kernel, in, kPanelRows, 5, 34, "part");
    }
}

// One special value in every position of a row that has a vector part and a tail.
void test_special_values() {
    Random random(3);
    const int64_t K = 75;
    for (const DType dtype : kDTypes) {
        for (const double special : {kNan, -kNan, kInfinity, -kInfinity, 0.0, -0.0, 60000.0}) {
            Input in(dtype, K, K, K);
            fill(in.x, random);
            for (int64_t m = 0; m < K; ++m) in.x.set(m * K + m, special);
            check_input(in, kPanelRows, "special " + std::to_string(special));
        }
        Input zeros(dtype, 2, K, K);
        for (int64_t i = 0; i < K; ++i) zeros.x.set(i, 0.0), zeros.x.set(K + i, -0.0);
        check_input(zeros, 2, "zeros");
    }
}

// Rows of every magnitude, denormals included.
void test_magnitudes() {
    Random random(4);
    const int64_t K = 70;
    for (const DType dtype : {DType::f32, DType::bf16}) {
        Input in(dtype, 277, K, K);
        for (int64_t m = 0; m < in.M; ++m) {
            for (int64_t k = 0; k < K; ++k) in.x.set(m * K + k, std::ldexp(random.uniform(), static_cast<int>(m) - 149));
        }
        check_input(in, kPanelRows, "magnitudes");
    }
    Input in(DType::f16, 42, K, K);
    for (int64_t m = 0; m < in.M; ++m) {
        for (int64_t k = 0; k < K; ++k) in.x.set(m * K + k, std::ldexp(random.uniform(), static_cast<int>(m) - 25));
    }
    check_input(in, kPanelRows, "magnitudes");
}

// With amax = 127 the quotient is exact: every half is a tie.
void test_ties() {
    for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
        Input in(dtype, 1, 508, 508);
        for (int64_t k = 0; k < in.K; ++k) in.x.set(k, static_cast<double>(k - 254) / 2);
        check_input(in, 1, "ties");
        const reference::QuantizedRow row = reference::quantize_row(in.x.bytes(), dtype, in.K);
        check(row.scale == 1.0f && row.q[255] == 0 && row.q[257] == 2 && row.q[251] == -2, "the reference rounds ties to even");
    }
}

// Every value of the 16-bit types, alone in its row, so that the scale shows how it was read.
void test_every_16_bit_value() {
    for (const DType dtype : {DType::bf16, DType::f16}) {
        Input in(dtype, 65536, 1, 1);
        for (int64_t m = 0; m < in.M; ++m) in.x.set_bits(m, static_cast<uint16_t>(m));
        for (const QuantizeKernels* kernel : quantize_list()) {
            if (!isa_available(kernel->isa)) continue;
            Guarded<uint8_t> panels(in.M * kChunk);
            Guarded<float> scale(in.M);
            kernel->run({in.x.bytes(), dtype, 1, 0, in.M, 1, kPanelRows, panels.data(), scale.data()});
            std::vector<uint32_t> got, wanted;
            for (int64_t m = 0; m < in.M; ++m) {
                got.push_back(float_bits(scale[m]));
                wanted.push_back(float_bits(reference::quantize_row(in.x.at(m), dtype, 1).scale));
            }
            check_equal(got.data(), wanted.data(), in.M, std::string(isa_name(kernel->isa)) + ": every " + dtype_name(dtype));
        }
    }
}

// |x - scale * q| <= scale / 2 and a little for the roundings of scale, inverse and product (each 127 * 2^-24 of a scale).
void test_error_bound() {
    Random random(5);
    for (const QuantizeKernels* kernel : quantize_list()) {
        if (!isa_available(kernel->isa)) continue;
        Input in(DType::f32, 64, 1000, 1000);
        fill(in.x, random, 1e3);
        Guarded<uint8_t> panels(in.M * padded_k(in.K));
        Guarded<float> scale(in.M);
        kernel->run({in.x.bytes(), in.x.dtype, in.stride, 0, in.M, in.K, 1, panels.data(), scale.data()});
        double worst = 0;
        for (int64_t i = 0; i < in.M * in.K; ++i) {
            const double s = scale[i / in.K], q = panels[i / in.K * padded_k(in.K) + i % in.K] - 128;
            worst = std::max(worst, std::fabs(in.x.get(i) - s * q) / s);
        }
        check_near(worst, 0.5, 3 * 127 * 0x1p-24, std::string(isa_name(kernel->isa)) + ": error in scales");
    }
}

// Each group of each row on its own, of rows [first, last); what belongs to other rows is left alone.
void check_groups(const QuantizeKernels& kernel, const Input& in, int64_t R, int64_t G, int64_t first, int64_t last) {
    const int64_t K64 = padded_k(in.K), groups = (K64 + G - 1) / G;
    Guarded<uint8_t> panels((in.M + R - 1) / R * R * K64);
    Guarded<float> scale(in.M * groups);
    kernel.run({in.x.bytes(), in.x.dtype, in.stride, first, last, in.K, R, panels.data(), scale.data(), G});
    const std::string what = std::string(isa_name(kernel.isa)) + ": " + dtype_name(in.x.dtype) + " " + std::to_string(in.M) + " x " +
                             std::to_string(in.K) + ", groups of " + std::to_string(G) + ", R = " + std::to_string(R);
    for (int64_t m = 0; m < in.M; ++m) {
        const bool written = m >= first && m < last;
        std::vector<uint8_t> got, expected;
        std::vector<uint32_t> scale_bits, wanted_bits;
        for (int64_t g = 0; g < groups; ++g) {
            const int64_t begin = std::min(g * G, in.K), end = std::min(begin + G, in.K);
            const reference::QuantizedRow wanted = reference::quantize_row(in.x.at(m * in.stride + begin), in.x.dtype, end - begin);
            scale_bits.push_back(float_bits(scale[m * groups + g]));
            wanted_bits.push_back(written ? float_bits(wanted.scale) : 0xa5a5a5a5);
            for (int64_t k = g * G; k < std::min(g * G + G, K64); ++k) {
                got.push_back(panels[m / R * R * K64 + (k / kChunk * R + m % R) * kChunk + k % kChunk]);
                const int q = k < in.K ? wanted.q[static_cast<size_t>(k - begin)] : 0;
                expected.push_back(static_cast<uint8_t>(written ? q + 128 : 0xa5));
            }
        }
        check_equal(scale_bits.data(), wanted_bits.data(), groups, what + ": scales of row " + std::to_string(m));
        check_equal(got.data(), expected.data(), K64, what + ": row " + std::to_string(m));
    }
}

constexpr int64_t kGroups[] = {16, 32, 64, 128, 256};

// Groups whose sizes differ by orders of magnitude.
void test_groups() {
    Random random(6);
    for (const DType dtype : kDTypes) {
        for (const int64_t G : kGroups) {
            for (const int64_t K : {1, 15, 16, 17, 33, 64, 100, 129, 250, 320, 517}) {
                const int64_t M = K % 2 == 0 ? 3 : 18;
                Input in(dtype, M, K, K + K % 3);
                fill(in.x, random);
                for (int64_t m = 0; m < M; ++m) {
                    for (int64_t k = 0; k < K; ++k) {
                        const int64_t i = m * in.stride + k;
                        in.x.set(i, std::ldexp(in.x.get(i), static_cast<int>((k / G * 5 + m) % 12)));
                    }
                }
                for (const QuantizeKernels* kernel : quantize_list()) {
                    if (isa_available(kernel->isa)) check_groups(*kernel, in, std::min(M, kPanelRows), G, M / 5, M);
                }
            }
        }
    }
}

// A NaN or an infinity marks its group and no other; so does a group of zeros, and one of tiny numbers.
void test_special_groups() {
    Random random(7);
    const int64_t K = 300;
    for (const DType dtype : kDTypes) {
        for (const int64_t G : kGroups) {
            for (const double special : {kNan, kInfinity, -kInfinity}) {
                Input in(dtype, 20, K, K);
                fill(in.x, random);
                for (int64_t m = 0; m < in.M; ++m) in.x.set(m * K + random.integer(0, K - 1), special);
                for (int64_t k = 0; k < K; ++k) {
                    if (k / G % 2 == 0) in.x.set(5 * K + k, 0.0);
                    if (k / G % 2 == 1) in.x.set(6 * K + k, std::ldexp(in.x.get(6 * K + k), dtype == DType::f16 ? -14 : -130));
                }
                for (const QuantizeKernels* kernel : quantize_list()) {
                    if (isa_available(kernel->isa)) check_groups(*kernel, in, kPanelRows, G, 0, in.M);
                }
            }
        }
    }
}

// One scale for all rows: tails, strides and part of the rows; the smaller one clamps most of x.
void test_input_scale() {
    Random random(8);
    for (const DType dtype : kDTypes) {
        for (const int64_t K : {1, 7, 16, 33, 64, 65, 129, 517}) {
            for (int64_t M = 1; M <= 33; M += M % 3 + 1) {
                Input in(dtype, M, K, K + M % 2 * 13);
                fill(in.x, random, 3.0);
                for (const float scale : {3.0f / 127, 0.004f}) check_input(in, std::min(M, kPanelRows), "input scale", scale);
            }
        }
    }
    Input in(DType::f32, 37, 100, 101);
    fill(in.x, random);
    for (const QuantizeKernels* kernel : quantize_list()) {
        if (isa_available(kernel->isa)) check_rows(*kernel, in, kPanelRows, 5, 34, "part", 0.01f);
    }
}

// A NaN or an infinity marks its row, in every position; zeros, the largest numbers and denormals are numbers as any other.
void test_special_values_with_input_scale() {
    Random random(9);
    const int64_t K = 75;
    for (const DType dtype : kDTypes) {
        for (const double special : {kNan, -kNan, kInfinity, -kInfinity, 0.0, -0.0, 60000.0, -60000.0, 0x1p-24, 0x1p-14}) {
            Input in(dtype, K, K, K);
            fill(in.x, random);
            for (int64_t m = 0; m < K; ++m) in.x.set(m * K + m, special);
            check_input(in, kPanelRows, "special " + std::to_string(special), 0.01f);
        }
    }
}

// Scales whose reciprocal is infinite, and the largest; rows of every magnitude, which overflow on the way.
void test_extreme_input_scales() {
    Random random(10);
    const int64_t K = 70;
    for (const float scale : {0x1p-149f, 0x1.8p-140f, 0x1p-126f, 0x1p-101f, 0x1p-100f, 0x1p-30f, 1.0f, 0x1p120f, 0x1.fffffep127f}) {
        for (const DType dtype : {DType::f32, DType::bf16}) {
            Input in(dtype, 277, K, K);
            for (int64_t m = 0; m < in.M; ++m) {
                for (int64_t k = 0; k < K; ++k) in.x.set(m * K + k, k == 3 ? 0.0 : std::ldexp(random.uniform(), static_cast<int>(m) - 149));
            }
            check_input(in, kPanelRows, "scale " + std::to_string(std::log2(scale)), scale);
        }
    }
}

// Halves are ties, and +-127.5 and beyond are clamped.
void test_ties_with_input_scale() {
    for (const DType dtype : kDTypes) {
        Input in(dtype, 1, 528, 528);
        for (int64_t k = 0; k < in.K; ++k) in.x.set(k, static_cast<double>(k - 264) / 4);
        check_input(in, 1, "ties", 0.5f);
        const reference::QuantizedRow row = reference::quantize_row_with(0.5f, in.x.bytes(), dtype, in.K);
        check(row.scale == 0.5f && row.q[265] == 0 && row.q[267] == 2 && row.q[261] == -2, "the reference rounds ties to even");
        check(row.q[0] == -127 && row.q[1] == -127 && row.q[527] == 127, "the reference clamps");
    }
}

}  // namespace
}  // namespace gossamer::test

int main() {
    using namespace gossamer::test;
    test_tails_and_strides();
    test_part_of_the_rows();
    test_special_values();
    test_magnitudes();
    test_ties();
    test_every_16_bit_value();
    test_error_bound();
    test_groups();
    test_special_groups();
    test_input_scale();
    test_special_values_with_input_scale();
    test_extreme_input_scales();
    test_ties_with_input_scale();
    return finish();
}
