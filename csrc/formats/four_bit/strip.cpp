// Strips of 4-bit weights as the lanes multiply them: which scale, which zero point, exact groups or one scale per column.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "dispatch/lists.h"
#include "expand.h"
#include "gossamer/format_four_bit.h"
#include "simd/scalar.h"

namespace gossamer {
namespace {

constexpr int64_t kGroupsLine = kStripColumns;  // floats or sums of one group of a strip

// Re-quantizing may raise the RMS error by 2 %, so its variance by 4 %.
constexpr double kVarianceRise = 0.04;

int64_t sum_k_of(const FourBitLayout& l, bool grouped) { return grouped ? l.group_k : std::min(l.K64, kMaxSumK); }

// How one panel is brought to one scale per column.
struct Requantization {
    float step[kPanelColumns];  // of the int8 values, per unit of the codebook
    bool accurate = true;       // whether the rise in variance is allowed in every column
};

// What int8 values of this codebook may be shifted left by before VPMULHRSW: 16 times 15 leaves the ratio, at most 127 / 8, its 15 bits.
int shift_of(const Codebook& book) { return book.largest > 16 * book.unit ? 0 : 4; }

// The pieces of a strip's buffer.
struct StripBuffer {
    int8_t* panels;
    int32_t* init;
    float* scales;

    StripBuffer(const FourBitLayout& l, uint8_t* buffer) {
        panels = reinterpret_cast<int8_t*>(buffer);
        init = reinterpret_cast<int32_t*>(buffer + kStripColumns * l.K64);
        scales = reinterpret_cast<float*>(init + lines(l) * kGroupsLine);
    }
    static int64_t lines(const FourBitLayout& l) { return std::max(l.packed_groups, (l.K64 + kMaxSumK - 1) / kMaxSumK); }
};

// Where the constants of a group of a panel begin.
int64_t group_index(const FourBitWeight& w, int64_t panel, int64_t group) {
    return (panel * w.layout.packed_groups + group) * kPanelColumns;
}

// Scales of `groups` groups as they are packed, to be converted to fp32, 32 floats apart.
FourBitScales packed_scales(const FourBitWeight& w, int64_t panel, int64_t group, int64_t groups, float* out) {
    const ScaleType type = w.scale_type == ScaleType::e8m0 ? ScaleType::bf16 : w.scale_type;
    const int64_t bytes = group_index(w, panel, group) * (type == ScaleType::f32 ? 4 : 2);
    return {static_cast<const char*>(w.scales) + bytes, type, groups, out};
}

struct PanelTask {
    const FourBitWeight& weight;
    const Codebook& book;
    const FourBitKernels& kernels;
    int64_t panel, column;  // column of the strip: 0 or 16
    StripBuffer buffer;

