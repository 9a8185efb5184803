// Strips of 4-bit weights for the s8 lane: exact groups value by value, re-quantized ones within half a step, the rule that chooses between
// them, and the same bytes on every ISA.
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "check.h"
#include "four_bit_weight.h"
#include "gossamer/cpu.h"
#include "gossamer/s8.h"

namespace gossamer::test {
namespace {

constexpr FourBitKind kKinds[] = {
    {FormatId::int4, ScaleType::f32},       {FormatId::int4, ScaleType::bf16},       {FormatId::int4, ScaleType::f16},
    {FormatId::int4, ScaleType::f32, true}, {FormatId::int4, ScaleType::bf16, true}, {FormatId::int4, ScaleType::f16, true},
    {FormatId::nf4, ScaleType::f32},        {FormatId::nf4, ScaleType::bf16},        {FormatId::fp4, ScaleType::f16},
    {FormatId::fp4, ScaleType::f32},        {FormatId::mxfp4, ScaleType::e8m0},
};

// A strip, and what the kernels wrote of it.
struct Strip {
    int64_t index, n_panels;
    Guarded<uint8_t> buffer;
    S8Strip strip;
    bool grouped() const { return strip.grouped; }

    Strip(const RandomFourBitWeight& w, int64_t i, Isa isa)
        : index(i),
          n_panels(std::min<int64_t>(2, w.layout.N16 / kPanelColumns - 2 * i)),
          buffer(s8_strip_bytes(w.view())),
          strip(s8_strip(w.view(), i, isa, buffer.data())) {}
    int value(int64_t column, int64_t k) const {
        const int64_t line = k / 4 * kPanelColumns + column % kPanelColumns;
        return strip.panels[column / kPanelColumns * strip.panel_stride + line * 4 + k % 4];
    }
    double scale(int64_t s, int64_t column) const { return static_cast<double>(strip.scales[s * strip.group_stride + column]); }
};

// Whether every column of the strip may be re-quantized: +1 yes, -1 no, 0 too close to say.
int allowed(const RandomFourBitWeight& w, const Strip& strip) {
    int answer = 1;
    for (int64_t column = 0; column < strip.n_panels * kPanelColumns; ++column) {
        const int64_t n = strip.index * kStripColumns + column;
        if (n >= w.layout.N) continue;
        double squares = 0;
        for (int64_t g = 0; g < w.layout.groups; ++g) squares += w.scale(n, g) * w.scale(n, g);
        const double finest = static_cast<double>(w.book.finest), step = w.step(n);
        const double variance = step * step, limit = 0.04 * finest * finest * squares / static_cast<double>(w.layout.groups);
        if (!(variance <= limit * 1.001) || std::isinf(limit)) return -1;
        // Nobody is held to re-quantizing steps whose squares leave fp32.
        if (variance > limit * 0.999 || (step != 0 && (step < 1e-12 || step > 1e12))) answer = 0;
    }
    return answer;
}

void check_init(const RandomFourBitWeight& w, const Strip& strip, const std::string& what) {
    int64_t wrong = 0;
    for (int64_t s = 0; s < strip.strip.sum_blocks; ++s) {
        for (int64_t column = 0; column < strip.n_panels * kPanelColumns; ++column) {
            int64_t sum = 0;
            for (int64_t k = s * strip.strip.sum_k; k < std::min((s + 1) * strip.strip.sum_k, w.layout.K64); ++k) {
                sum += strip.value(column, k);
            }
            wrong += strip.strip.init[s * strip.strip.group_stride + column] != -128 * sum;
        }
    }
    check(wrong == 0, what + ": init is -128 times the sums");
}

// One scale per group, or per channel: the codes' values themselves.
void check_exact(const RandomFourBitWeight& w, const Strip& strip, const std::string& what) {
    const FourBitLayout& l = w.layout;
    int64_t wrong_values = 0, wrong_scales = 0;
    for (int64_t column = 0; column < strip.n_panels * kPanelColumns; ++column) {
        const int64_t n = strip.index * kStripColumns + column;
        for (int64_t k = 0; k < l.K64; ++k) wrong_values += strip.value(column, k) != w.integer(n, k);
        for (int64_t g = 0; g < l.packed_groups; ++g) {
            const float wanted = static_cast<float>(w.scale(n, g)) * w.book.unit, got = static_cast<float>(strip.scale(g, column));
            wrong_scales += got != wanted && !(std::isnan(got) && std::isnan(wanted));
        }
    }
    check(wrong_values == 0, what + ": " + std::to_string(wrong_values) + " exact values are wrong");
    check(wrong_scales == 0, what + ": " + std::to_string(wrong_scales) + " scales are wrong");
    const int64_t sum_k = strip.grouped() ? l.group_k : std::min(l.K64, kMaxSumK);
    check(strip.strip.sum_k == sum_k && strip.strip.sum_blocks == (l.K64 + sum_k - 1) / sum_k, what + ": sum blocks");
}

// One scale per column. The ratio of scales is rounded too: to 2^-11 times up to 15, or 2^-15 times up to 127.
void check_requantized(const RandomFourBitWeight& w, const Strip& strip, const std::string& what) {
    const FourBitLayout& l = w.layout;
    int64_t wrong_steps = 0, far = 0;
    for (int64_t column = 0; column < strip.n_panels * kPanelColumns; ++column) {
        const int64_t n = strip.index * kStripColumns + column;
        const double step = strip.scale(0, column);
        wrong_steps += std::fabs(step - w.step(n)) > 0x1p-21 * w.step(n);
        for (int64_t k = 0; k < l.K64; ++k) {
            const double exact = w.integer(n, k) * w.unit() * w.scale(n, k / l.group_k);
            const int value = strip.value(column, k);
            far += std::fabs(value * step - exact) > step / 2 * 1.01 || value < -127;
        }
    }
    check(wrong_steps == 0, what + ": the largest value has 127 steps");
    check(far == 0, what + ": " + std::to_string(far) + " values are off by more than half a step");
    const int64_t sum_k = std::min(l.K64, kMaxSumK);
    check(strip.strip.sum_k == sum_k && strip.strip.sum_blocks == (l.K64 + sum_k - 1) / sum_k, what + ": sum blocks of a column");
}

void check_same(const Strip& got, const Strip& wanted, int64_t K64, const std::string& what) {
    const S8Strip &g = got.strip, &w = wanted.strip;
    bool same = g.grouped == w.grouped && g.sum_k == w.sum_k && g.sum_blocks == w.sum_blocks && g.panel_stride == w.panel_stride;
    const int64_t columns = got.n_panels * kPanelColumns, scale_lines = g.grouped ? g.sum_blocks : 1;
    same = same && std::memcmp(g.panels, w.panels, static_cast<size_t>(columns * K64)) == 0;
    for (int64_t s = 0; same && s < g.sum_blocks; ++s) {
        same = std::memcmp(g.init + s * g.group_stride, w.init + s * w.group_stride, static_cast<size_t>(columns * 4)) == 0;
        if (s >= scale_lines) continue;
        same = same && std::memcmp(g.scales + s * g.group_stride, w.scales + s * w.group_stride, static_cast<size_t>(columns * 4)) == 0;
    }
    check(same, what + ": the same bytes as scalar");
}

struct Counts {
    int exact = 0, requantized = 0;
};

// All strips on all ISAs.
Counts check_strips(const RandomFourBitWeight& w) {
    Counts counts;
    for (int64_t i = 0; i * kStripColumns < w.layout.N; ++i) {
        const Strip scalar(w, i, Isa::scalar);
        const std::string what = w.text() + ", strip " + std::to_string(i);
        const bool one_group = w.layout.packed_groups == 1;
        const int rule = allowed(w, scalar);
        if (one_group || rule > 0) check(!scalar.grouped(), what + ": may have one scale per column");
        if (!one_group && rule < 0) check(scalar.grouped(), what + ": must keep its groups");
        check_init(w, scalar, what);
        scalar.grouped() || one_group ? check_exact(w, scalar, what) : check_requantized(w, scalar, what);
        ++(scalar.grouped() ? counts.exact : counts.requantized);
        for (int isa = 1; isa < kIsaCount; ++isa) {
            if (!isa_available(static_cast<Isa>(isa))) continue;
            check_same(Strip(w, i, static_cast<Isa>(isa)), scalar, w.layout.K64, what + ", " + isa_name(static_cast<Isa>(isa)));
        }
    }
    return counts;
}

std::vector<int64_t> group_sizes(FormatId format) {
    return format == FormatId::mxfp4 ? std::vector<int64_t>{32} : std::vector<int64_t>{0, 16, 32, 64, 128, 256};
}

// Scales close to each other, then one group of one column of the last strip far above the rest.
void test_shapes() {
    Random random(1);
    for (const FourBitKind& kind : kKinds) {
        for (const int64_t G : group_sizes(kind.format)) {
            for (const int64_t N : {5, 33, 64}) {
                const int64_t ks[] = {40, 64, 300, 12 * std::max<int64_t>(G, 16) + 7};
                for (const int64_t K : {ks[random.integer(0, 2)], ks[3]}) {
                    RandomFourBitWeight w(kind, N, K, G, random.bits());
                    check(check_strips(w).exact == 0, w.text() + ": even scales are re-quantized");
                    if (w.layout.groups < 12) continue;
                    w.dominate(N - 1, w.layout.groups - 1);
                    check(check_strips(w).exact == 1, w.text() + ": one huge group");
                }
            }
        }
    }
}

// Scales of every spread, so that the rule is met on both sides; of both signs.
void test_rule() {
    Random random(2);
    Counts all;
    for (const FourBitKind& kind : kKinds) {
        for (const double spread : {0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 8.0}) {
            for (const int64_t G : {32, 16}) {
                if (G == 16 && kind.format == FormatId::mxfp4) continue;
                RandomFourBitWeight w(kind, 64, 640, G, random.bits());
                for (double& scale : w.scales) {
                    scale = std::exp2(random.uniform() * spread) * (kind.format != FormatId::mxfp4 && random.integer(0, 3) == 0 ? -1 : 1);
                }
                w.pack();
                const Counts counts = check_strips(w);
                all.exact += counts.exact;
                all.requantized += counts.requantized;
            }
        }
    }
    check(all.exact > 40 && all.requantized > 40, "the rule decides both ways");
}

void test_special_scales() {
    const double huge = std::numeric_limits<double>::infinity();
    for (const FourBitKind& kind : kKinds) {
        RandomFourBitWeight w(kind, 40, 640, 32, 3);
        w.scales[0] = std::nan("");
        w.pack();
        check(check_strips(w).exact == 1, w.text() + ": NaN keeps its group");
        if (kind.format == FormatId::mxfp4) continue;
        w.scales[0] = huge;
        w.pack();
        check(check_strips(w).exact == 1, w.text() + ": infinity keeps its group");
        for (double& scale : w.scales) scale = 0;
        w.pack();
        check(check_strips(w).exact == 0, w.text() + ": all scales are zero");
        for (size_t i = 0; i < w.scales.size(); i += 2) w.scales[i] = 0.01;
        w.pack();
        check(check_strips(w).exact == 0, w.text() + ": every other scale is zero");
    }
}

// Scales whose squares are beyond fp32: a huge group is seen all the same.
void test_extreme_scales() {
    for (const FourBitKind& kind : {kKinds[0], kKinds[3], kKinds[6], kKinds[10]}) {
        for (const double factor : {0x1p-80, 0x1p80}) {
            RandomFourBitWeight w(kind, 40, 640, 32, 4);
            for (double& scale : w.scales) scale *= factor;
            w.pack();
            check_strips(w);
            w.dominate(3, 5);
            check(check_strips(w).exact >= 1, w.text() + ": one huge group among extreme ones");
        }
    }
}

// Sums of more than 65,536 k: per channel, re-quantized, and in exact groups.
void test_long_k() {
    for (const FourBitKind& kind : {kKinds[0], kKinds[3], kKinds[6], kKinds[10]}) {
        if (kind.format != FormatId::mxfp4) check_strips(RandomFourBitWeight(kind, 3, 70000, 0, 5));
        RandomFourBitWeight w(kind, 3, kMaxSumK + 100, kind.format == FormatId::mxfp4 ? 32 : 256, 6);
        check(check_strips(w).exact == 0, w.text() + ": long");
        w.dominate(1, 7);
        check(check_strips(w).exact == 1, w.text() + ": long groups");
    }
}

double normal(Random& random) {
    double sum = 0;
    for (int i = 0; i < 12; ++i) sum += random.uniform();
    return sum / 2;  // 12 uniforms in [-1, 1): variance 4
}

// What the rule is for: of a weight rounded to the format, re-quantizing raises the RMS error by at most 2 % (and what chance adds).
void check_rise(const FourBitKind& kind, double spread, Random& random, int& requantized) {
    RandomFourBitWeight w(kind, 32, 2048, 32, random.bits());
    std::vector<double> dense(w.codes.size());
    for (size_t first = 0; first < dense.size(); first += 32) {
        double largest = 0;
        const double size = std::exp2(random.uniform() * spread);
        for (size_t i = first; i < first + 32; ++i) largest = std::max(largest, std::fabs(dense[i] = size * normal(random)));
        const double scale = largest / static_cast<double>(w.book.largest);
        w.scales[first / 32] = kind.format == FormatId::mxfp4 ? std::exp2(std::ceil(std::log2(scale))) : scale;
    }
    w.pack();
    for (size_t i = 0; i < dense.size(); ++i) {
        double nearest = HUGE_VAL;
        for (int code = 0; code < 16; ++code) {
            const double distance = std::fabs(static_cast<double>(w.book.value[code]) * w.scales[i / 32] - dense[i]);
            if (distance < nearest) w.codes[i] = code;
            nearest = std::min(nearest, distance);
        }
    }
    w.pack();
    const Strip strip(w, 0, isa_active());
    if (strip.grouped()) return;
    ++requantized;
    double exact = 0, after = 0;
    for (int64_t i = 0; i < w.layout.N * w.layout.K; ++i) {
        const int64_t n = i / w.layout.K, k = i % w.layout.K;
        const double stored = static_cast<double>(w.book.value[w.codes[static_cast<size_t>(i)]]) * w.scale(n, k / 32);
        exact += std::pow(stored - dense[static_cast<size_t>(i)], 2);
        after += std::pow(strip.value(n, k) * strip.scale(0, n) - dense[static_cast<size_t>(i)], 2);
    }
    check(after <= exact * 1.0404 * 1.003, w.text() + ": RMS error rises by a factor of " + std::to_string(std::sqrt(after / exact)));
}

void test_rise() {
    Random random(7);
    for (const FourBitKind& kind : {kKinds[0], kKinds[6], kKinds[9], kKinds[10]}) {
        int requantized = 0;
        for (const double spread : {0.0, 0.25, 0.5, 0.75, 1.0}) check_rise(kind, spread, random, requantized);
        check(requantized > 0, std::string(name(kind.format)) + ": something was re-quantized");
    }
}

}  // namespace
}  // namespace gossamer::test

int main() {
    using namespace gossamer::test;
    test_shapes();
    test_rule();
    test_special_scales();
    test_extreme_scales();
    test_long_k();
    test_rise();
    return finish();
}
