// Format fp8: sizes, exact round trip, places, all 256 codes of both kinds against fp64, expansion on every ISA, block scales, and errors.
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "check.h"
#include "damaged.h"
#include "expansion.h"
#include "gossamer/format_fp8.h"
#include "guarded.h"
#include "random.h"

namespace gossamer::test {
namespace {

constexpr FormatId kFormats[] = {FormatId::fp8_e4m3, FormatId::fp8_e5m2};

// The definition of the two kinds (OCP 8-bit floating point 1.0), in fp64.
double value_of(FormatId format, int code) {
    const bool e4m3 = format == FormatId::fp8_e4m3;
    const int mantissa_bits = e4m3 ? 3 : 2, bias = e4m3 ? 7 : 15, magnitude = code & 0x7f;
    const int exponent = magnitude >> mantissa_bits, mantissa = magnitude & ((1 << mantissa_bits) - 1);
    double value;
    if (e4m3 ? magnitude == 0x7f : magnitude > 0x7c) {
        value = std::nan("");
    } else if (!e4m3 && magnitude == 0x7c) {
        value = HUGE_VAL;
    } else if (exponent == 0) {
        value = std::ldexp(mantissa, 1 - bias - mantissa_bits);
    } else {
        value = std::ldexp((1 << mantissa_bits) + mantissa, exponent - bias - mantissa_bits);
    }
    return code < 128 ? value : -value;
}

struct RandomFp8 {
    FormatId format;
    Fp8Layout layout;
    Guarded<uint8_t> codes;
    Guarded<float> scales;
    Guarded<uint8_t> packed;