    float* scales(int64_t group) const { return buffer.scales + group * kGroupsLine + column; }
    int32_t* init(int64_t sum_block) const { return buffer.init + sum_block * kGroupsLine + column; }
    // What is subtracted from the values of a group.
    void zero_points(int64_t group, int16_t* zero) const {
        if (weight.zero_points == nullptr) {
            std::fill_n(zero, kPanelColumns, static_cast<int16_t>(book.offset));
        } else {
            std::copy_n(weight.zero_points + group_index(weight, panel, group), kPanelColumns, zero);
        }
    }
};

Requantization choose_steps(const PanelTask& t) {
    const FourBitLayout& l = t.weight.layout;
    float largest[kPanelColumns] = {}, reach[kPanelColumns];
    double squares[kPanelColumns] = {};  // fp64 holds the square of every scale
    std::fill_n(reach, kPanelColumns, t.book.largest / t.book.unit);
    for (int64_t g = 0; g < l.packed_groups; ++g) {
        const float* scale = t.scales(g);
        if (t.weight.zero_points != nullptr) {
            int16_t zero[kPanelColumns];
            t.zero_points(g, zero);
            for (int64_t n = 0; n < kPanelColumns; ++n) reach[n] = static_cast<float>(std::max<int>(zero[n], 15 - zero[n]));
        }
        for (int64_t n = 0; n < kPanelColumns; ++n) {
            const float extreme = std::fabs(scale[n]) * reach[n];
            largest[n] = largest[n] > extreme ? largest[n] : extreme;
            squares[n] += static_cast<double>(scale[n]) * static_cast<double>(scale[n]);
        }
    }
    const double finest = static_cast<double>(t.book.finest / t.book.unit);
    Requantization r;
    for (int64_t n = 0; n < kPanelColumns; ++n) {
        r.step[n] = largest[n] / 127.0f;
        const double step = static_cast<double>(r.step[n]);
        const double allowed = kVarianceRise * finest * finest * squares[n] / static_cast<double>(l.groups);
        // Written so that a NaN counts as inaccurate, and an infinity too; so does a step whose inverse would overflow.
        r.accurate = r.accurate && allowed - step * step >= 0 && (step == 0 || step > 1e-30);
    }
    return r;
}

// k in [first_k, last_k) of one group.
FourBitGroup group_of(const PanelTask& t, const int16_t* zero, int64_t first_k, int64_t last_k) {
    const FourBitLayout& l = t.weight.layout;
    FourBitGroup g{};
    g.codes = t.weight.panels + t.panel * (l.K64 / 2 * kPanelColumns) + first_k / 2 * kPanelColumns;
    g.lines = (last_k - first_k) / 8;
    g.table = t.weight.format == FormatId::int4 ? nullptr : t.book.s8;
    g.zero = zero;
    g.shift = shift_of(t.book);
    g.out = t.buffer.panels + t.column * l.K64 + first_k * kPanelColumns;
    return g;
}

// Values as they are; a sum block is a group, or 65,536 k of the only group.
void expand_exactly(const PanelTask& t, int64_t sum_k) {
    const FourBitLayout& l = t.weight.layout;
    int16_t zero[kPanelColumns];
    for (int64_t k = 0, s = 0; k < l.K64; k += sum_k, ++s) {
        int32_t* init = t.init(s);
        std::memset(init, 0, kPanelColumns * sizeof(int32_t));
        t.zero_points(k / l.group_k, zero);
        FourBitGroup g = group_of(t, zero, k, std::min(k + sum_k, l.K64));
        g.sum = init;
        t.kernels.values(g);
        for (int64_t n = 0; n < kPanelColumns; ++n) init[n] *= -128;
    }
    for (int64_t g = 0; g < l.packed_groups; ++g) {
        for (int64_t n = 0; n < kPanelColumns; ++n) t.scales(g)[n] *= t.book.unit;
    }
}

void expand_requantized(const PanelTask& t, const Requantization& r, int64_t sum_k) {
    const FourBitLayout& l = t.weight.layout;
    const float one = static_cast<float>(1 << (15 - shift_of(t.book)));
    float per_step[kPanelColumns];
    // 32,767 in place of 32,768: the largest ratio of nf4 must stay in int16.
    for (int64_t n = 0; n < kPanelColumns; ++n) per_step[n] = r.step[n] > 0 ? std::min(one, 32767.0f) / r.step[n] : 0.0f;
    int16_t zero[kPanelColumns], ratio[kPanelColumns];
    t.zero_points(0, zero);
    for (int64_t k = 0, s = 0; k < l.K64; k += sum_k, ++s) {
        int32_t* init = t.init(s);
        std::memset(init, 0, kPanelColumns * sizeof(int32_t));
        const int64_t last_k = std::min(k + sum_k, l.K64);
        for (int64_t group_k = k; group_k < last_k; group_k += l.group_k) {
            const int64_t group = group_k / l.group_k;
            t.kernels.ratios(t.scales(group), per_step, ratio);
            if (t.weight.zero_points != nullptr) t.zero_points(group, zero);
            FourBitGroup g = group_of(t, zero, group_k, std::min(group_k + l.group_k, last_k));
            g.ratio = ratio;
            g.sum = init;
            t.kernels.requantize(g);
        }
        for (int64_t n = 0; n < kPanelColumns; ++n) init[n] *= -128;
    }
    for (int64_t n = 0; n < kPanelColumns; ++n) t.scales(0)[n] = r.step[n] * t.book.unit;
}

}  // namespace

int64_t s8_strip_bytes(const FourBitWeight& weight) {
    return round_up(kStripColumns * weight.layout.K64 + 2 * 4 * kGroupsLine * StripBuffer::lines(weight.layout), 64);
}

S8Strip s8_strip(const FourBitWeight& weight, int64_t strip, Isa isa, uint8_t* buffer, bool exact_groups) {
    const FourBitLayout& l = weight.layout;
    const Codebook& book = codebook(weight.format);
    const FourBitKernels& kernels = select_kernels(four_bit_list(), isa);
    const StripBuffer parts(l, buffer);
    const int64_t first = strip * 2, last = std::min(first + 2, l.N16 / kPanelColumns);
    const auto task_of = [&](int64_t panel) { return PanelTask{weight, book, kernels, panel, (panel - first) * kPanelColumns, parts}; };
    Requantization steps[2];
    bool grouped = exact_groups && l.packed_groups > 1;
    for (int64_t panel = first; panel < last; ++panel) {
        const PanelTask task = task_of(panel);
        kernels.scales(packed_scales(weight, panel, 0, l.packed_groups, task.scales(0)));
        if (l.packed_groups == 1 || exact_groups) continue;
        steps[panel - first] = choose_steps(task);
        grouped = grouped || !steps[panel - first].accurate;
    }
    const int64_t sum_k = sum_k_of(l, grouped);
    for (int64_t panel = first; panel < last; ++panel) {
        if (grouped || l.packed_groups == 1) {
            expand_exactly(task_of(panel), sum_k);
        } else {
            expand_requantized(task_of(panel), steps[panel - first], sum_k);
        }
    }
    return {parts.panels, l.K64 * kPanelColumns, parts.init, parts.scales, kGroupsLine, sum_k, (l.K64 + sum_k - 1) / sum_k, grouped};
}

void expand_f32(const FourBitWeight& weight, const PanelRange& range, Isa isa, float* out) {
    const FourBitLayout& l = weight.layout;
    const Codebook& book = codebook(weight.format);
    const FourBitKernels& kernels = select_kernels(four_bit_list(), isa);
    // Values as they are, so that nf4 is not rounded to int8 here.
    float table[16], zero[kPanelColumns] = {}, scale[kStripColumns];
    for (int code = 0; code < 16; ++code) table[code] = weight.zero_points == nullptr ? book.value[code] : static_cast<float>(code);
    const uint8_t* codes = weight.panels + range.panel * (l.K64 / 2 * kPanelColumns);
    for (int64_t k = range.first_k; k < range.last_k;) {
        const int64_t group = k / l.group_k, last_k = std::min((group + 1) * l.group_k, range.last_k);
        kernels.scales(packed_scales(weight, range.panel, group, 1, scale));
        if (weight.zero_points != nullptr) std::copy_n(weight.zero_points + group_index(weight, range.panel, group), kPanelColumns, zero);
        kernels.floats({codes + k / 2 * kPanelColumns, (last_k - k) / 8, table, zero, scale, out + (k - range.first_k) * kPanelColumns});
        k = last_k;
    }
}

void expand_bf16(const FourBitWeight& weight, const PanelRange& range, Isa isa, uint16_t* out) {
    constexpr int64_t kBlock = 64;
    alignas(64) float block[kBlock * kPanelColumns];
    for (int64_t k = range.first_k; k < range.last_k; k += kBlock) {
        expand_f32(weight, {range.panel, k, k + kBlock}, isa, block);
        for (int64_t i = 0; i < kBlock; ++i) {
            for (int64_t n = 0; n < kPanelColumns; ++n) {
                const int64_t to = ((k - range.first_k + i) / 2 * kPanelColumns + n) * 2 + i % 2;
                store_bf16(out + to, {block[i * kPanelColumns + n]});
            }
        }
    }
}

}  // namespace gossamer
