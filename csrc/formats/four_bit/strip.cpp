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

// The scales and zero points of one group of one panel, as numbers.
struct GroupConstants {
    float scale[kPanelColumns];
    int16_t zero[kPanelColumns];
};

GroupConstants constants_of(const FourBitWeight& w, const Codebook& book, int64_t panel, int64_t group) {
    const int64_t index = (panel * w.layout.packed_groups + group) * kPanelColumns;
    GroupConstants c;
    for (int64_t n = 0; n < kPanelColumns; ++n) {
        if (w.scale_type == ScaleType::f32) {
            c.scale[n] = static_cast<const float*>(w.scales)[index + n];
        } else {
            const uint16_t* bits = static_cast<const uint16_t*>(w.scales) + index + n;
            c.scale[n] = (w.scale_type == ScaleType::f16 ? load_f16(bits) : load_bf16(bits)).v;
        }
        c.zero[n] = w.zero_points == nullptr ? static_cast<int16_t>(book.offset) : w.zero_points[index + n];
    }
    return c;
}

// How one panel is brought to one scale per column.
struct Requantization {
    float step[kPanelColumns];  // of the int8 values, per unit of the codebook
    bool accurate = true;       // whether the rise in variance is allowed in every column
};

Requantization choose_steps(const FourBitWeight& w, const Codebook& book, int64_t panel) {
    const FourBitLayout& l = w.layout;
    // In fp64, which holds the square of every scale.
    double largest[kPanelColumns] = {}, squares[kPanelColumns] = {};
    for (int64_t g = 0; g < l.packed_groups; ++g) {
        const GroupConstants c = constants_of(w, book, panel, g);
        for (int64_t n = 0; n < kPanelColumns; ++n) {
            const float reach = w.zero_points == nullptr ? book.largest / book.unit : static_cast<float>(std::max<int>(c.zero[n], 15 - c.zero[n]));
            const double scale = std::fabs(static_cast<double>(c.scale[n]));
            largest[n] = std::max(largest[n], scale * static_cast<double>(reach));
            squares[n] += scale * scale;
        }
    }
    const double finest = static_cast<double>(book.finest / book.unit);
    Requantization r;
    for (int64_t n = 0; n < kPanelColumns; ++n) {
        const double step = largest[n] / 127, allowed = kVarianceRise * finest * finest * squares[n] / static_cast<double>(l.groups);
        r.step[n] = static_cast<float>(step);
        // Written so that a NaN counts as inaccurate, and an infinity too.
        r.accurate = r.accurate && allowed - step * step >= 0;
    }
    return r;
}

// What int8 values of this codebook may be shifted left by before VPMULHRSW: 16 times 15 leaves the ratio, at most 127 / 8, its 15 bits.
int shift_of(const Codebook& book) { return book.largest > 16 * book.unit ? 0 : 4; }

void ratios(const GroupConstants& c, const Requantization& r, int shift, int16_t* ratio) {
    const float one = static_cast<float>(1 << (15 - shift));
    for (int64_t n = 0; n < kPanelColumns; ++n) {
        const float x = r.step[n] > 0 ? c.scale[n] / r.step[n] * one : 0.0f;
        ratio[n] = static_cast<int16_t>(std::clamp(std::nearbyint(x), -32767.0f, 32767.0f));
    }
}

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

struct PanelTask {
    const FourBitWeight& weight;
    const Codebook& book;
    const FourBitKernels& kernels;
    int64_t panel, column;  // column of the strip: 0 or 16
    StripBuffer buffer;
};

// k in [first_k, last_k) of one group.
FourBitGroup group_of(const PanelTask& t, const GroupConstants& c, int64_t first_k, int64_t last_k) {
    const FourBitLayout& l = t.weight.layout;
    FourBitGroup g{};
    g.codes = t.weight.panels + t.panel * (l.K64 / 2 * kPanelColumns) + first_k / 2 * kPanelColumns;
    g.lines = (last_k - first_k) / 8;
    g.table = t.weight.format == FormatId::int4 ? nullptr : t.book.s8;
    g.zero = c.zero;
    g.shift = shift_of(t.book);
    g.out = t.buffer.panels + t.column * l.K64 + first_k * kPanelColumns;
    return g;
}

