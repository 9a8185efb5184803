// Packing and unpacking format fp8. Contract: format_fp8.h.
#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

#include "dispatch/lists.h"
#include "formats/rows.h"
#include "gossamer/format_fp8.h"
#include "values.h"

namespace gossamer {
namespace {

constexpr int64_t kBlock = 128;  // rows and columns that share a scale

// Where the code of W[n,k] lies in the panels.
int64_t panel_index(const Fp8Layout& l, int64_t n, int64_t k) {
    const int64_t column = n % kPanelColumns, line = n / kPanelColumns * (l.K64 / 4) + k / 4;
    return line * 64 + column / 4 * 16 + k % 4 / 2 * 8 + column % 4 * 2 + k % 2;
}

float scale_at(const Fp8Weight& weight, int64_t n, int64_t k) {
    return weight.layout.G == 0 ? weight.scales[n] : weight.scales[n / kBlock * weight.layout.scale_columns + k / kBlock];
}

// Calls expand(codes, scale, values before them) for each run of the range that has one scale.
template <class Expand>
void for_each_scale(const Fp8Weight& weight, const PanelRange& range, const Expand& expand) {
    const Fp8Layout& l = weight.layout;
    const uint8_t* panel = weight.panels + range.panel * kPanelColumns * l.K64;
    for (int64_t k = range.first_k, next; k < range.last_k; k = next) {
        next = l.G == 0 ? range.last_k : std::min(k / kBlock * kBlock + kBlock, range.last_k);
        const float scale = l.G == 0 ? 1.0f : scale_at(weight, range.panel * kPanelColumns, k);
        expand(Fp8Expand{weight.format, panel + k * kPanelColumns, (next - k) / 4, scale}, (k - range.first_k) * kPanelColumns);
    }
}

}  // namespace

Fp8Layout fp8_layout(int64_t N, int64_t K, int64_t G) {
    check_shape("fp8", N, K);
    if (G != 0 && G != kBlock) {
        throw std::invalid_argument("fp8: group_size: got " + std::to_string(G) + ", wanted 128, or 0 for per channel");
    }
    Fp8Layout l{};
    l.N = N;
    l.K = K;
    l.G = G;
    l.N16 = round_up(N, kPanelColumns);
    l.K64 = round_up(K, 64);
    l.scale_rows = G == 0 ? N : (N + kBlock - 1) / kBlock;
    l.scale_columns = G == 0 ? 1 : (K + kBlock - 1) / kBlock;
    const int64_t scales = G == 0 ? l.N16 : l.scale_rows * l.scale_columns;
    l.scales_offset = static_cast<int64_t>(sizeof(PackedHeader));
    l.panels_offset = l.scales_offset + round_up(scales * 4, 64);
    l.size_bytes = l.panels_offset + l.N16 * l.K64;
    return l;
}

Fp8Weight fp8_view(const void* packed, int64_t packed_bytes) {
    const PackedHeader header = read_header(packed, packed_bytes);
    check_format(header, header.format == FormatId::fp8_e4m3 || header.format == FormatId::fp8_e5m2, "fp8_e4m3 or fp8_e5m2");
    const Fp8Layout l = fp8_layout(header.N, header.K, header.G);
    check_packed_bytes(header, packed_bytes, l.size_bytes);
    const uint8_t* bytes = static_cast<const uint8_t*>(packed);
    return {l, header.format, reinterpret_cast<const float*>(bytes + l.scales_offset), bytes + l.panels_offset};
}

void fp8_pack(FormatId format, const uint8_t* codes, const float* scales, const Fp8Layout& l, void* packed, int threads) {
    const PackedHeader header = make_header(format, l.N, l.K, l.G, Activations::exact);
    check_format(header, format == FormatId::fp8_e4m3 || format == FormatId::fp8_e5m2, "fp8_e4m3 or fp8_e5m2");
    char* bytes = begin_packed(header, packed, l.size_bytes);
    std::memcpy(bytes + l.scales_offset, scales, sizeof *scales * static_cast<size_t>(l.scale_rows * l.scale_columns));
    uint8_t* panels = reinterpret_cast<uint8_t*>(bytes + l.panels_offset);
    for_each_row(l.N, threads, [&](int64_t n) {
        for (int64_t k = 0; k < l.K; ++k) panels[panel_index(l, n, k)] = codes[n * l.K + k];
    });
}

void fp8_unpack(const Fp8Weight& weight, uint8_t* codes, float* scales, int threads) {
    const Fp8Layout& l = weight.layout;
    std::memcpy(scales, weight.scales, sizeof *scales * static_cast<size_t>(l.scale_rows * l.scale_columns));
    for_each_row(l.N, threads, [&](int64_t n) {
        for (int64_t k = 0; k < l.K; ++k) codes[n * l.K + k] = weight.panels[panel_index(l, n, k)];
    });
}

void dequantize(const Fp8Weight& weight, int64_t first_row, int64_t last_row, float* out, int threads) {
    const Fp8Layout& l = weight.layout;
    check_rows("fp8 dequantize", first_row, last_row, l.N);
    const uint16_t* magnitudes = fp8_magnitudes(weight.format);
    for_each_row(last_row - first_row, threads, [&](int64_t row) {
        const int64_t n = first_row + row;
        for (int64_t k = 0; k < l.K; ++k) {
            out[row * l.K + k] = fp8_value(magnitudes, weight.panels[panel_index(l, n, k)]) * scale_at(weight, n, k);
        }
    });
}

void expand_f32(const Fp8Weight& weight, const PanelRange& range, Isa isa, float* out) {
    const Fp8ExpandKernels& kernels = select_kernels(fp8_expand_list(), isa);
    for_each_scale(weight, range, [&](const Fp8Expand& run, int64_t before) { kernels.to_f32(run, out + before); });
}

void expand_bf16(const Fp8Weight& weight, const PanelRange& range, Isa isa, uint16_t* out) {
    const Fp8ExpandKernels& kernels = select_kernels(fp8_expand_list(), isa);
    for_each_scale(weight, range, [&](const Fp8Expand& run, int64_t before) { kernels.to_bf16(run, out + before); });
}

bool multiply_few_rows(const Fp8Weight& weight, int64_t strip, Isa isa, const Fp8Rows& rows) {
    const Fp8ExpandKernels& kernels = select_kernels(fp8_expand_list(), isa);
    if (kernels.multiply == nullptr || rows.rows > Fp8Rows::max_rows) return false;
    const Fp8Layout& l = weight.layout;
    constexpr float kOne = 1.0f;
    const int64_t K32 = round_up(l.K, 32), first = strip * kStripColumns, last = std::min(first + kStripColumns, l.N16);
    for (int64_t n = first; n < last; n += kPanelColumns) {
        const float* scales = l.G == 0 ? &kOne : weight.scales + n / kBlock * l.scale_columns;
        kernels.multiply({weight.format, weight.panels + n * l.K64, K32, scales, l.G == 0 ? K32 : kBlock, rows.a, rows.panel_rows,
                          rows.rows, rows.c + n - first});
    }
    return true;
}

}  // namespace gossamer
