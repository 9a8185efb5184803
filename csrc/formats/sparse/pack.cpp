// Packing and unpacking the sparse formats. Contract: format_sparse.h.
#include <algorithm>
#include <bit>
#include <cstring>
#include <stdexcept>
#include <string>

#include "check.h"
#include "formats/rows.h"
#include "gossamer/spmm.h"

namespace gossamer {
namespace {

// Calls body(k) for the stored values of row n, in order.
template <class Body>
void for_each_stored(const SparseRows& rows, int64_t n, const Body& body) {
    const uint8_t* mask = rows.tensors.mask + n * rows.mask_stride();
    for (int64_t i = 0; i < rows.mask_stride(); ++i) {
        for (uint32_t bits = mask[i]; bits != 0; bits &= bits - 1) body(i * 8 + std::countr_zero(bits));
    }
}

// The bit of W[n,k] in the masks of its panel.
int64_t bit_index(const SparseLayout& l, SparsePattern pattern, int64_t n, int64_t k) {
    const int64_t column = n % kPanelColumns, line = k / l.line_k, in_line = k % l.line_k;
    switch (pattern) {
        case SparsePattern::any: return line * l.line_weights + column * l.line_k + in_line;
        case SparsePattern::b1x4: return k / 4 * kPanelColumns + column;
        case SparsePattern::b1x16: return k / 16 * kPanelColumns + column;
        case SparsePattern::b4x1: return line * (l.line_weights / 4) + column / 4 * l.line_k + in_line;
        case SparsePattern::b16x1: break;
    }
    return k;
}

// masks [mask_stride]: the bits of one panel.
void make_masks(const SparseRows& rows, const SparseLayout& l, SparsePattern pattern, int64_t panel, uint8_t* masks) {
    std::memset(masks, 0, static_cast<size_t>(mask_bytes(pattern, l.K64)));
    const int64_t last = std::min((panel + 1) * kPanelColumns, l.N);
    for (int64_t n = panel * kPanelColumns; n < last; ++n) {
        for_each_stored(rows, n, [&](int64_t k) {
            const int64_t bit = bit_index(l, pattern, n, k);
            masks[bit / 8] = static_cast<uint8_t>(masks[bit / 8] | 1 << bit % 8);
        });
    }
}

int64_t panel_value_bytes(const SparseLayout& l, SparsePattern pattern, const uint8_t* masks) {
    return value_bytes(l, {pattern, masks, nullptr, l.K64 / l.line_k});
}

// The values of one panel behind each other, zeros where a block holds more than is stored.
void pack_values(const SparseRows& rows, const SparseLayout& l, int64_t panel, const uint8_t* masks, uint8_t* values) {
    int64_t next[kPanelColumns] = {};
    for (int64_t c = 0; c < kPanelColumns && panel * kPanelColumns + c < l.N; ++c) {
        next[c] = rows.first_value[static_cast<size_t>(panel * kPanelColumns + c)];
    }
    const uint8_t* all = static_cast<const uint8_t*>(rows.tensors.values);
    const uint32_t zero = l.value_bits == 4 ? 8 : 0;
    for (int64_t line = 0; line < l.K64 / l.line_k; ++line) {
        uint64_t mask = line_mask(l, rows.spec.pattern, masks, line);
        const int64_t count = std::popcount(mask);
        for (int64_t i = 0; i < count; ++i, mask &= mask - 1) {
            const int64_t element = std::countr_zero(mask);
            const int64_t column = element / l.line_k, n = panel * kPanelColumns + column, k = line * l.line_k + element % l.line_k;
            const bool stored = n < l.N && k < l.K && rows.stored(n, k);
            const uint32_t bits = stored ? value_bits_at(l, all, next[column]++) : zero;
            if (l.value_bits == 4) {
                values[i / 2] = static_cast<uint8_t>(i % 2 == 0 ? bits : values[i / 2] | bits << 4);
            } else {
                std::memcpy(values + i * (l.value_bits / 8), &bits, static_cast<size_t>(l.value_bits / 8));
            }
        }
        values += (count * l.value_bits + 7) / 8;
    }
}

// Scales, and for int8 the sums of the values.
void pack_scales(const SparseRows& rows, const SparseLayout& l, int64_t n, char* packed) {
    if (rows.spec.format == FormatId::sparse_int8) {
        float* scales = reinterpret_cast<float*>(packed + l.scales_offset);
        int32_t* init = reinterpret_cast<int32_t*>(packed + l.init_offset);
        for (int64_t g = 0; g < l.groups; ++g) scales[g * l.N16 + n] = static_cast<const float*>(rows.tensors.scales)[n * l.groups + g];
        const int8_t* value = static_cast<const int8_t*>(rows.tensors.values) + rows.first_value[static_cast<size_t>(n)];
        for_each_stored(rows, n, [&](int64_t k) { init[k / l.sum_k * l.N16 + n] -= 128 * *value++; });
    } else if (rows.spec.format == FormatId::sparse_int4) {
        const int64_t size = rows.spec.scale_type == ScaleType::f32 ? 4 : 2;
        const char* scales = static_cast<const char*>(rows.tensors.scales) + n * l.groups * size;
        for (int64_t g = 0; g < l.groups; ++g) {
            const int64_t to = (n / kPanelColumns * l.packed_groups + g) * kPanelColumns + n % kPanelColumns;
            std::memcpy(packed + l.scales_offset + to * size, scales + g * size, static_cast<size_t>(size));
        }
    }
}

void unpack_scales(const SparseWeight& w, int64_t n, void* scales) {
    const SparseLayout& l = w.layout;
    if (w.spec.format == FormatId::sparse_int8) {
        for (int64_t g = 0; g < l.groups; ++g) {
            static_cast<float*>(scales)[n * l.groups + g] = static_cast<const float*>(w.scales)[g * l.N16 + n];
        }
    } else if (w.spec.format == FormatId::sparse_int4) {
        const int64_t size = w.spec.scale_type == ScaleType::f32 ? 4 : 2;
        for (int64_t g = 0; g < l.groups; ++g) {
            const int64_t from = (n / kPanelColumns * l.packed_groups + g) * kPanelColumns + n % kPanelColumns;
            std::memcpy(static_cast<char*>(scales) + (n * l.groups + g) * size, static_cast<const char*>(w.scales) + from * size,
                        static_cast<size_t>(size));
        }
    }
}

// Writes the part bitmask but for its masks' values of other panels; offsets [panels * tiles + 1].
void pack_bitmask(const SparseRows& rows, const SparseLayout& l, char* packed, int threads) {
    int64_t* offsets = reinterpret_cast<int64_t*>(packed + l.offsets_offset);
    uint8_t* masks = reinterpret_cast<uint8_t*>(packed + l.masks_offset);
    uint8_t* values = reinterpret_cast<uint8_t*>(packed + l.values_offset);
    const int64_t panels = l.N16 / kPanelColumns;
    const SparsePattern pattern = rows.spec.pattern;
    for_each_panel({0, panels}, threads, [&](int64_t panel) { make_masks(rows, l, pattern, panel, masks + panel * l.mask_stride); });
    int64_t bytes = 0;
    for (int64_t panel = 0; panel < panels; ++panel) {
        for (int64_t tile = 0; tile < l.tiles; ++tile) {
            offsets[panel * l.tiles + tile] = bytes;
            const int64_t k = tile * kSparseTileK, last_k = std::min(k + kSparseTileK, l.K64);
            bytes += value_bytes(l, {pattern, masks + panel * l.mask_stride + mask_bytes(pattern, k), nullptr, (last_k - k) / l.line_k});
        }
    }
    offsets[panels * l.tiles] = bytes;
    for_each_panel({0, panels}, threads,
                   [&](int64_t panel) { pack_values(rows, l, panel, masks + panel * l.mask_stride, values + offsets[panel * l.tiles]); });
}

int64_t bitmask_end(const SparseRows& rows, const SparseLayout& l) {
    std::vector<uint8_t> masks(static_cast<size_t>(l.mask_stride));
    int64_t bytes = 0;
    for (int64_t panel = 0; panel < l.N16 / kPanelColumns; ++panel) {
        make_masks(rows, l, rows.spec.pattern, panel, masks.data());
        bytes += panel_value_bytes(l, rows.spec.pattern, masks.data());
    }
    return round_up(l.values_offset + bytes + 64, 64);
}

}  // namespace

SparseRows sparse_rows(const SparseSpec& spec, const SparseTensors& tensors, int64_t values) {
    check_spec(spec);
    sparse_layout(spec);
    SparseRows rows{spec, tensors, std::vector<int64_t>(static_cast<size_t>(spec.N + 1))};
    const std::string what = std::string(name(spec.format)) + ": mask: ";
    int64_t count = 0;
    for (int64_t n = 0; n < spec.N; ++n) {
        rows.first_value[static_cast<size_t>(n)] = count;
        const uint8_t* mask = tensors.mask + n * rows.mask_stride();
        for (int64_t i = 0; i < rows.mask_stride(); ++i) count += std::popcount(mask[i]);
        if (spec.K % 8 != 0 && mask[rows.mask_stride() - 1] >> spec.K % 8 != 0) {
            throw std::invalid_argument(what + "row " + std::to_string(n) + " has bits beyond K = " + std::to_string(spec.K));
        }
    }
    rows.first_value[static_cast<size_t>(spec.N)] = count;
    if (count != values) {
        throw std::invalid_argument(what + "has " + std::to_string(count) + " bits, but there are " + std::to_string(values) + " values");
    }
    return rows;
}

SparsePattern best_pattern(const SparseRows& rows) {
    // Some panels stand for all: a pattern that was pruned for is in every one of them.
    constexpr int64_t kSamples = 16;
    const SparseLayout l = sparse_layout(rows.spec);
    const int64_t panels = l.N16 / kPanelColumns, step = std::max<int64_t>(panels / kSamples, 1);
    std::vector<uint8_t> masks(static_cast<size_t>(mask_bytes(SparsePattern::any, l.K64)));
    SparsePattern best = SparsePattern::any;
    int64_t fewest = 0;
    for (int i = 0; i < kSparsePatternCount; ++i) {
        const auto pattern = static_cast<SparsePattern>(i);
        int64_t bytes = 0;
        for (int64_t panel = 0; panel < panels; panel += step) {
            make_masks(rows, l, pattern, panel, masks.data());
            bytes += mask_bytes(pattern, l.K64) + panel_value_bytes(l, pattern, masks.data());
        }
        if (i == 0 || bytes < fewest) {
            fewest = bytes;
            best = pattern;
        }
    }
    return best;
}

int64_t sparse_packed_bytes(const SparseRows& rows) {
    const SparseLayout l = sparse_layout(rows.spec);
    const bool bitmask = (rows.spec.parts & kPartBitmask) != 0, spmm = (rows.spec.parts & kPartSpmm) != 0;
    return (bitmask ? bitmask_end(rows, l) : round_up(l.offsets_offset, 64)) + (spmm ? spmm_bytes(rows) : 0);
}

void sparse_pack(const SparseRows& rows, void* packed, int64_t packed_bytes, int threads) {
    const SparseSpec& spec = rows.spec;
    const SparseLayout l = sparse_layout(spec);
    PackedHeader header = make_header(spec.format, spec.N, spec.K, spec.G, spec.activations);
    header.scale_type = spec.scale_type;
    header.pattern = static_cast<uint8_t>(spec.pattern);
    header.parts = spec.parts;
    header.nnz = rows.first_value.back();
    char* bytes = begin_packed(header, packed, packed_bytes);
    for_each_row(l.N, threads, [&](int64_t n) { pack_scales(rows, l, n, bytes); });
    int64_t end = round_up(l.offsets_offset, 64);
    if ((spec.parts & kPartBitmask) != 0) {
        pack_bitmask(rows, l, bytes, threads);
        const int64_t* offsets = reinterpret_cast<const int64_t*>(bytes + l.offsets_offset);
        end = round_up(l.values_offset + offsets[l.N16 / kPanelColumns * l.tiles] + 64, 64);
    }
    if ((spec.parts & kPartSpmm) != 0) spmm_pack(rows, reinterpret_cast<uint8_t*>(bytes + end), threads);
}

void sparse_unpack(const SparseWeight& w, uint8_t* mask, void* values, void* scales, int threads) {
    const SparseLayout& l = w.layout;
    const int64_t mask_stride = (l.K + 7) / 8;
    std::memset(mask, 0, static_cast<size_t>(l.N * mask_stride));
    for (int64_t n = 0; n < l.N && scales != nullptr; ++n) unpack_scales(w, n, scales);
    if (!w.has(kPartBitmask)) return spmm_unpack(w.spec, w.spmm, mask, values);
    std::vector<int64_t> first(static_cast<size_t>(l.N + 1));
    for_each_panel({0, w.panels()}, threads, [&](int64_t panel) {
        for_each_value(w, panel, [&](int64_t n, int64_t k, uint32_t) {
            uint8_t& byte = mask[n * mask_stride + k / 8];
            byte = static_cast<uint8_t>(byte | 1 << k % 8);
            ++first[static_cast<size_t>(n + 1)];
        });
    });
    for (size_t n = 0; n < static_cast<size_t>(l.N); ++n) first[n + 1] += first[n];
    if (first.back() != w.nnz) {
        throw std::invalid_argument("packed weight: " + std::string(name(w.spec.format)) + ": got " + std::to_string(first.back()) +
                                    " values, wanted " + std::to_string(w.nnz));
    }
    if (l.value_bits == 4) std::fill_n(static_cast<uint8_t*>(values), (w.nnz + 1) / 2, uint8_t{0});  // null where there are no values
    const auto place = [&](int64_t panel) {
        for_each_value(w, panel, [&](int64_t n, int64_t, uint32_t bits) {
            const int64_t to = first[static_cast<size_t>(n)]++;
            uint8_t* out = static_cast<uint8_t*>(values);
            if (l.value_bits == 4) {
                out[to / 2] = static_cast<uint8_t>(out[to / 2] | bits << to % 2 * 4);
            } else {
                std::memcpy(out + to * (l.value_bits / 8), &bits, static_cast<size_t>(l.value_bits / 8));
            }
        });
    };
    // Two panels may share a byte of codes.
    if (l.value_bits != 4) return for_each_panel({0, w.panels()}, threads, place);
    for (int64_t panel = 0; panel < w.panels(); ++panel) place(panel);
}

}  // namespace gossamer
