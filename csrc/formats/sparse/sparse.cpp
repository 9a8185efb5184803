// Where the parts of a sparse weight lie, its view, and its values as dense rows. Contract: format_sparse.h.
#include <algorithm>
#include <bit>
#include <cstring>
#include <stdexcept>
#include <string>

#include "check.h"
#include "formats/rows.h"
#include "gossamer/format_sparse.h"
#include "gossamer/spmm.h"
#include "lanes/sparse_line.h"
#include "simd/scalar.h"

namespace gossamer {
namespace {

constexpr const char* kPatternNames[kSparsePatternCount] = {"any", "1x4", "1x16", "4x1", "16x1"};

// How many weights a bit stands for.
int64_t block_size(SparsePattern pattern) {
    constexpr int64_t kSizes[kSparsePatternCount] = {1, 4, 16, 4, 16};
    return kSizes[static_cast<size_t>(pattern)];
}

int64_t set_bits(const uint8_t* bytes, int64_t size) {
    int64_t count = 0;
    for (int64_t i = 0; i < size; i += 8) {
        uint64_t word;
        std::memcpy(&word, bytes + i, sizeof word);
        count += std::popcount(word);
    }
    return count;
}

// The scale of group g of row n.
float scale_at(const SparseWeight& weight, int64_t n, int64_t g) {
    const SparseLayout& l = weight.layout;
    if (weight.spec.format == FormatId::sparse_int8) return static_cast<const float*>(weight.scales)[g * l.N16 + n];
    const int64_t i = (n / kPanelColumns * l.packed_groups + g) * kPanelColumns + n % kPanelColumns;
    if (weight.spec.scale_type == ScaleType::f32) return static_cast<const float*>(weight.scales)[i];
    const uint16_t* bits = static_cast<const uint16_t*>(weight.scales) + i;
    return (weight.spec.scale_type == ScaleType::f16 ? load_f16(bits) : load_bf16(bits)).v;
}

float value_of(const SparseWeight& weight, uint32_t bits, int64_t n, int64_t k) {
    const int64_t group = weight.layout.G == 0 ? 0 : k / weight.layout.G;
    switch (weight.spec.format) {
        case FormatId::sparse_int8: return static_cast<float>(static_cast<int8_t>(bits)) * scale_at(weight, n, group);
        case FormatId::sparse_int4: return static_cast<float>(static_cast<int>(bits) - 8) * scale_at(weight, n, group);
        case FormatId::sparse_bf16: return bits_float(bits << 16);
        default: return bits_float(bits);
    }
}

// From the other part, where there is no bitmask.
void dequantize_spmm(const SparseWeight& weight, int64_t first_row, int64_t last_row, float* out) {
    const int64_t K = weight.layout.K;
    spmm_values(weight.spec, weight.spmm, first_row, last_row, out);
    if (weight.spec.format != FormatId::sparse_int8) return;
    for (int64_t n = first_row; n < last_row; ++n) {
        for (int64_t k = 0; k < K; ++k) out[(n - first_row) * K + k] *= scale_at(weight, n, 0);  // no groups (spmm_offered)
    }
}

}  // namespace

const char* name(SparsePattern pattern) { return kPatternNames[static_cast<size_t>(pattern)]; }

SparseLayout sparse_layout(const SparseSpec& spec) {
    SparseLayout l{};
    l.N = spec.N;
    l.K = spec.K;
    l.G = spec.G;
    l.offsets_offset = static_cast<int64_t>(sizeof(PackedHeader));
    l.scales_offset = l.init_offset = l.offsets_offset;
    check_shape(name(spec.format), spec.N, spec.K);
    if (spec.format == FormatId::sparse_int8) {
        const Int8Layout dense = int8_layout(spec.N, spec.K, spec.G);
        l.groups = l.packed_groups = dense.groups;
        l.init_offset = dense.init_offset;
        l.sum_k = dense.sum_k;
        l.sum_blocks = dense.sum_blocks;
        l.offsets_offset = dense.panels_offset;
    } else if (spec.format == FormatId::sparse_int4) {
        const FourBitLayout dense = four_bit_layout(FormatId::int4, spec.N, spec.K, spec.G, spec.scale_type, false);
        l.groups = dense.groups;
        l.packed_groups = dense.packed_groups;
        l.offsets_offset = dense.panels_offset;
    } else if (spec.G != 0) {
        throw std::invalid_argument(std::string(name(spec.format)) + ": group_size: got " + std::to_string(spec.G) +
                                    ", wanted 0: its values have no scales");
    }
    l.N16 = round_up(spec.N, kPanelColumns);
    l.K64 = round_up(spec.K, 64);
    const bool f32 = spec.format == FormatId::sparse_f32, bf16 = spec.format == FormatId::sparse_bf16;
    l.line_k = f32 ? 1 : bf16 ? 2 : 4;
    l.line_weights = l.line_k * kPanelColumns;
    l.value_bits = f32 ? 32 : bf16 ? 16 : spec.format == FormatId::sparse_int8 ? 8 : 4;
    l.tiles = (l.K64 + kSparseTileK - 1) / kSparseTileK;
    l.mask_stride = mask_bytes(spec.pattern, l.K64);
    const int64_t panels = l.N16 / kPanelColumns;
    l.masks_offset = round_up(l.offsets_offset + (panels * l.tiles + 1) * 8, 64);
    l.values_offset = round_up(l.masks_offset + panels * l.mask_stride, 64);
    return l;
}

int64_t mask_bytes(SparsePattern pattern, int64_t K) { return K * kPanelColumns / 8 / block_size(pattern); }

int64_t value_bytes(const SparseLayout& l, const SparseLines& lines) {
    const int64_t size = mask_bytes(lines.pattern, lines.lines * l.line_k);
    if (l.value_bits != 4 || lines.pattern != SparsePattern::any) {
        return set_bits(lines.masks, size) * block_size(lines.pattern) * l.value_bits / 8;
    }
    int64_t bytes = 0;  // every line of codes begins on a byte
    for (int64_t i = 0; i < size; i += 8) bytes += (set_bits(lines.masks + i, 8) + 1) / 2;
    return bytes;
}

uint64_t line_mask(const SparseLayout& l, SparsePattern pattern, const uint8_t* masks, int64_t line) {
    if (l.line_k == 4) return bits_of_line<4>(pattern, masks, line);
    return l.line_k == 2 ? bits_of_line<2>(pattern, masks, line) : bits_of_line<1>(pattern, masks, line);
}

SparseLines sparse_lines(const SparseWeight& weight, const PanelRange& range) {
    const SparseLayout& l = weight.layout;
    const int64_t tile = range.first_k / kSparseTileK, tile_k = tile * kSparseTileK;
    const uint8_t* masks = weight.masks + range.panel * l.mask_stride;
    const SparsePattern pattern = weight.spec.pattern;
    const uint8_t* values = weight.values + weight.offsets[range.panel * l.tiles + tile];
    if (range.first_k > tile_k) {
        values += value_bytes(l, {pattern, masks + mask_bytes(pattern, tile_k), nullptr, (range.first_k - tile_k) / l.line_k});
    }
    return {pattern, masks + mask_bytes(pattern, range.first_k), values, (range.last_k - range.first_k) / l.line_k};
}

SparseWeight sparse_view(const void* packed, int64_t packed_bytes) {
    const PackedHeader header = read_header(packed, packed_bytes);
    check_format(header, header.format >= FormatId::sparse_int8 && header.format <= FormatId::sparse_f32, "a sparse format");
    SparseWeight w{};
    w.spec = {
        header.format, header.N, header.K, header.G, header.scale_type, header.activations, static_cast<SparsePattern>(header.pattern),
        header.parts};
    check_spec(w.spec);
    w.layout = sparse_layout(w.spec);
    w.size_bytes = packed_bytes;
    w.nnz = header.nnz;
    check_parts(w, static_cast<const uint8_t*>(packed));
    return w;
}

void dequantize(const SparseWeight& weight, int64_t first_row, int64_t last_row, float* out, int threads) {
    const SparseLayout& l = weight.layout;
    check_rows("sparse dequantize", first_row, last_row, l.N);
    std::fill_n(out, (last_row - first_row) * l.K, 0.0f);
    if (!weight.has(kPartBitmask)) return dequantize_spmm(weight, first_row, last_row, out);
    const int64_t first_panel = first_row / kPanelColumns, last_panel = (last_row + kPanelColumns - 1) / kPanelColumns;
    for_each_panel({first_panel, last_panel}, threads, [&](int64_t panel) {
        for_each_value(weight, panel, [&](int64_t n, int64_t k, uint32_t bits) {
            if (n >= first_row && n < last_row) out[(n - first_row) * l.K + k] = value_of(weight, bits, n, k);
        });
    });
}

}  // namespace gossamer
