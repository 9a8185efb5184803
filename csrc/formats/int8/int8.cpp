// Packing and unpacking format int8. Contract: format_int8.h.
#include <algorithm>
#include <stdexcept>
#include <string>

#include "dispatch/lists.h"
#include "formats/rows.h"
#include "gossamer/format_int8.h"
#include "gossamer/s8.h"

namespace gossamer {
namespace {

// Where W[n,k] lies in the panels.
int64_t panel_index(const Int8Layout& l, int64_t n, int64_t k) {
    return n / kPanelColumns * kPanelColumns * l.K64 + k / 4 * (kPanelColumns * 4) + n % kPanelColumns * 4 + k % 4;
}

void pack_row(const Int8Layout& l, const int8_t* values, int64_t n, int8_t* panels, int32_t* init) {
    for (int64_t s = 0; s < l.sum_blocks; ++s) {
        const int64_t last = std::min(l.K, (s + 1) * l.sum_k);
        int32_t sum = 0;
        for (int64_t k = s * l.sum_k; k < last; ++k) {
            panels[panel_index(l, n, k)] = values[k];
            sum += values[k];
        }
        init[s * l.N16 + n] = -128 * sum;
    }
}

// Calls expand(values, values before them) for each group of the range, or once for all of it where there are none.
template <class Expand>
void for_each_group(const Int8Layout& l, const float* all_scales, const int8_t* values, const PanelRange& range, const Expand& expand) {
    for (int64_t k = range.first_k, next; k < range.last_k; k = next) {
        next = l.G == 0 ? range.last_k : std::min(k / l.G * l.G + l.G, range.last_k);
        // Groups that lie in the padding of K hold zeros, whatever their scale.
        const int64_t group = l.G == 0 ? 0 : std::min(k / l.G, l.groups - 1);
        const float* scales = l.G == 0 ? nullptr : all_scales + group * l.N16 + range.panel * kPanelColumns;
        const int64_t before = (k - range.first_k) * kPanelColumns;
        expand(Int8Expand{values + before, (next - k) / 4, scales}, before);
    }
}

const int8_t* values_at(const Int8Weight& weight, const PanelRange& range) {
    return weight.panels + range.panel * kPanelColumns * weight.layout.K64 + range.first_k * kPanelColumns;
}

}  // namespace

Int8Layout int8_layout(int64_t N, int64_t K, int64_t G) {
    check_shape("int8", N, K);
    if (G != 0 && G != 32 && G != 64 && G != 128) {
        throw std::invalid_argument("int8: group_size: got " + std::to_string(G) + ", wanted 32, 64, 128, or 0 for per channel");
    }
    Int8Layout l{};
    l.N = N;
    l.K = K;
    l.G = G;
    l.N16 = round_up(N, kPanelColumns);
    l.K64 = round_up(K, 64);
    l.groups = G == 0 ? 1 : (K + G - 1) / G;
    l.sum_k = G == 0 ? kMaxSumK : G;
    l.sum_blocks = G == 0 ? (l.K64 + kMaxSumK - 1) / kMaxSumK : l.groups;
    l.scales_offset = static_cast<int64_t>(sizeof(PackedHeader));
    l.init_offset = l.scales_offset + l.groups * l.N16 * 4;
    l.panels_offset = l.init_offset + l.sum_blocks * l.N16 * 4;
    l.size_bytes = l.panels_offset + l.N16 * l.K64;
    return l;
}

Int8Weight int8_view(const void* packed, int64_t packed_bytes) {
    const PackedHeader header = read_header(packed, packed_bytes);
    check_format(header, header.format == FormatId::int8, "int8");
    const Int8Layout l = int8_layout(header.N, header.K, header.G);
    check_packed_bytes(header, packed_bytes, l.size_bytes);
    const char* bytes = static_cast<const char*>(packed);
    return {l, reinterpret_cast<const float*>(bytes + l.scales_offset), reinterpret_cast<const int32_t*>(bytes + l.init_offset),
            reinterpret_cast<const int8_t*>(bytes + l.panels_offset)};
}

void int8_pack(const int8_t* values, const float* scales, const Int8Layout& l, Activations activations, void* packed, int threads) {
    char* bytes = begin_packed(make_header(FormatId::int8, l.N, l.K, l.G, activations), packed, l.size_bytes);
    float* packed_scales = reinterpret_cast<float*>(bytes + l.scales_offset);
    int32_t* init = reinterpret_cast<int32_t*>(bytes + l.init_offset);
    int8_t* panels = reinterpret_cast<int8_t*>(bytes + l.panels_offset);
    for_each_row(l.N, threads, [&](int64_t n) {
        pack_row(l, values + n * l.K, n, panels, init);
        for (int64_t g = 0; g < l.groups; ++g) packed_scales[g * l.N16 + n] = scales[n * l.groups + g];
    });
}

void int8_unpack(const Int8Weight& weight, int8_t* values, float* scales, int threads) {
    const Int8Layout& l = weight.layout;
    for_each_row(l.N, threads, [&](int64_t n) {
        for (int64_t k = 0; k < l.K; ++k) values[n * l.K + k] = weight.panels[panel_index(l, n, k)];
        for (int64_t g = 0; g < l.groups; ++g) scales[n * l.groups + g] = weight.scales[g * l.N16 + n];
    });
}

void dequantize(const Int8Weight& weight, int64_t first_row, int64_t last_row, float* out, int threads) {
    const Int8Layout& l = weight.layout;
    check_rows("int8 dequantize", first_row, last_row, l.N);
    const int64_t group = l.G == 0 ? l.K : l.G;
    for_each_row(last_row - first_row, threads, [&](int64_t row) {
        const int64_t n = first_row + row;
        for (int64_t k = 0; k < l.K; ++k) {
            out[row * l.K + k] = static_cast<float>(weight.panels[panel_index(l, n, k)]) * weight.scales[k / group * l.N16 + n];
        }
    });
}

S8Strip s8_strip(const Int8Weight& weight, int64_t strip, Isa, uint8_t*) {
    const Int8Layout& l = weight.layout;
    const int64_t column = strip * kStripColumns;
    S8Strip s{};
    s.panels = weight.panels + column * l.K64;
    s.panel_stride = l.K64 * kPanelColumns;
    s.init = weight.init + column;
    s.scales = weight.scales + column;
    s.group_stride = l.N16;
    s.sum_k = l.sum_k;
    s.sum_blocks = l.sum_blocks;
    s.grouped = l.G > 0;
    return s;
}

void expand_f32(const Int8Weight& weight, const PanelRange& range, Isa isa, float* out) {
    expand_values_f32(weight.layout, weight.scales, values_at(weight, range), range, isa, out);
}

void expand_bf16(const Int8Weight& weight, const PanelRange& range, Isa isa, uint16_t* out) {
    expand_values_bf16(weight.layout, weight.scales, values_at(weight, range), range, isa, out);
}

void expand_values_f32(const Int8Layout& l, const float* scales, const int8_t* values, const PanelRange& range, Isa isa, float* out) {
    const Int8ExpandKernels& kernels = select_kernels(int8_expand_list(), isa);
    for_each_group(l, scales, values, range, [&](const Int8Expand& run, int64_t before) { kernels.to_f32(run, out + before); });
}

void expand_values_bf16(const Int8Layout& l, const float* scales, const int8_t* values, const PanelRange& range, Isa isa, uint16_t* out) {
    const Int8ExpandKernels& kernels = select_kernels(int8_expand_list(), isa);
    for_each_group(l, scales, values, range, [&](const Int8Expand& run, int64_t before) { kernels.to_bf16(run, out + before); });
}

}  // namespace gossamer
