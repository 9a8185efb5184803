// The sparse formats: canonical tensors to packed bytes and back, panels for every lane on every ISA, and bytes that are refused.
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "check.h"
#include "dispatch/lists.h"
#include "gossamer/format_sparse.h"
#include "sparse_weight.h"

namespace gossamer::test {
namespace {

constexpr FormatId kFormats[] = {FormatId::sparse_int8, FormatId::sparse_int4, FormatId::sparse_bf16, FormatId::sparse_f32};
constexpr SparsePattern kPatterns[] = {SparsePattern::any, SparsePattern::b1x4, SparsePattern::b1x16, SparsePattern::b4x1,
                                       SparsePattern::b16x1};
constexpr SparseShape kShapes[] = {
    {1, 1, 1.0},    {1, 1, 0.0},    {16, 64, 0.5},  {17, 65, 0.3},  {37, 300, 0.5},
    {48, 257, 0.1}, {5, 1000, 0.8}, {33, 128, 0.0}, {33, 127, 1.0}, {31, 521, 0.4, SparsePattern::any, true}};

SparseSpec spec_of(FormatId format, int64_t N, int64_t K, int64_t G, SparsePattern pattern) {
    const bool integer = format == FormatId::sparse_int8 || format == FormatId::sparse_int4;
    const ScaleType scale_type = format != FormatId::sparse_int4 ? ScaleType::f32 : G == 0 ? ScaleType::f16 : ScaleType::bf16;
    return {format, N, K, G, scale_type, integer ? Activations::int8 : Activations::exact, pattern, kPartBitmask};
}

std::vector<Isa> available_isas() {
    std::vector<Isa> isas;
    for (int i = 0; i < kIsaCount; ++i) {
        if (isa_available(static_cast<Isa>(i))) isas.push_back(static_cast<Isa>(i));
    }
    return isas;
}

void check_round_trip(const RandomSparseWeight& w, const SparseWeight& view) {
    std::vector<uint8_t> mask(w.mask.size(), 0xff), values(w.values.size(), 0xff), scales(w.scales.size(), 0xff);
    sparse_unpack(view, mask.data(), values.data(), w.scales.empty() ? nullptr : scales.data(), 3);
    check(mask == w.mask, w.text() + ": mask");
    check(values == w.values, w.text() + ": values");
    check(scales == w.scales, w.text() + ": scales");
    for (const int64_t first : {int64_t{0}, w.spec.N / 3}) {
        std::vector<float> rows(static_cast<size_t>((w.spec.N - first) * w.spec.K));
        dequantize(view, first, w.spec.N, rows.data(), 2);
        const double* wanted = w.dense.data() + first * w.spec.K;
        check_equal(rows.data(), wanted, static_cast<int64_t>(rows.size()), w.text() + ": dequantize");
    }
}

// The value that the lane has for (n, k) of a strip or panel: zero in the padding.
double dense_at(const RandomSparseWeight& w, int64_t n, int64_t k) {
    return n < w.spec.N && k < w.spec.K ? w.dense[static_cast<size_t>(n * w.spec.K + k)] : 0.0;
}

void check_strips(const RandomSparseWeight& w, const SparseWeight& view, Isa isa) {
    const SparseLayout& l = view.layout;
    int64_t wrong = 0;
    Guarded<uint8_t> buffer(s8_strip_bytes(view));
    for (int64_t strip = 0; strip < (l.N16 + 31) / 32; ++strip) {
        const S8Strip s = s8_strip(view, strip, isa, buffer.data(), true);
        for (int64_t column = 0; column < std::min<int64_t>(32, l.N16 - 32 * strip); ++column) {
            const int64_t n = strip * 32 + column;
            for (int64_t k = 0; k < std::min(l.K64, s.sum_blocks * s.sum_k); ++k) {
                const int8_t value = s.panels[column / 16 * s.panel_stride + k / 4 * 64 + column % 16 * 4 + k % 4];
                const int64_t group = s.grouped ? k / s.sum_k : 0;
                const float scale = s.scales[group * s.group_stride + column];
                wrong += static_cast<double>(value) * static_cast<double>(scale) == dense_at(w, n, k) ? 0 : 1;
            }
            for (int64_t block = 0; block < s.sum_blocks; ++block) {
                int32_t sum = 0;
                for (int64_t k = block * s.sum_k; k < std::min((block + 1) * s.sum_k, l.K64); ++k) {
                    sum += s.panels[column / 16 * s.panel_stride + k / 4 * 64 + column % 16 * 4 + k % 4];
                }
                wrong += s.init[block * s.group_stride + column] == -128 * sum ? 0 : 1;
            }
        }
    }
    check(wrong == 0, w.text() + ": strips on " + isa_name(isa));
}

void check_panels(const RandomSparseWeight& w, const SparseWeight& view, Isa isa) {
    const SparseLayout& l = view.layout;
    int64_t wrong = 0;
    for (int64_t panel = 0; panel < view.panels(); ++panel) {
        for (const int64_t first : {int64_t{0}, l.K64 / 2 / 64 * 64}) {
            const PanelRange range{panel, first, l.K64};
            Guarded<float> wide((l.K64 - first) * 16);
            Guarded<uint16_t> narrow((l.K64 - first) * 16);
            expand_f32(view, range, isa, wide.data());
            expand_bf16(view, range, isa, narrow.data());
            for (int64_t k = 0; k < l.K64 - first; ++k) {
                for (int64_t column = 0; column < 16; ++column) {
                    const int64_t n = panel * 16 + column;
                    const float* channel = channel_scales(view);
                    const double scale = channel == nullptr ? 1.0 : static_cast<double>(channel[n]);
                    const double wanted = dense_at(w, n, first + k);
                    wrong += static_cast<double>(wide[k * 16 + column]) * scale == wanted ? 0 : 1;
                    const uint32_t bits = static_cast<uint32_t>(narrow[(k / 2 * 16 + column) * 2 + k % 2]) << 16;
                    float rounded;
                    std::memcpy(&rounded, &bits, 4);
                    wrong += std::fabs(static_cast<double>(rounded) * scale - wanted) <= std::fabs(wanted) / 256 ? 0 : 1;
                }
            }
        }
    }
    check(wrong == 0, w.text() + ": panels on " + isa_name(isa));
}

void check_weight(FormatId format, const SparseShape& shape, int64_t G, SparsePattern pattern) {
    const RandomSparseWeight w(spec_of(format, shape.N, shape.K, G, pattern), shape, 7);
    const Guarded<uint8_t> packed = w.packed(), same = w.packed(3);
    check(std::memcmp(packed.data(), same.data(), static_cast<size_t>(packed.size())) == 0, w.text() + ": the same for any threads");
    const SparseWeight view = sparse_view(packed.data(), packed.size());
    check(view.nnz == w.nnz, w.text() + ": nnz");
    check_round_trip(w, view);
    for (const Isa isa : available_isas()) {
        if (format == FormatId::sparse_int8 || format == FormatId::sparse_int4) check_strips(w, view, isa);
        check_panels(w, view, isa);
    }
}

void check_all() {
    for (const FormatId format : kFormats) {
        for (const SparseShape& shape : kShapes) {
            for (const SparsePattern pattern : kPatterns) {
                check_weight(format, shape, 0, pattern);
                if (format == FormatId::sparse_int8) check_weight(format, shape, 32, pattern);
                if (format == FormatId::sparse_int4) check_weight(format, shape, 64, pattern);
            }
        }
    }
}

// A weight pruned in blocks is stored in blocks, in the bytes that the contract says.
void check_patterns() {
    for (const FormatId format : kFormats) {
        for (const SparsePattern pattern : kPatterns) {
            RandomSparseWeight w(spec_of(format, 64, 512, 0, SparsePattern::any), {64, 512, 0.3, pattern}, 3);
            check(best_pattern(w.rows()) == pattern, w.text() + ": blocks " + name(pattern) + " are found");
            w.spec.pattern = pattern;
            const Guarded<uint8_t> packed = w.packed();
            const SparseWeight view = sparse_view(packed.data(), packed.size());
            const int64_t block = pattern == SparsePattern::any                                      ? 1
                                  : pattern == SparsePattern::b1x4 || pattern == SparsePattern::b4x1 ? 4
                                                                                                     : 16;
            check(view.panels() * view.layout.mask_stride == 64 * 512 / 8 / block, w.text() + ": bytes of masks");
            if (format != FormatId::sparse_int4 || block > 1) {
                check(view.value_bytes() == w.nnz * view.layout.value_bits / 8, w.text() + ": no zeros are stored");
            }
        }
    }
}

void check_refused() {
    for (const FormatId format : kFormats) {
        for (const SparsePattern pattern : kPatterns) {
            const RandomSparseWeight w(spec_of(format, 40, 300, 0, pattern), {40, 300, 0.5}, 5);
            const Guarded<uint8_t> packed = w.packed();
            const SparseWeight view = sparse_view(packed.data(), packed.size());
            const SparseLayout& l = view.layout;
            Guarded<uint8_t> damaged(packed.size());
            const auto refused = [&](int64_t byte, int flip) {
                std::memcpy(damaged.data(), packed.data(), static_cast<size_t>(packed.size()));
                damaged[byte] = static_cast<uint8_t>(damaged[byte] ^ flip);
                check_throws<std::invalid_argument>([&] { sparse_view(damaged.data(), damaged.size()); }, "packed weight: ");
            };
            for (int64_t i = l.offsets_offset; i < l.offsets_offset + (view.panels() * l.tiles + 1) * 8; ++i) refused(i, 1 << i % 8);
            if (format != FormatId::sparse_int4) {  // a line's last half byte may be spare
                for (int64_t i = l.masks_offset; i < l.masks_offset + view.panels() * l.mask_stride; i += 7) refused(i, 1 << i % 8);
            }
            for (const size_t field : {offsetof(PackedHeader, pattern), offsetof(PackedHeader, parts)}) {
                refused(static_cast<int64_t>(field), 0xf0);
            }
            refused(static_cast<int64_t>(offsetof(PackedHeader, nnz)) + 7, 0x80);
            for (const int64_t bytes :
                 {int64_t{63}, int64_t{64}, l.masks_offset, l.values_offset, packed.size() - 64, packed.size() + 64}) {
                check_throws<std::invalid_argument>([&] { sparse_view(packed.data(), bytes); }, "packed weight: ");
            }
        }
    }
    RandomSparseWeight w(spec_of(FormatId::sparse_f32, 3, 9, 0, SparsePattern::any), {3, 9, 0.5}, 5);
    check_throws<std::invalid_argument>([&] { sparse_rows(w.spec, {w.mask.data(), w.values.data(), nullptr}, w.nnz + 1); }, "values");
    w.mask[1] |= 0x80;
    check_throws<std::invalid_argument>([&] { w.rows(); }, "row 0 has bits beyond K = 9");
}

}  // namespace
}  // namespace gossamer::test

int main() {
    using namespace gossamer::test;
    check_all();
    check_patterns();
    check_refused();
    return finish();
}
