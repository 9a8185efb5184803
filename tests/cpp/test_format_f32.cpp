// Format fp32: sizes, exact round trip of every kind of value, places, expansion, and errors for bytes that are not a packed weight.
#include <stdexcept>

#include "check.h"
#include "damaged.h"
#include "expansion.h"
#include "gossamer/format_f32.h"
#include "guarded.h"
#include "random.h"

namespace gossamer::test {
namespace {

struct RandomF32 {
    int64_t N, K;
    Guarded<float> values;
    Guarded<uint8_t> packed;

    RandomF32(int64_t n, int64_t k, uint64_t seed) : N(n), K(k), values(n * k), packed(f32_layout(n, k).size_bytes) {
        Random random(seed);
        for (float& x : values) x = static_cast<float>(random.uniform());
        f32_pack(values.data(), f32_layout(N, K), packed.data(), 2);
    }
    F32Weight view() const { return f32_view(packed.data(), packed.size()); }
    std::string text() const { return "N = " + std::to_string(N) + ", K = " + std::to_string(K); }
};

void check_weight(int64_t N, int64_t K) {
    const RandomF32 w(N, K, static_cast<uint64_t>(N * 1000003 + K));
    const F32Weight view = w.view();
    const F32Layout& l = view.layout;
    check(w.packed.size() == 64 + l.N16 * l.K64 * 4 && l.N16 % 16 == 0 && l.K64 % 64 == 0, w.text() + ": size");
    int64_t wrong = 0;
    for (int64_t n = 0; n < l.N16; ++n) {
        for (int64_t k = 0; k < l.K64; ++k) {
            const float wanted = n < N && k < K ? w.values[n * K + k] : 0.0f;
            wrong += float_bits(view.panels[n / 16 * 16 * l.K64 + k * 16 + n % 16]) != float_bits(wanted);
        }
    }
    check(wrong == 0, w.text() + ": packed values are where the contract says");
    Guarded<float> values(N * K), dense(N * K);
    for (const int threads : {1, 3}) {
        f32_unpack(view, values.data(), threads);
        check_equal(values.data(), w.values.data(), N * K, w.text() + ": values");
        dequantize(view, 0, N, dense.data(), threads);
        check_equal(dense.data(), w.values.data(), N * K, w.text() + ": dequantized");
    }
    check_expansion(view, w.text(), [&](int64_t n, int64_t k) { return static_cast<double>(w.values[n * K + k]); });
}

// All bits: NaN, infinities and denormals too.
void test_special_values() {
    Guarded<float> values(4), back(4);
    const uint32_t bits[] = {0x7fc12345, 0xff800000, 0x00000001, 0x80000000};
    for (int64_t i = 0; i < 4; ++i) values[i] = bits_float(bits[i]);
    Guarded<uint8_t> packed(f32_layout(2, 2).size_bytes);
    f32_pack(values.data(), f32_layout(2, 2), packed.data(), 1);
    f32_unpack(f32_view(packed.data(), packed.size()), back.data(), 1);
    for (int64_t i = 0; i < 4; ++i) check(float_bits(back[i]) == bits[i], "special value " + std::to_string(i));
}

void test_errors() {
    check_throws<std::invalid_argument>([] { f32_layout(0, 3); }, "fp32: shape: got N = 0, K = 3");
    const RandomF32 w(20, 70, 1);
    check_damaged(w.packed, FormatId::int8, [](const void* packed, int64_t bytes) { f32_view(packed, bytes); });
    check_throws<std::invalid_argument>([&] { dequantize(w.view(), 3, 21, nullptr, 1); }, "got [3, 21)");
}

}  // namespace
}  // namespace gossamer::test

int main() {
    using namespace gossamer::test;
    for (const int64_t N : {1, 16, 17, 50}) {
        for (const int64_t K : {1, 31, 64, 65, 130}) check_weight(N, K);
    }
    test_special_values();
    test_errors();
    return finish();
}
