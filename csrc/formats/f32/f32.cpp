// Packing, unpacking and expanding format fp32. Contract: format_f32.h.
#include <cstring>

#include "formats/rows.h"
#include "gossamer/format_f32.h"
#include "simd/scalar.h"

namespace gossamer {
namespace {

// Where W[n,k] lies in the panels.
int64_t panel_index(const F32Layout& l, int64_t n, int64_t k) {
    return n / kPanelColumns * kPanelColumns * l.K64 + k * kPanelColumns + n % kPanelColumns;
}

const float* panel_at(const F32Weight& weight, const PanelRange& range) {
    return weight.panels + (range.panel * weight.layout.K64 + range.first_k) * kPanelColumns;
}

}  // namespace

F32Layout f32_layout(int64_t N, int64_t K) {
    check_shape("fp32", N, K);
    F32Layout l{};
    l.N = N;
    l.K = K;
    l.N16 = round_up(N, kPanelColumns);
    l.K64 = round_up(K, 64);
    l.panels_offset = static_cast<int64_t>(sizeof(PackedHeader));
    l.size_bytes = l.panels_offset + l.N16 * l.K64 * 4;
    return l;
}

F32Weight f32_view(const void* packed, int64_t packed_bytes) {
    const PackedHeader header = read_header(packed, packed_bytes);
    check_format(header, header.format == FormatId::f32, "fp32");
    const F32Layout l = f32_layout(header.N, header.K);
    check_packed_bytes(header, packed_bytes, l.size_bytes);
    return {l, reinterpret_cast<const float*>(static_cast<const char*>(packed) + l.panels_offset)};
}

void f32_pack(const float* values, const F32Layout& l, void* packed, int threads) {
    char* bytes = begin_packed(make_header(FormatId::f32, l.N, l.K, 0, Activations::exact), packed, l.size_bytes);
    float* panels = reinterpret_cast<float*>(bytes + l.panels_offset);
    for_each_row(l.N, threads, [&](int64_t n) {
        for (int64_t k = 0; k < l.K; ++k) panels[panel_index(l, n, k)] = values[n * l.K + k];
    });
}

void f32_unpack(const F32Weight& weight, float* values, int threads) { dequantize(weight, 0, weight.layout.N, values, threads); }

void dequantize(const F32Weight& weight, int64_t first_row, int64_t last_row, float* out, int threads) {
    const F32Layout& l = weight.layout;
    check_rows("fp32 dequantize", first_row, last_row, l.N);
    for_each_row(last_row - first_row, threads, [&](int64_t row) {
        for (int64_t k = 0; k < l.K; ++k) out[row * l.K + k] = weight.panels[panel_index(l, first_row + row, k)];
    });
}

void expand_f32(const F32Weight& weight, const PanelRange& range, Isa, float* out) {
    std::memcpy(out, panel_at(weight, range), sizeof *out * static_cast<size_t>((range.last_k - range.first_k) * kPanelColumns));
}

void expand_bf16(const F32Weight& weight, const PanelRange& range, Isa, uint16_t* out) {
    const float* panel = panel_at(weight, range);
    for (int64_t k = 0; k < range.last_k - range.first_k; ++k) {
        for (int64_t column = 0; column < kPanelColumns; ++column) {
            store_bf16(out + (k / 2 * kPanelColumns + column) * 2 + k % 2, {panel[k * kPanelColumns + column]});
        }
    }
}

}  // namespace gossamer
