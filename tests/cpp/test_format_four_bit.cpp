// The 4-bit formats: codebooks, sizes, exact round trip over formats, scale types, group sizes and ragged shapes, all 16 codes in every
// position, places, and errors.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "check.h"
#include "damaged.h"
#include "gossamer/format_four_bit.h"
#include "guarded.h"
#include "random.h"
#include "values.h"

namespace gossamer::test {
namespace {

// What a four-bit weight may be made of.
struct Kind {
    FormatId format;
    ScaleType scale_type;
    bool zero_points;
    std::vector<int64_t> group_sizes;
};

std::vector<Kind> all_kinds() {
    const std::vector<int64_t> sizes = {0, 16, 32, 64, 128, 256};
    std::vector<Kind> kinds = {{FormatId::mxfp4, ScaleType::e8m0, false, {32}}};
    for (const ScaleType type : {ScaleType::f32, ScaleType::bf16, ScaleType::f16}) {
        for (const FormatId format : {FormatId::int4, FormatId::nf4, FormatId::fp4}) kinds.push_back({format, type, false, sizes});
        kinds.push_back({FormatId::int4, type, true, sizes});
    }
    return kinds;
}

int64_t scale_bytes(ScaleType type) { return type == ScaleType::f32 ? 4 : type == ScaleType::e8m0 ? 1 : 2; }

// The inverse of the normal distribution's cumulative function, by bisection.
double normal_quantile(double p) {
    double low = -10, high = 10;
    for (int i = 0; i < 100; ++i) {
        const double middle = (low + high) / 2;
        (std::erfc(-middle / std::sqrt(2.0)) / 2 < p ? low : high) = middle;
    }
    return low;
}

// QLoRA, appendix E: 8 steps up to and 7 down from the outermost quantile, 0 between them, divided by the largest.
std::vector<double> nf4_values() {
    const double outermost = 0.9677083, largest = normal_quantile(outermost);
    std::vector<double> values = {0};
    for (int i = 0; i < 8; ++i) values.push_back(normal_quantile(outermost + (0.5 - outermost) * i / 8) / largest);
    for (int i = 0; i < 7; ++i) values.push_back(-normal_quantile(outermost + (0.5 - outermost) * i / 7) / largest);
    std::sort(values.begin(), values.end());
    return values;
}

// sign, two bits of exponent with bias 1, one of mantissa.
double e2m1_value(int code) {
    const int exponent = code >> 1 & 3, mantissa = code & 1;
    const double magnitude = exponent == 0 ? mantissa * 0.5 : std::ldexp(1 + mantissa * 0.5, exponent - 1);
    return code < 8 ? magnitude : -magnitude;
}

double value_of(FormatId format, int code) {
    static const std::vector<double> nf4 = nf4_values();
    if (format == FormatId::int4) return code - 8;
    return format == FormatId::nf4 ? nf4[static_cast<size_t>(code)] : e2m1_value(code);
}

void test_codebooks() {
    for (const FormatId format : {FormatId::int4, FormatId::nf4, FormatId::fp4, FormatId::mxfp4}) {
        const Codebook& book = codebook(format);
        const bool nf4 = format == FormatId::nf4;
        double largest = 0, finest = 100;
        for (int i = 0; i < 16; ++i) {
            const std::string what = std::string(name(format)) + ", code " + std::to_string(i);
            const double value = static_cast<double>(book.value[i]);
            check_near(value, value_of(format, i), nf4 ? 1e-6 : 0, what);
            check_near((book.s8[i] - book.offset) * static_cast<double>(book.unit), value, nf4 ? 0.5 / 127 : 0, what + ": as an integer");
            largest = std::max(largest, std::fabs(value));
            for (int j = 0; j < i; ++j) {
                const double distance = std::fabs(value - static_cast<double>(book.value[j]));
                if (distance > 0) finest = std::min(finest, distance);
            }
        }
        check_near(static_cast<double>(book.largest), largest, 0, std::string(name(format)) + ": largest");
        check_near(static_cast<double>(book.finest), finest, 1e-7, std::string(name(format)) + ": finest");
    }
    check_throws<std::invalid_argument>([] { codebook(FormatId::int8); }, "got int8");
}

struct RandomFourBit {
    Kind kind;
    FourBitLayout layout;
    Guarded<uint8_t> codes, scales, zero_points, packed;

