// Format bf16: sizes, exact round trip of every kind of value, places, expansion, and errors for bytes that are not a packed weight.
#include <cstring>
#include <stdexcept>

#include "check.h"
#include "damaged.h"
#include "expansion.h"
#include "gossamer/format_bf16.h"
#include "guarded.h"
#include "random.h"

namespace gossamer::test {
namespace {

struct RandomBf16 {
    int64_t N, K;
    Guarded<uint16_t> values;
    Guarded<uint8_t> packed;

    RandomBf16(int64_t n, int64_t k, uint64_t seed) : N(n), K(k), values(n * k), packed(bf16_layout(n, k).size_bytes) {
        Random random(seed);
        // All bits: NaN, infinities and denormals too.
        for (uint16_t& x : values) x = static_cast<uint16_t>(random.bits());
        bf16_pack(values.data(), bf16_layout(N, K), packed.data(), 2);
    }
    Bf16Weight view() const { return bf16_view(packed.data(), packed.size()); }
    double value(int64_t n, int64_t k) const { return static_cast<double>(bits_float(static_cast<uint32_t>(values[n * K + k]) << 16)); }
    std::string text() const { return "N = " + std::to_string(N) + ", K = " + std::to_string(K); }
};

void check_weight(int64_t N, int64_t K) {
    const RandomBf16 w(N, K, static_cast<uint64_t>(N * 1000003 + K));
    const Bf16Weight view = w.view();
    const Bf16Layout& l = view.layout;
    check(w.packed.size() == 64 + l.N16 * l.K64 * 2 && l.N16 % 16 == 0 && l.K64 % 64 == 0, w.text() + ": size");
    int64_t wrong = 0;
    for (int64_t n = 0; n < l.N16; ++n) {
        for (int64_t k = 0; k < l.K64; ++k) {
            const uint16_t wanted = n < N && k < K ? w.values[n * K + k] : uint16_t{0};
            wrong += view.panels[n / 16 * 16 * l.K64 + (k / 2 * 16 + n % 16) * 2 + k % 2] != wanted;
        }
    }
    check(wrong == 0, w.text() + ": packed values are where the contract says");
    Guarded<uint16_t> values(N * K);
    Guarded<float> dense(N * K);
    for (const int threads : {1, 3}) {
        bf16_unpack(view, values.data(), threads);
        check_equal(values.data(), w.values.data(), N * K, w.text() + ": values");
        dequantize(view, 0, N, dense.data(), threads);
        wrong = 0;
        for (int64_t i = 0; i < N * K; ++i) wrong += float_bits(dense[i]) != static_cast<uint32_t>(w.values[i]) << 16;
        check(wrong == 0, w.text() + ": dequantized");
    }
    check_expansion(view, w.text(), [&](int64_t n, int64_t k) { return w.value(n, k); });
}

void test_errors() {
    check_throws<std::invalid_argument>([] { bf16_layout(0, 3); }, "bf16: shape: got N = 0, K = 3");
    const RandomBf16 w(20, 70, 1);
    check_damaged(w.packed, FormatId::int8, [](const void* packed, int64_t bytes) { bf16_view(packed, bytes); });
    check_throws<std::invalid_argument>([&] { dequantize(w.view(), 3, 21, nullptr, 1); }, "got [3, 21)");
}

}  // namespace
}  // namespace gossamer::test

int main() {
    using namespace gossamer::test;
    for (const int64_t N : {1, 16, 17, 50}) {
        for (const int64_t K : {1, 31, 64, 65, 130}) check_weight(N, K);
    }
    test_errors();
    return finish();
}