    RandomFp8(FormatId f, int64_t N, int64_t K, int64_t G, uint64_t seed)
        : format(f),
          layout(fp8_layout(N, K, G)),
          codes(N * K),
          scales(layout.scale_rows * layout.scale_columns),
          packed(layout.size_bytes) {
        Random random(seed);
        for (uint8_t& code : codes) code = static_cast<uint8_t>(random.bits());
        for (float& scale : scales) scale = static_cast<float>(random.uniform() / 100);
        pack(2);
    }
    void pack(int threads) { fp8_pack(format, codes.data(), scales.data(), layout, packed.data(), threads); }
    Fp8Weight view() const { return fp8_view(packed.data(), packed.size()); }
    double scale(int64_t n, int64_t k) const {
        return static_cast<double>(layout.G == 0 ? scales[n] : scales[n / 128 * layout.scale_columns + k / 128]);
    }
    double value(int64_t n, int64_t k) const { return value_of(format, codes[n * layout.K + k]); }
    std::string text() const {
        return std::string(name(format)) + ", N = " + std::to_string(layout.N) + ", K = " + std::to_string(layout.K) +
               ", G = " + std::to_string(layout.G);
    }
};

void check_places(const RandomFp8& w, const Fp8Weight& view) {
    const Fp8Layout& l = w.layout;
    int64_t wrong = 0;
    for (int64_t n = 0; n < l.N16; ++n) {
        for (int64_t k = 0; k < l.K64; ++k) {
            const uint8_t wanted = n < l.N && k < l.K ? w.codes[n * l.K + k] : uint8_t{0};
            const int64_t line = n / 16 * (l.K64 / 4) + k / 4, place = ((n % 16 / 4 * 2 + k % 4 / 2) * 4 + n % 4) * 2 + k % 2;
            wrong += view.panels[line * 64 + place] != wanted;
        }
    }
    const int64_t scales = l.scale_rows * l.scale_columns;
    for (int64_t i = 0; i < (l.panels_offset - l.scales_offset) / 4; ++i) {
        wrong += float_bits(view.scales[i]) != (i < scales ? float_bits(w.scales[i]) : 0);
    }
    check(wrong == 0, w.text() + ": packed codes and scales are where the contract says, zeros elsewhere");
    check(l.panels_offset % 64 == 0 && l.size_bytes == l.panels_offset + l.N16 * l.K64, w.text() + ": size");
}

void check_weight(FormatId format, int64_t N, int64_t K, int64_t G) {
    RandomFp8 w(format, N, K, G, static_cast<uint64_t>(N * 1000003 + K));
    const Fp8Weight view = w.view();
    check_places(w, view);
    Guarded<uint8_t> codes(N * K);
    Guarded<float> scales(w.scales.size()), dense(N * K);
    for (const int threads : {1, 3}) {
        w.pack(threads);
        fp8_unpack(view, codes.data(), scales.data(), threads);
        check_equal(codes.data(), w.codes.data(), N * K, w.text() + ": codes");
        check_equal(scales.data(), w.scales.data(), scales.size(), w.text() + ": scales");
        dequantize(view, 0, N, dense.data(), threads);
        int64_t wrong = 0;
        for (int64_t i = 0; i < N * K; ++i) {
            const float wanted = static_cast<float>(w.value(i / K, i % K) * w.scale(i / K, i % K));
            wrong += comparable(dense[i]) != comparable(wanted);
        }
        check(wrong == 0, w.text() + ": dequantized");
    }
    check_expansion(view, w.text(), [&](int64_t n, int64_t k) { return w.value(n, k) * (G == 0 ? 1 : w.scale(n, k)); });
}

void test_round_trips() {
    for (const FormatId format : kFormats) {
        for (const int64_t G : {0, 128}) {
            for (const int64_t N : {1, 16, 17, 50}) {
                for (const int64_t K : {1, 31, 64, 65, 130, 257}) check_weight(format, N, K, G);
            }
            check_weight(format, 150, 300, G);
        }
    }
}

// Every code in every column, with scales that are harmless and with some that are not; NaNs keep their sign.
void test_all_codes() {
    for (const FormatId format : kFormats) {
        for (const int64_t G : {0, 128}) {
            RandomFp8 w(format, 16, 256, G, 1);
            for (int64_t i = 0; i < w.codes.size(); ++i) w.codes[i] = static_cast<uint8_t>(i % 256 + 7 * (i / 256));
            for (const float scale : {1.0f, 0.01f, -3.0f, 0.0f, 1e-38f, 1e-42f, 1e37f, HUGE_VALF}) {
                for (float& s : w.scales) s = scale;
                w.pack(1);
                check_expansion(w.view(), w.text() + ", scale " + std::to_string(scale),
                                [&](int64_t n, int64_t k) { return w.value(n, k) * (G == 0 ? 1 : static_cast<double>(scale)); });
            }
        }
    }
}

void test_nan_signs() {
    for (const FormatId format : kFormats) {
        RandomFp8 w(format, 16, 64, 0, 2);
        for (int64_t i = 0; i < w.codes.size(); ++i) w.codes[i] = i % 3 == 0 ? 0xff : 0x7f;
        w.pack(1);
        for (int i = 0; i < kIsaCount; ++i) {
            const Isa isa = static_cast<Isa>(i);
            if (!isa_available(isa)) continue;
            float f32[16 * 64];
            uint16_t bf16[16 * 64];
            expand_f32(w.view(), {0, 0, 64}, isa, f32);
            expand_bf16(w.view(), {0, 0, 64}, isa, bf16);
            int64_t wrong = 0;
            for (int64_t n = 0; n < 16; ++n) {
                for (int64_t k = 0; k < 64; ++k) {
                    const uint32_t payload = format == FormatId::fp8_e4m3 ? 0x7fc0 : 0x7fe0;
                    const uint32_t wanted = payload | ((n * 64 + k) % 3 == 0 ? 0x8000 : 0);
                    wrong += float_bits(f32[k * 16 + n]) != wanted << 16 || bf16[(k / 2 * 16 + n) * 2 + k % 2] != wanted;
                }
            }
            check(wrong == 0, std::string(name(format)) + ", " + isa_name(isa) + ": NaNs are quiet and keep sign and payload");
        }
    }
}

// Few rows against fp64: the error of the bf16 lane (bf16.h), and of one rounding a block.
void check_few_rows(const RandomFp8& w, int64_t rows, Isa isa) {
    const int64_t K = w.layout.K, K32 = (K + 31) / 32 * 32, N = w.layout.N;
    Random random(static_cast<uint64_t>(rows * K));
    Guarded<uint16_t> a(rows * K32);
    std::vector<double> x(static_cast<size_t>(rows * K32));
    for (int64_t k = 0; k < K32; ++k) {
        for (int64_t m = 0; m < rows; ++m) {
            const uint16_t bits = k < K ? reference::to_bf16(random.uniform()) : uint16_t{0};
            a[(k / 32 * rows + m) * 32 + k % 32] = bits;
            x[static_cast<size_t>(m * K32 + k)] = static_cast<double>(bits_float(static_cast<uint32_t>(bits) << 16));
        }
    }
    for (int64_t strip = 0; strip < (N + 31) / 32; ++strip) {
        Guarded<float> c(rows * 32);
        check(multiply_few_rows(w.view(), strip, isa, {a.data(), rows, rows, c.data()}), w.text() + ": has a kernel");
        for (int64_t i = 0; i < rows * 32; ++i) {
            const int64_t m = i / 32, n = strip * 32 + i % 32;
            if (n >= N) continue;
            double sum = 0, magnitude = 0;
            for (int64_t k = 0; k < K; ++k) {
                const double product = x[static_cast<size_t>(m * K32 + k)] * w.value(n, k) * (w.layout.G == 0 ? 1 : w.scale(n, k));
                sum += product;
                magnitude += std::fabs(product);
            }
            check_near(static_cast<double>(c[i]), sum, std::ldexp(static_cast<double>(K + 4), -23) * magnitude, w.text() + ": few rows");
        }
    }
}

void test_few_rows() {
    for (const FormatId format : kFormats) {
        for (const int64_t G : {0, 128}) {
            for (const int64_t K : {1, 33, 64, 128, 130, 600}) {
                RandomFp8 w(format, 150, K, G, static_cast<uint64_t>(K));
                for (uint8_t& code : w.codes) code = static_cast<uint8_t>((code & 0x7f) < 0x7c ? code : code & 0x80);  // finite
                w.pack(1);
                uint16_t a[5 * 640] = {};
                float c[5 * 32];
                check(!multiply_few_rows(w.view(), 0, Isa::avx512, {a, 1, 1, c}), "no bf16 lane, no kernel");
                if (!isa_available(Isa::avx512bf16)) continue;
                check(!multiply_few_rows(w.view(), 0, Isa::avx512bf16, {a, 5, 5, c}), "too many rows");
                for (int64_t rows = 1; rows <= 4; ++rows) check_few_rows(w, rows, Isa::avx512bf16);
            }
        }
    }
}

void test_errors() {
    check_throws<std::invalid_argument>([] { fp8_layout(3, 0, 0); }, "fp8: shape: got N = 3, K = 0");
    check_throws<std::invalid_argument>([] { fp8_layout(3, 3, 64); }, "group_size: got 64");
    const auto view = [](const void* packed, int64_t bytes) { fp8_view(packed, bytes); };
    const RandomFp8 w(FormatId::fp8_e4m3, 20, 170, 0, 3);
    check_damaged(w.packed, FormatId::bf16, view);
    check_field(w.packed, offsetof(PackedHeader, G), int64_t{32}, "group_size", view);
    check_throws<std::invalid_argument>([&] { dequantize(w.view(), -1, 3, nullptr, 1); }, "got [-1, 3)");
    check_throws<std::invalid_argument>([&] { fp8_pack(FormatId::int8, nullptr, nullptr, w.layout, nullptr, 1); }, "got format int8");
}

}  // namespace
}  // namespace gossamer::test

int main() {
    using namespace gossamer::test;
    test_round_trips();
    test_all_codes();
    test_nan_signs();
    test_few_rows();
    test_errors();
    return finish();
}