// Values as they are; a sum block is a group, or 65,536 k of the only group.
void expand_exactly(const PanelTask& t, int64_t sum_k) {
    const FourBitLayout& l = t.weight.layout;
    for (int64_t k = 0, s = 0; k < l.K64; k += sum_k, ++s) {
        const GroupConstants c = constants_of(t.weight, t.book, t.panel, k / l.group_k);
        int32_t* init = t.buffer.init + s * kGroupsLine + t.column;
        float* scales = t.buffer.scales + s * kGroupsLine + t.column;
        std::memset(init, 0, kPanelColumns * sizeof(int32_t));
        FourBitGroup g = group_of(t, c, k, std::min(k + sum_k, l.K64));
        g.sum = init;
        t.kernels.values(g);
        for (int64_t n = 0; n < kPanelColumns; ++n) {
            init[n] *= -128;
            scales[n] = c.scale[n] * t.book.unit;
        }
    }
}

void expand_requantized(const PanelTask& t, const Requantization& r, int64_t sum_k) {
    const FourBitLayout& l = t.weight.layout;
    for (int64_t k = 0, s = 0; k < l.K64; k += sum_k, ++s) {
        int32_t* init = t.buffer.init + s * kGroupsLine + t.column;
        std::memset(init, 0, kPanelColumns * sizeof(int32_t));
        const int64_t last_k = std::min(k + sum_k, l.K64);
        for (int64_t group_k = k; group_k < last_k; group_k += l.group_k) {
            const GroupConstants c = constants_of(t.weight, t.book, t.panel, group_k / l.group_k);
            int16_t ratio[kPanelColumns];
            ratios(c, r, shift_of(t.book), ratio);
            FourBitGroup g = group_of(t, c, group_k, std::min(group_k + l.group_k, last_k));
            g.ratio = ratio;
            g.sum = init;
            t.kernels.requantize(g);
        }
        for (int64_t n = 0; n < kPanelColumns; ++n) init[n] *= -128;
    }
    for (int64_t n = 0; n < kPanelColumns; ++n) t.buffer.scales[t.column + n] = r.step[n] * t.book.unit;
}

}  // namespace

int64_t s8_strip_bytes(const FourBitWeight& weight) {
    return round_up(kStripColumns * weight.layout.K64 + 2 * 4 * kGroupsLine * StripBuffer::lines(weight.layout), 64);
}

S8Strip s8_strip(const FourBitWeight& weight, int64_t strip, Isa isa, uint8_t* buffer) {
    const FourBitLayout& l = weight.layout;
    const Codebook& book = codebook(weight.format);
    const FourBitKernels& kernels = select_kernels(four_bit_list(), isa);
    const StripBuffer parts(l, buffer);
    const int64_t first = strip * 2, last = std::min(first + 2, l.N16 / kPanelColumns);
    Requantization steps[2];
    bool grouped = false;
    for (int64_t panel = first; panel < last && l.packed_groups > 1; ++panel) {
        steps[panel - first] = choose_steps(weight, book, panel);
        grouped = grouped || !steps[panel - first].accurate;
    }
    const int64_t sum_k = sum_k_of(l, grouped);
    for (int64_t panel = first; panel < last; ++panel) {
        const PanelTask task{weight, book, kernels, panel, (panel - first) * kPanelColumns, parts};
        if (grouped || l.packed_groups == 1) {
            expand_exactly(task, sum_k);
        } else {
            expand_requantized(task, steps[panel - first], sum_k);
        }
    }
    return {parts.panels, l.K64 * kPanelColumns, parts.init, parts.scales, kGroupsLine, sum_k, (l.K64 + sum_k - 1) / sum_k, grouped};
}

void expand_f32(const FourBitWeight& weight, const PanelRange& range, Isa isa, float* out) {
    const FourBitLayout& l = weight.layout;
    const Codebook& book = codebook(weight.format);
    const FourBitKernels& kernels = select_kernels(four_bit_list(), isa);
    // The zero point in the codebook's own units, so that nf4 is not rounded to int8 here.
    float table[16], zero[kPanelColumns];
    for (int code = 0; code < 16; ++code) table[code] = weight.zero_points == nullptr ? book.value[code] : static_cast<float>(code);
    const uint8_t* codes = weight.panels + range.panel * (l.K64 / 2 * kPanelColumns);
    for (int64_t k = range.first_k; k < range.last_k;) {
        const int64_t group = k / l.group_k, last_k = std::min((group + 1) * l.group_k, range.last_k);
        const GroupConstants c = constants_of(weight, book, range.panel, group);
        for (int64_t n = 0; n < kPanelColumns; ++n) zero[n] = weight.zero_points == nullptr ? 0.0f : static_cast<float>(c.zero[n]);
        kernels.floats({codes + k / 2 * kPanelColumns, (last_k - k) / 8, table, zero, c.scale, out + (k - range.first_k) * kPanelColumns});
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
