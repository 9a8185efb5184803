// Products of few rows with 4-bit weights, whose codes are multiplied straight from memory.
#include "dispatch/lists.h"
#include "finish.h"
#include "product.h"
#include "walk.h"

namespace gossamer {
namespace {

// By reasoning, not measured: expanding costs about as much as 16 rows of products on AMX.
constexpr int64_t kRowsOnAmx = 16;

int64_t scale_bytes(ScaleType type) { return type == ScaleType::f32 ? 4 : 2; }

U4Block strip_block(const FourBitWeight& w, const Codebook& book, int64_t strip) {
    const FourBitLayout& l = w.layout;
    const int64_t panel = strip * (kStripColumns / kPanelColumns), groups = panel * l.packed_groups * kPanelColumns;
    U4Block block{};
    block.groups = l.packed_groups;
    block.b_panel_stride = l.K64 / 2 * kPanelColumns;
    block.b = w.panels + panel * block.b_panel_stride;
    block.K = l.K64;
    block.group_k = l.group_k;
    block.t = w.format == FormatId::int4 ? nullptr : book.s8;
    block.scales = static_cast<const char*>(w.scales) + groups * scale_bytes(w.scale_type);
    block.scale_type = w.scale_type == ScaleType::e8m0 ? ScaleType::bf16 : w.scale_type;
    block.zero_points = w.zero_points == nullptr ? nullptr : w.zero_points + groups;
    return block;
}

}  // namespace

const U4Kernels* u4_for(const ProductCall& call, const FourBitWeight& weight) {
    const U4Kernels* u4 = find_kernels(u4_list(), call.isa);
    if (u4 == nullptr || weight.layout.group_k > kMaxSumK) return nullptr;
    const Codebook& book = codebook(weight.format);
    if (*std::max_element(std::begin(book.s8), std::end(book.s8)) > u4->max_value) return nullptr;
    // Where groups of x have scales, the s8 lane takes its sums through memory for every group: only AMX is still worth that.
    const bool any_rows = call.weight.activations == Activations::int8_group && call.isa < Isa::amx;
    // The kernels' limit was measured against VPDPBUSD; AMX multiplies several times as fast, so there expanding pays sooner.
    const int64_t max_rows = call.isa < Isa::amx ? u4->max_rows : kRowsOnAmx;
    return any_rows || call.M <= max_rows ? u4 : nullptr;
}

void product_u4(const ProductCall& call, const FourBitWeight& weight, const U4Kernels& u4) {
    const Codebook& book = codebook(weight.format);
    const FourBitLayout& l = weight.layout;
    const EpilogueKernels& epilogue = select_kernels(epilogue_list(), call.isa);
    const Constant<kStripColumns> unit(book.unit);
    const double bytes = static_cast<double>(l.size_bytes);
    const int threads = useful_threads({bytes, bytes * 2 * static_cast<double>(call.M), 150e3}, call.threads);
    const int64_t group_k = row_group_k(call, l.G);
    const auto sums_of = [&](const Panels<S8Block>& a) { return reinterpret_cast<int32_t*>(a.end); };
    for_each_slab<S8Block>(
        call, {threads, l.packed_groups * 4, group_k},
        [&](const Panels<S8Block>& a, Range rows) {
            const int32_t offset = weight.zero_points == nullptr ? book.offset : 1;
            u4.center({a.data, a.panel_rows, rows.begin, rows.end, a.K, l.group_k, l.packed_groups, offset, sums_of(a)});
        },
        [&](const Panels<S8Block>& a, int64_t slab, int64_t rows, Team team) {
            for_each_cell(
                WalkShape{rows, a.panel_rows, l.N, rows_in_l2(kMaxBlockRows, a.K), kMaxStripsTogether}, team, [](int64_t, int64_t) {},
                [&](const Cell& cell, int64_t) {
                    alignas(64) float sum[kMaxBlockRows * kStripColumns];
                    U4Block block = strip_block(weight, book, cell.strip);
                    block.a = reinterpret_cast<const int8_t*>(a.at(cell.first_row));
                    block.panel_rows = a.panel_rows;
                    block.a_panel_stride = a.panel_stride;
                    block.a_sums = sums_of(a) + cell.first_row * l.packed_groups;
                    block.a_scales = group_k == 0 ? nullptr : a.scales_at(cell.first_row);
                    block.n_panels = cell.n_panels();
                    block.M = cell.rows;
                    block.sum = sum;
                    u4.run(block);
                    const Additions added(call, a, slab, cell);
                    const Scales scales{group_k == 0 ? a.scales_at(cell.first_row) : kOneRows.values, unit.values};
                    epilogue.finish_f32(finish_tile(call.epilogue, slab, cell, scales, added), sum);
                });
        });
}

}  // namespace gossamer
