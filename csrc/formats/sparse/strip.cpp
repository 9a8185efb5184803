// Sparse panels expanded for the lanes: to the values of the dense format, then as that does. Contract: format_sparse.h.
#include <algorithm>

#include "dispatch/lists.h"
#include "gossamer/format_sparse.h"
#include "linear/workspace.h"
#include "simd/scalar.h"

namespace gossamer {
namespace {

// Values of one range on their way to a float lane: at most one panel.
thread_local Workspace dense_workspace;

template <class T>
T* dense_buffer(int64_t count) {
    return reinterpret_cast<T*>(dense_workspace.reserve(count * static_cast<int64_t>(sizeof(T))));
}

int64_t panels_of_strip(const SparseWeight& weight, int64_t strip) { return std::min<int64_t>(2, weight.panels() - 2 * strip); }
int64_t codes_bytes(const SparseLayout& l) { return l.K64 / 2 * kPanelColumns; }  // of a panel of 4-bit codes

// Panels of a sparse int4 weight, expanded to `codes`, as an int4 weight of their own.
FourBitWeight as_four_bit(const SparseWeight& weight, int64_t panel, int64_t panels, const uint8_t* codes) {
    const SparseLayout& l = weight.layout;
    const ScaleType type = weight.spec.scale_type;
    FourBitWeight dense{};
    dense.layout = four_bit_layout(FormatId::int4, panels * kPanelColumns, l.K, l.G, type, false);
    dense.format = FormatId::int4;
    dense.scale_type = type;
    const int64_t scale_bytes = type == ScaleType::f32 ? 4 : 2;
    dense.scales = static_cast<const char*>(weight.scales) + panel * l.packed_groups * kPanelColumns * scale_bytes;
    dense.panels = codes;
    return dense;
}

Int8Layout int8_layout_of(const SparseLayout& l) { return int8_layout(l.N, l.K, l.G); }

}  // namespace

int64_t s8_strip_bytes(const SparseWeight& weight) {
    const SparseLayout& l = weight.layout;
    if (weight.spec.format == FormatId::sparse_int8) return kStripColumns * l.K64;
    return 2 * codes_bytes(l) + s8_strip_bytes(as_four_bit(weight, 0, 2, nullptr));
}

S8Strip s8_strip(const SparseWeight& weight, int64_t strip, Isa isa, uint8_t* buffer, bool exact_groups) {
    const SparseLayout& l = weight.layout;
    const SparseS8Kernels& kernels = select_kernels(sparse_s8_list(), isa);
    const int64_t panel = 2 * strip, panels = panels_of_strip(weight, strip);
    if (weight.spec.format == FormatId::sparse_int4) {
        for (int64_t j = 0; j < panels; ++j) {
            kernels.expand_codes(sparse_lines(weight, {panel + j, 0, l.K64}), buffer + j * codes_bytes(l));
        }
        return s8_strip(as_four_bit(weight, panel, panels, buffer), 0, isa, buffer + 2 * codes_bytes(l), exact_groups);
    }
    int8_t* values = reinterpret_cast<int8_t*>(buffer);
    const int64_t panel_stride = l.K64 * kPanelColumns, column = strip * kStripColumns;
    for (int64_t j = 0; j < panels; ++j) {
        kernels.expand_bytes(sparse_lines(weight, {panel + j, 0, l.K64}), values + j * panel_stride);
    }
    const float* scales = static_cast<const float*>(weight.scales) + column;
    return {values, panel_stride, weight.init + column, scales, l.N16, l.sum_k, l.sum_blocks, l.G > 0};
}

void expand_f32(const SparseWeight& weight, const PanelRange& range, Isa isa, float* out) {
    const SparseLines lines = sparse_lines(weight, range);
    const int64_t count = (range.last_k - range.first_k) * kPanelColumns;
    switch (weight.spec.format) {
        case FormatId::sparse_int8: {
            int8_t* values = dense_buffer<int8_t>(count);
            select_kernels(sparse_s8_list(), isa).expand_bytes(lines, values);
            return expand_values_f32(int8_layout_of(weight.layout), static_cast<const float*>(weight.scales), values, range, isa, out);
        }
        case FormatId::sparse_int4: {
            uint8_t* codes = dense_buffer<uint8_t>(codes_bytes(weight.layout));
            select_kernels(sparse_s8_list(), isa).expand_codes(lines, codes + range.first_k / 2 * kPanelColumns);
            return expand_f32(as_four_bit(weight, range.panel, 1, codes), {0, range.first_k, range.last_k}, isa, out);
        }
        case FormatId::sparse_bf16: {
            uint16_t* words = dense_buffer<uint16_t>(count);
            select_kernels(sparse_float_list(), isa).expand_words(lines, words);
            return select_kernels(bf16_expand_list(), isa).to_f32(words, (range.last_k - range.first_k) / 2, out);
        }
        default: return select_kernels(sparse_float_list(), isa).expand_dwords(lines, out);
    }
}

void expand_bf16(const SparseWeight& weight, const PanelRange& range, Isa isa, uint16_t* out) {
    const SparseLines lines = sparse_lines(weight, range);
    const int64_t count = (range.last_k - range.first_k) * kPanelColumns;
    switch (weight.spec.format) {
        case FormatId::sparse_int8: {
            int8_t* values = dense_buffer<int8_t>(count);
            select_kernels(sparse_s8_list(), isa).expand_bytes(lines, values);
            return expand_values_bf16(int8_layout_of(weight.layout), static_cast<const float*>(weight.scales), values, range, isa, out);
        }
        case FormatId::sparse_int4: {
            uint8_t* codes = dense_buffer<uint8_t>(codes_bytes(weight.layout));
            select_kernels(sparse_s8_list(), isa).expand_codes(lines, codes + range.first_k / 2 * kPanelColumns);
            return expand_bf16(as_four_bit(weight, range.panel, 1, codes), {0, range.first_k, range.last_k}, isa, out);
        }
        case FormatId::sparse_bf16: return select_kernels(sparse_float_list(), isa).expand_words(lines, out);
        default: break;
    }
    float* values = dense_buffer<float>(count);
    select_kernels(sparse_float_list(), isa).expand_dwords(lines, values);
    for (int64_t i = 0; i < count; ++i) {
        const int64_t k = i / kPanelColumns, column = i % kPanelColumns;
        store_bf16(out + (k / 2 * kPanelColumns + column) * 2 + k % 2, {values[i]});
    }
}

}  // namespace gossamer
