// Packing, unpacking and expanding format bf16. Contract: format_bf16.h.
#include <cstring>

#include "dispatch/lists.h"
#include "formats/rows.h"
#include "gossamer/format_bf16.h"
#include "simd/scalar.h"

namespace gossamer {
namespace {

// Where W[n,k] lies in the panels.
int64_t panel_index(const Bf16Layout& l, int64_t n, int64_t k) {
    return n / kPanelColumns * kPanelColumns * l.K64 + k / 2 * (kPanelColumns * 2) + n % kPanelColumns * 2 + k % 2;
}

}  // namespace

Bf16Layout bf16_layout(int64_t N, int64_t K) {
    check_shape("bf16", N, K);
    Bf16Layout l{};
    l.N = N;
    l.K = K;
    l.N16 = round_up(N, kPanelColumns);
    l.K64 = round_up(K, 64);
    l.panels_offset = static_cast<int64_t>(sizeof(PackedHeader));
    l.size_bytes = l.panels_offset + l.N16 * l.K64 * 2;
    return l;
}

Bf16Weight bf16_view(const void* packed, int64_t packed_bytes) {
    const PackedHeader header = read_header(packed, packed_bytes);
    check_format(header, header.format == FormatId::bf16, "bf16");
    const Bf16Layout l = bf16_layout(header.N, header.K);
    check_packed_bytes(header, packed_bytes, l.size_bytes);
    return {l, reinterpret_cast<const uint16_t*>(static_cast<const char*>(packed) + l.panels_offset)};
}

void bf16_pack(const uint16_t* values, const Bf16Layout& l, void* packed, int threads) {
    char* bytes = begin_packed(make_header(FormatId::bf16, l.N, l.K, 0, Activations::exact), packed, l.size_bytes);
    uint16_t* panels = reinterpret_cast<uint16_t*>(bytes + l.panels_offset);
    for_each_row(l.N, threads, [&](int64_t n) {
        for (int64_t k = 0; k < l.K; ++k) panels[panel_index(l, n, k)] = values[n * l.K + k];
    });
}

void bf16_unpack(const Bf16Weight& weight, uint16_t* values, int threads) {
    const Bf16Layout& l = weight.layout;
    for_each_row(l.N, threads, [&](int64_t n) {
        for (int64_t k = 0; k < l.K; ++k) values[n * l.K + k] = weight.panels[panel_index(l, n, k)];
    });
}

void dequantize(const Bf16Weight& weight, int64_t first_row, int64_t last_row, float* out, int threads) {
    const Bf16Layout& l = weight.layout;
    check_rows("bf16 dequantize", first_row, last_row, l.N);
    for_each_row(last_row - first_row, threads, [&](int64_t row) {
        for (int64_t k = 0; k < l.K; ++k) out[row * l.K + k] = load_bf16(weight.panels + panel_index(l, first_row + row, k)).v;
    });
}

void expand_f32(const Bf16Weight& weight, const PanelRange& range, Isa isa, float* out) {
    const uint16_t* panel = weight.panels + range.panel * kPanelColumns * weight.layout.K64;
    const int64_t pairs = (range.last_k - range.first_k) / 2;
    select_kernels(bf16_expand_list(), isa).to_f32(panel + range.first_k * kPanelColumns, pairs, out);
}

void expand_bf16(const Bf16Weight& weight, const PanelRange& range, Isa, uint16_t* out) {
    const uint16_t* panel = weight.panels + range.panel * kPanelColumns * weight.layout.K64;
    const int64_t count = (range.last_k - range.first_k) * kPanelColumns;
    std::memcpy(out, panel + range.first_k * kPanelColumns, sizeof *out * static_cast<size_t>(count));
}

}  // namespace gossamer