    RandomFourBit(const Kind& k, int64_t N, int64_t K, int64_t G, uint64_t seed)
        : kind(k),
          layout(four_bit_layout(k.format, N, K, G, k.scale_type, k.zero_points)),
          codes(N * ((K + 1) / 2)),
          scales(N * layout.groups * scale_bytes(k.scale_type)),
          zero_points(N * layout.groups),
          packed(layout.size_bytes) {
        Random random(seed);
        for (int64_t n = 0; n < N; ++n) {
            for (int64_t i = 0; i < K; ++i) set_code(n, i, static_cast<int>(random.integer(0, 15)));
        }
        // All bits: NaN, infinities and denormals too.
        for (uint8_t& byte : scales) byte = static_cast<uint8_t>(random.bits());
        for (uint8_t& zero : zero_points) zero = static_cast<uint8_t>(random.integer(0, 15));
        pack(2);
    }
    void pack(int threads) {
        const FourBitTensors tensors{codes.data(), scales.data(), kind.zero_points ? zero_points.data() : nullptr};
        four_bit_pack(kind.format, tensors, layout, kind.scale_type, Activations::exact, packed.data(), threads);
    }
    FourBitWeight view() const { return four_bit_view(packed.data(), packed.size()); }
    void set_code(int64_t n, int64_t k, int code) {
        uint8_t& byte = codes[n * ((layout.K + 1) / 2) + k / 2];
        byte = static_cast<uint8_t>(k % 2 == 0 ? code : byte | code << 4);
    }
    int code(int64_t n, int64_t k) const { return codes[n * ((layout.K + 1) / 2) + k / 2] >> (k % 2 * 4) & 15; }
    double scale(int64_t n, int64_t g) const {
        const int64_t i = n * layout.groups + g;
        if (kind.scale_type == ScaleType::e8m0) return scales[i] == 255 ? std::nan("") : std::ldexp(1.0, scales[i] - 127);
        const DType types[] = {DType::f32, DType::bf16, DType::f16};
        return reference::load(scales.data(), types[static_cast<int>(kind.scale_type)], i);
    }
    // Rounded once, from the stored value of the codebook.
    float value(int64_t n, int64_t k) const {
        const int64_t g = k / layout.group_k;
        const double stored = static_cast<double>(codebook(kind.format).value[code(n, k)]);
        const double value = kind.zero_points ? code(n, k) - zero_points[n * layout.groups + g] : stored;
        return static_cast<float>(value * scale(n, g));
    }
    std::string text() const {
        return std::string(name(kind.format)) + ", " + name(kind.scale_type) + (kind.zero_points ? ", zero points" : "") +
               ", N = " + std::to_string(layout.N) + ", K = " + std::to_string(layout.K) + ", G = " + std::to_string(layout.G);
    }
};

bool same(double got, double wanted) { return got == wanted || (std::isnan(got) && std::isnan(wanted)); }

double packed_scale(const FourBitWeight& view, int64_t i) {
    const DType types[] = {DType::f32, DType::bf16, DType::f16, DType::bf16};
    return reference::load(view.scales, types[static_cast<int>(view.scale_type)], i);
}

void check_places(const RandomFourBit& w, const FourBitWeight& view) {
    const FourBitLayout& l = w.layout;
    int64_t wrong_codes = 0, wrong_scales = 0, wrong_zeros = 0;
    for (int64_t n = 0; n < l.N16; ++n) {
        for (int64_t k = 0; k < l.K64; ++k) {
            const int byte = view.panels[(n / 16 * (l.K64 / 8) + k / 8) * 64 + n % 16 * 4 + k % 4];
            const int wanted = n < l.N && k < l.K ? w.code(n, k) : 0;
            wrong_codes += (k % 8 < 4 ? byte & 15 : byte >> 4) != wanted;
        }
        for (int64_t g = 0; g < l.packed_groups; ++g) {
            const int64_t place = (n / 16 * l.packed_groups + g) * 16 + n % 16;
            const bool inside = n < l.N && g < l.groups;
            wrong_scales += !same(packed_scale(view, place), inside ? w.scale(n, g) : 0);
            if (w.kind.zero_points) wrong_zeros += view.zero_points[place] != (inside ? w.zero_points[n * l.groups + g] : 0);
        }
    }
    check(wrong_codes == 0, w.text() + ": packed codes are where the contract says, zeros elsewhere");
    check(wrong_scales == 0, w.text() + ": packed scales likewise");
    check(wrong_zeros == 0, w.text() + ": packed zero points likewise");
}

void check_layout(const RandomFourBit& w) {
    const FourBitLayout& l = w.layout;
    const int64_t N16 = (l.N + 15) / 16 * 16, K64 = (l.K + 63) / 64 * 64, group = l.G == 0 ? K64 : l.G;
    const int64_t P = (K64 + group - 1) / group, scales = N16 * P * (w.kind.scale_type == ScaleType::f32 ? 4 : 2);
    const int64_t zeros = w.kind.zero_points ? (N16 * P + 63) / 64 * 64 : 0;
    check(l.groups == (l.K + group - 1) / group && l.packed_groups == P && l.group_k == group, w.text() + ": groups");
    check(l.size_bytes == 64 + (scales + 63) / 64 * 64 + zeros + N16 * K64 / 2, w.text() + ": size");
    for (const int64_t offset : {l.scales_offset, l.zero_points_offset, l.panels_offset}) check(offset % 64 == 0, w.text() + ": alignment");
}

void check_dequantized(const RandomFourBit& w, int64_t first, int64_t last, int threads) {
    const int64_t K = w.layout.K;
    Guarded<float> dense((last - first) * K);
    dequantize(w.view(), first, last, dense.data(), threads);
    int64_t wrong = 0;
    for (int64_t i = 0; i < dense.size(); ++i) {
        const float wanted = w.value(first + i / K, i % K);
        wrong += dense[i] != wanted && !(std::isnan(dense[i]) && std::isnan(wanted));
    }
    check(wrong == 0, w.text() + ": rows from " + std::to_string(first) + " dequantized");
}

void check_round_trip(RandomFourBit& w) {
    const FourBitWeight view = w.view();
    Guarded<uint8_t> codes(w.codes.size()), scales(w.scales.size()), zeros(w.zero_points.size());
    for (const int threads : {1, 3}) {
        w.pack(threads);
        four_bit_unpack(view, codes.data(), scales.data(), w.kind.zero_points ? zeros.data() : nullptr, threads);
        check_equal(codes.data(), w.codes.data(), codes.size(), w.text() + ": codes");
        check_equal(scales.data(), w.scales.data(), scales.size(), w.text() + ": scales");
        if (w.kind.zero_points) check_equal(zeros.data(), w.zero_points.data(), zeros.size(), w.text() + ": zero points");
    }
    check_dequantized(w, 0, w.layout.N, 2);
    check_dequantized(w, w.layout.N / 3, w.layout.N - w.layout.N / 4, 1);
}

void test_round_trips() {
    for (const Kind& kind : all_kinds()) {
        for (const int64_t G : kind.group_sizes) {
            for (const int64_t N : {1, 33}) {
                for (const int64_t K : {1, 15, 64, 131, 300}) {
                    RandomFourBit w(kind, N, K, G, static_cast<uint64_t>(N * 1000003 + K));
                    check_layout(w);
                    check_places(w, w.view());
                    check_round_trip(w);
                }
            }
        }
    }
}

void test_all_codes_everywhere() {
    for (const Kind& kind : all_kinds()) {
        RandomFourBit w(kind, 17, 65, kind.group_sizes.back(), 1);
        for (int turn = 0; turn < 16; ++turn) {
            for (int64_t n = 0; n < 17; ++n) {
                for (int64_t k = 0; k < 65; ++k) w.set_code(n, k, static_cast<int>((n + 3 * k + turn) % 16));
            }
            w.pack(1);
            check_places(w, w.view());
            check_round_trip(w);
        }
    }
}

void test_all_e8m0_scales() {
    RandomFourBit w({FormatId::mxfp4, ScaleType::e8m0, false, {32}}, 256, 32, 32, 2);
    for (int64_t n = 0; n < 256; ++n) w.scales[n] = static_cast<uint8_t>(n);
    check_round_trip(w);
    check_places(w, w.view());
}

void test_errors() {
    const auto layout = [](FormatId format, int64_t G, ScaleType type, bool zero_points) {
        return [=] { four_bit_layout(format, 5, 5, G, type, zero_points); };
    };
    check_throws<std::invalid_argument>([] { four_bit_layout(FormatId::int4, 0, 5, 0, ScaleType::f32, false); }, "int4: shape: got N = 0");
    check_throws<std::invalid_argument>(layout(FormatId::int8, 32, ScaleType::f32, false), "got int8");
    check_throws<std::invalid_argument>(layout(FormatId::nf4, 48, ScaleType::f32, false), "nf4: group_size: got 48");
    check_throws<std::invalid_argument>(layout(FormatId::nf4, -16, ScaleType::f32, false), "group_size: got -16");
    check_throws<std::invalid_argument>(layout(FormatId::mxfp4, 16, ScaleType::e8m0, false), "group_size: got 16, wanted 32");
    check_throws<std::invalid_argument>(layout(FormatId::mxfp4, 32, ScaleType::bf16, false), "scale_type: got bfloat16, wanted e8m0");
    check_throws<std::invalid_argument>(layout(FormatId::int4, 32, ScaleType::e8m0, false), "scale_type: got e8m0");
    check_throws<std::invalid_argument>(layout(FormatId::fp4, 32, ScaleType::f16, true), "only int4");
    const auto view = [](const void* packed, int64_t bytes) { four_bit_view(packed, bytes); };
    const RandomFourBit w({FormatId::int4, ScaleType::f16, true, {}}, 20, 170, 32, 3);
    check_damaged(w.packed, FormatId::fp8_e5m2, view);
    check_field(w.packed, offsetof(PackedHeader, G), int64_t{33}, "group_size", view);
    check_field(w.packed, offsetof(PackedHeader, has_zero_points), uint8_t{0}, "bytes", view);
    check_field(w.packed, offsetof(PackedHeader, scale_type), ScaleType::f32, "bytes", view);
    check_field(w.packed, offsetof(PackedHeader, format), FormatId::nf4, "only int4", view);
    check_throws<std::invalid_argument>([&] { dequantize(w.view(), 2, 1, nullptr, 1); }, "got [2, 1)");
}

}  // namespace
}  // namespace gossamer::test

int main() {
    using namespace gossamer::test;
    test_codebooks();
    test_round_trips();
    test_all_codes_everywhere();
    test_all_e8m0_scales();
    test_errors();
    return finish();
}
