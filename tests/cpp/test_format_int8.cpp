// Format int8: sizes, exact round trip, places of the values, and errors for bytes that are not a packed weight.
#include <cmath>
#include <cstddef>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <vector>

#include "check.h"
#include "damaged.h"
#include "expansion.h"
#include "gossamer/linear.h"
#include "int8_weight.h"

namespace gossamer::test {
namespace {

constexpr int64_t kGroupSizes[] = {0, 32, 64, 128};

int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

void check_layout(int64_t N, int64_t K, int64_t G) {
    const Int8Layout l = int8_layout(N, K, G);
    const std::string what = "layout of " + std::to_string(N) + " x " + std::to_string(K) + ", G = " + std::to_string(G);
    const int64_t N16 = round_up(N, 16), K64 = round_up(K, 64);
    const int64_t groups = G == 0 ? 1 : round_up(K, G) / G, sum_blocks = G == 0 ? round_up(K64, 65536) / 65536 : groups;
    check(l.N == N && l.K == K && l.G == G && l.N16 == N16 && l.K64 == K64, what + ": shape");
    check(l.groups == groups && l.sum_blocks == sum_blocks, what + ": groups");
    check(l.size_bytes == N16 * K64 + 4 * N16 * (groups + sum_blocks) + 64, what + ": size");
    for (const int64_t offset : {l.scales_offset, l.init_offset, l.panels_offset}) check(offset % 64 == 0, what + ": alignment");
}

void test_layouts() {
    for (const int64_t N : {1, 15, 16, 17, 33, 1003}) {
        for (const int64_t K : {1, 31, 32, 33, 64, 65, 127, 517, 65535, 65536, 65537, 1000000}) {
            for (const int64_t G : kGroupSizes) check_layout(N, K, G);
        }
    }
    check_throws<std::invalid_argument>([] { int8_layout(0, 5, 0); }, "shape: got N = 0, K = 5");
    check_throws<std::invalid_argument>([] { int8_layout(5, -1, 0); }, "shape: got N = 5, K = -1");
    check_throws<std::invalid_argument>([] { int8_layout(5, 5, 48); }, "group_size: got 48");
    constexpr int64_t kLargest = std::numeric_limits<int64_t>::max();
    for (const int64_t G : kGroupSizes) {
        check_throws<std::invalid_argument>([G] { int8_layout(kLargest, 1, G); }, "overflows");
        check_throws<std::invalid_argument>([G] { int8_layout(1, kLargest, G); }, "overflows");
        check_throws<std::invalid_argument>([G] { int8_layout(int64_t{1} << 32, int64_t{1} << 32, G); }, "overflows");
        check_throws<std::invalid_argument>([G] { int8_layout(1, kLargest / 16 / 64 * 64, G); }, "overflows");
    }
}

void check_panels(const RandomWeight& w, const Int8Weight& view) {
    const Int8Layout& l = view.layout;
    int64_t wrong = 0;
    for (int64_t n = 0; n < l.N16; ++n) {
        for (int64_t k = 0; k < l.K64; ++k) {
            const int8_t wanted = n < w.N && k < w.K ? w.values[n * w.K + k] : int8_t{0};
            wrong += view.panels[n / 16 * 16 * l.K64 + (k / 4 * 16 + n % 16) * 4 + k % 4] != wanted;
        }
        for (int64_t s = 0; s < l.sum_blocks; ++s) {
            int64_t sum = 0;
            for (int64_t k = s * l.sum_k; n < w.N && k < std::min(w.K, (s + 1) * l.sum_k); ++k) sum += w.values[n * w.K + k];
            wrong += view.init[s * l.N16 + n] != -128 * sum;
        }
        for (int64_t g = 0; g < l.groups; ++g) wrong += view.scales[g * l.N16 + n] != (n < w.N ? w.scales[n * l.groups + g] : 0.0f);
    }
    check(wrong == 0, w.text() + ": packed values, sums and scales are where the contract says");
}

void check_weight(int64_t N, int64_t K, int64_t G) {
    const RandomWeight w(N, K, G, static_cast<uint64_t>(N * 1000003 + K));
    const Int8Weight view = w.view();
    check_panels(w, view);
    Guarded<uint8_t> again(w.packed.size());
    Guarded<int8_t> values(N * K);
    Guarded<float> scales(N * w.groups), dense(N * K);
    for (const int threads : {1, 2, 4}) {
        int8_pack(w.values.data(), w.scales.data(), view.layout, Activations::int8, again.data(), threads);
        check(std::memcmp(again.data(), w.packed.data(), static_cast<size_t>(again.size())) == 0, w.text() + ": the same bytes again");
        int8_unpack(view, values.data(), scales.data(), threads);
        check_equal(values.data(), w.values.data(), N * K, w.text() + ": values");
        check_equal(scales.data(), w.scales.data(), N * w.groups, w.text() + ": scales");
        dequantize(view, 0, N, dense.data(), threads);
        std::vector<float> wanted;
        for (int64_t i = 0; i < N * K; ++i) {
            const int64_t group = G == 0 ? 0 : i % K / G;
            wanted.push_back(static_cast<float>(w.values[i]) * w.scales[i / K * w.groups + group]);
        }
        check_equal(dense.data(), wanted.data(), N * K, w.text() + ": dequantized");
        const int64_t first = N / 3, last = N - N / 4;
        Guarded<float> part((last - first) * K);
        dequantize(view, first, last, part.data(), threads);
        check_equal(part.data(), wanted.data() + first * K, part.size(), w.text() + ": some rows dequantized");
    }
}

void test_round_trips() {
    for (const int64_t G : kGroupSizes) {
        for (const int64_t N : {1, 16, 17, 50}) {
            for (const int64_t K : {1, 31, 64, 65, 130, 517}) check_weight(N, K, G);
        }
    }
    check_weight(3, 70000, 0);
    const RandomWeight w(5, 7, 0, 1);
    check_throws<std::invalid_argument>([&] { dequantize(w.view(), 2, 6, nullptr, 1); }, "got [2, 6)");
    check_throws<std::invalid_argument>([&] { dequantize(w.view(), -1, 3, nullptr, 1); }, "got [-1, 3)");
    check_throws<std::invalid_argument>([&] { dequantize(w.view(), 3, 2, nullptr, 1); }, "got [3, 2)");
}

// The values as exact activations meet them: with their scale where it belongs to a group.
void test_expansion() {
    for (const int64_t G : kGroupSizes) {
        for (const int64_t K : {1, 64, 130, 517}) {
            const RandomWeight w(37, K, G, static_cast<uint64_t>(K));
            check_expansion(w.view(), w.text(), [&](int64_t n, int64_t k) {
                const double scale = G == 0 ? 1 : static_cast<double>(w.scales[n * w.groups + k / G]);
                return w.values[n * w.K + k] * scale;
            });
        }
    }
    RandomWeight w(16, 64, 32, 6);
    for (const float scale : {0.0f, 1e-39f, 3e38f, HUGE_VALF}) {
        for (float& s : w.scales) s = scale;
        for (int64_t k = 0; k < 64; ++k) w.values[k] = static_cast<int8_t>(k + 1);
        int8_pack(w.values.data(), w.scales.data(), w.view().layout, Activations::exact, w.packed.data(), 1);
        check_expansion(w.view(), "scale " + std::to_string(scale),
                        [&](int64_t n, int64_t k) { return w.values[n * w.K + k] * static_cast<double>(scale); });
    }
}

void test_damage() {
    const RandomWeight w(20, 70, 32, 2);
    const auto view = [](const void* packed, int64_t bytes) { int8_view(packed, bytes); };
    check_damaged(w.packed, FormatId::bf16, view);
    check_field(w.packed, offsetof(PackedHeader, G), int64_t{33}, "group_size", view);
    check_field(w.packed, offsetof(PackedHeader, G), int64_t{0}, "bytes", view);
}

// The header as it was before it had an input scale: rank was an int64.
struct OldHeader {
    char magic[8];
    uint32_t layout, format;
    int64_t N, K, G;
    uint8_t activations, scale_type, has_zero_points, pattern, parts, unused[3];
    int64_t nnz, rank;
};

void test_input_scale() {
    static_assert(sizeof(OldHeader) == sizeof(PackedHeader) && offsetof(OldHeader, rank) == offsetof(PackedHeader, rank));
    RandomWeight w(20, 70, 32, 3);
    const OldHeader old{{'G', 'O', 'S', 'S', 'A', 'M', 'E', 'R'}, 1, 1, 20, 70, 32, 0, 0, 0, 0, 0, {}, 0, 0};
    check(std::memcmp(w.packed.data(), &old, sizeof old) == 0, "a header without input scale is as it was");
    check(weight_view(w.packed.data(), w.packed.size()).input_scale == 0, "old bytes have no input scale");
    std::vector<uint8_t> before(w.packed.begin(), w.packed.end());
    set_input_scale(w.packed.data(), w.packed.size(), 0.25f);
    check(weight_view(w.packed.data(), w.packed.size()).input_scale == 0.25f, "input scale of a weight");
    check_equal(w.packed.data(), before.data(), 60, "bytes before the input scale");
    check_equal(w.packed.data() + 64, before.data() + 64, w.packed.size() - 64, "bytes behind the input scale");
    const auto view = [](const void* packed, int64_t bytes) { weight_view(packed, bytes); };
    for (const float wrong : {-1.0f, HUGE_VALF, std::nanf("")}) {
        check_throws<std::invalid_argument>([&] { set_input_scale(w.packed.data(), w.packed.size(), wrong); }, "int8: input_scale: got");
        check_field(w.packed, offsetof(PackedHeader, input_scale), wrong, "wanted a finite number above 0", view);
    }
    for (const Activations other : {Activations::exact, Activations::int8_group}) {
        check_field(w.packed, offsetof(PackedHeader, activations), other, "wanted it with int8 only", view);
    }
    set_input_scale(w.packed.data(), w.packed.size(), 0);
    check_equal(w.packed.data(), before.data(), w.packed.size(), "without the input scale again");
}

}  // namespace
}  // namespace gossamer::test

int main() {
    using namespace gossamer::test;
    test_layouts();
    test_round_trips();
    test_expansion();
    test_damage();
    test_input_scale();
    return finish();
}
