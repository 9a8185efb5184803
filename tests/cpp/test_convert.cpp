// Rows into the panels of the f32 lane on every ISA, and into those of the bf16 lane, value for value.
#include <algorithm>
#include <string>

#include "check.h"
#include "dispatch/lists.h"
#include "values.h"

namespace gossamer::test {
namespace {

// x [M, K], rows `stride` apart and nothing behind the last one.
struct Input {
    int64_t M, K, stride;
    Values x;
    Input(DType dtype, int64_t rows, int64_t k, int64_t row_stride)
        : M(rows), K(k), stride(row_stride), x(dtype, (rows - 1) * row_stride + k) {}
};

// Where element k of row m lies in panels of R rows, K elements a row, and lines of `chunk` elements.
int64_t panel_index(int64_t m, int64_t k, int64_t R, int64_t chunk, int64_t stored_k) {
    return m / R * R * stored_k + (k / chunk * R + m % R) * chunk + k % chunk;
}

std::string describe(const Input& in, int64_t R) {
    return std::string(dtype_name(in.x.dtype)) + " " + std::to_string(in.M) + " x " + std::to_string(in.K) + ", stride " +
           std::to_string(in.stride) + ", R = " + std::to_string(R);
}

// As bits, any NaN being equal to any other.
bool same(float got, double wanted) {
    return std::isnan(wanted) ? std::isnan(got) : float_bits(got) == float_bits(static_cast<float>(wanted));
}

void check_to_f32(const ConvertKernels& kernel, const Input& in, int64_t R, int64_t first, int64_t last) {
    constexpr int64_t chunk = F32Block::chunk;
    const int64_t stored_k = (in.K + chunk - 1) / chunk * chunk;
    Guarded<float> panels((in.M + R - 1) / R * R * stored_k);
    kernel.to_f32({in.x.bytes(), in.x.dtype, in.stride, first, last, in.K, R, panels.data()});
    const std::string what = std::string(isa_name(kernel.isa)) + ": " + describe(in, R);
    for (int64_t i = 0; i < in.M * stored_k; ++i) {
        const int64_t m = i / stored_k, k = i % stored_k;
        const float got = panels[panel_index(m, k, R, chunk, stored_k)];
        const bool right = m < first || m >= last ? float_bits(got) == 0xa5a5a5a5 : same(got, k < in.K ? in.x.get(m * in.stride + k) : 0.0);
        check(right, what + ": row " + std::to_string(m) + ", k " + std::to_string(k));
    }
}

void check_copy(const Input& in, int64_t R, int64_t first, int64_t last) {
    constexpr int64_t chunk = Bf16Block::chunk;
    const int64_t stored_k = (in.K + chunk - 1) / chunk * chunk;
    Guarded<uint16_t> panels((in.M + R - 1) / R * R * stored_k);
    copy_rows_bf16({in.x.bytes(), in.x.dtype, in.stride, first, last, in.K, R, panels.data()});
    for (int64_t i = 0; i < in.M * stored_k; ++i) {
        const int64_t m = i / stored_k, k = i % stored_k;
        const uint16_t wanted = m < first || m >= last ? 0xa5a5 : k < in.K ? in.x.bits(m * in.stride + k) : 0;
        check(panels[panel_index(m, k, R, chunk, stored_k)] == wanted,
              "copy: " + describe(in, R) + ": row " + std::to_string(m) + ", k " + std::to_string(k));
    }
}

void check_input(const Input& in, int64_t R, int64_t first, int64_t last) {
    for (const ConvertKernels* kernel : convert_list()) {
        if (isa_available(kernel->isa)) check_to_f32(*kernel, in, R, first, last);
    }
    if (in.x.dtype == DType::bf16) check_copy(in, R, first, last);
}

void test_tails_and_strides() {
    Random random(1);
    for (const DType dtype : kDTypes) {
        for (const int64_t K : {1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 47, 63, 64, 65, 200}) {
            for (const int64_t M : {1, 3, 16, 17}) {
                Input in(dtype, M, K, M == 3 ? K + 13 : K);
                fill(in.x, random, 3.0);
                check_input(in, std::min(M, kPanelRows), 0, M);
            }
        }
    }
}

// A thread gets part of the rows and must leave the others alone.
void test_part_of_the_rows() {
    Random random(2);
    for (const DType dtype : kDTypes) {
        Input in(dtype, 37, 75, 80);
        fill(in.x, random);
        check_input(in, kPanelRows, 5, 34);
        check_input(in, 3, 2, 31);
    }
}

// All 65,536 values of the 16-bit types: denormals, infinities and NaNs of either sign among them.
void test_every_value() {
    for (const DType dtype : {DType::bf16, DType::f16}) {
        Input in(dtype, 64, 1024, 1024);
        for (int64_t i = 0; i < in.x.count; ++i) in.x.set_bits(i, static_cast<uint16_t>(i));
        check_input(in, kPanelRows, 0, in.M);
    }
}

void test_special_f32() {
    const uint32_t bits[] = {0x7fc00000, 0xffc00001, 0x7f800000, 0xff800000, 0x80000000, 0x00000001, 0x807fffff, 0x7f7fffff};
    Input in(DType::f32, 2, 19, 19);
    for (int64_t i = 0; i < in.x.count; ++i) std::memcpy(static_cast<float*>(in.x.data()) + i, &bits[i % 8], 4);
    check_input(in, 2, 0, 2);
}

void test_no_rows() {
    Input in(DType::bf16, 4, 40, 40);
    check_input(in, 4, 2, 2);
}

}  // namespace
}  // namespace gossamer::test

int main() {
    using namespace gossamer::test;
    test_tails_and_strides();
    test_part_of_the_rows();
    test_every_value();
    test_special_f32();
    test_no_rows();
    return finish();
}
