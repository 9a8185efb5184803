// Products of few rows with sparse int8 and int4 weights on the s8 lane: multiplied as they are read, or as codes expanded strip by strip
// for the u4 kernels.
#include "dispatch/lists.h"
#include "finish.h"
#include "product.h"
#include "sparse_strips.h"
#include "walk.h"

namespace gossamer {
namespace {

// Expanding a line takes about as long as multiplying it with two rows, a line of codes as with four.
constexpr int64_t kExpandRows = 2, kExpandCodesRows = 4;

int useful_threads_for(const ProductCall& call, const SparseWeight& w, int64_t rows) {
    const double bytes = static_cast<double>(strip_bytes(w).before(ceil_div(w.panels(), 2)));
    return useful_threads({bytes, static_cast<double>(w.layout.N16) * static_cast<double>(w.layout.K64 * rows), 150e3}, call.threads);
}

SparseLines panel_lines(const SparseWeight& w, int64_t panel) { return sparse_lines(w, {panel, 0, w.layout.K64}); }
int64_t first_panel(const Cell& cell) { return cell.first_column() / kPanelColumns; }

// --- int8 ---

void run_int8(const ProductCall& call, const SparseWeight& w, const SparseS8Kernels& kernels) {
    const EpilogueKernels& epilogue = select_kernels(epilogue_list(), call.isa);
    for_each_slab<S8Block>(
        call, {useful_threads_for(call, w, call.M + kExpandRows)}, kNothingMore,
        [&](const Panels<S8Block>& a, int64_t slab, int64_t rows, Team team) {
            for_each_cell(
                WalkShape{rows, a.panel_rows, w.layout.N, kPanelRows, kMaxStripsTogether, strip_bytes(w)}, team, [](int64_t, int64_t) {},
                [&](const Cell& cell, int64_t) {
                    alignas(64) int32_t acc[kPanelRows * kStripColumns];
                    float scales[kStripColumns] = {};
                    const int64_t columns = cell.n_panels() * kPanelColumns;
                    std::copy_n(static_cast<const float*>(w.scales) + cell.first_column(), columns, scales);
                    for (int64_t n = 0; n < columns; n += kPanelColumns) {
                        const SparseLines lines = panel_lines(w, first_panel(cell) + n / kPanelColumns);
                        const int32_t* init = w.init + cell.first_column() + n;
                        kernels.run_int8({lines, a.at(cell.first_row), a.panel_rows, cell.rows, init, acc + n});
                    }
                    const Additions added(call, a, slab, cell);
                    epilogue.finish_s32(finish_tile(call.epilogue, slab, cell, {a.scales_at(cell.first_row), scales}, added), acc);
                });
        });
}

// --- int4 ---

// Rows of A in the form of u4.h: q, and its sums over groups behind the panels.
struct CenteredRows {
    const Panels<S8Block>& a;
    const SparseLayout& layout;
    bool scaled;  // groups have scales

    int32_t* sums() const { return reinterpret_cast<int32_t*>(a.end); }
    const int8_t* at(int64_t row) const { return reinterpret_cast<const int8_t*>(a.at(row)); }
    const int32_t* sums_at(int64_t row) const { return sums() + row * layout.packed_groups; }
    const float* scales_at(int64_t row) const { return scaled ? a.scales_at(row) : nullptr; }
    int64_t group_k() const { return layout.G == 0 ? layout.K64 : layout.G; }
    // Of q alone, where groups have none of their own.
    const float* row_scales_at(int64_t row) const { return scaled ? kOneRows.values : a.scales_at(row); }
};

const void* panel_scales(const SparseWeight& w, int64_t panel) {
    const int64_t bytes = w.spec.scale_type == ScaleType::f32 ? 4 : 2;
    return static_cast<const char*>(w.scales) + panel * w.layout.packed_groups * kPanelColumns * bytes;
}

// Bytes of a panel whose codes are expanded.
int64_t codes_stride(const SparseWeight& w) { return w.layout.K64 / 2 * kPanelColumns; }

// How the cells of an int4 product are made.
struct Int4Steps {
    const U4Kernels& u4;
    int64_t block_rows, buffer_bytes;  // of a strip, for prepare
    int64_t rows_of_work;              // rows of products that take as long as a strip does
};

// prepare(strip, buffer), then multiply(rows, cell, buffer, sum) for its cells.
template <class Prepare, class Multiply>
void run_int4(const ProductCall& call, const SparseWeight& w, const Int4Steps& steps, const Prepare& prepare, const Multiply& multiply) {
    const EpilogueKernels& epilogue = select_kernels(epilogue_list(), call.isa);
    const SparseLayout& l = w.layout;
    const int64_t group_k = row_group_k(call, l.G);
    const int64_t together = std::clamp<int64_t>(kExpandedBytes / std::max<int64_t>(steps.buffer_bytes, 1), 1, kMaxStripsTogether);
    for_each_slab<S8Block>(
        call, {useful_threads_for(call, w, steps.rows_of_work), l.packed_groups * 4, group_k},
        [&](const Panels<S8Block>& a, Range rows) {
            const CenteredRows centered{a, l, group_k != 0};
            steps.u4.center({a.data, a.panel_rows, rows.begin, rows.end, a.K, centered.group_k(), l.packed_groups, 8, centered.sums()});
        },
        [&](const Panels<S8Block>& a, int64_t slab, int64_t rows, Team team) {
            uint8_t* memory = strips_workspace.reserve(steps.buffer_bytes * together);
            const CenteredRows centered{a, l, group_k != 0};
            for_each_cell(
                WalkShape{rows, a.panel_rows, l.N, steps.block_rows, together, strip_bytes(w)}, team,
                [&](int64_t strip, int64_t i) { prepare(strip, memory + i * steps.buffer_bytes); },
                [&](const Cell& cell, int64_t i) {
                    alignas(64) float sum[kMaxBlockRows * kStripColumns];
                    multiply(centered, cell, memory + i * steps.buffer_bytes, sum);
                    const Additions added(call, a, slab, cell);
                    const Scales scales{centered.row_scales_at(cell.first_row), kOneColumns.values};
                    epilogue.finish_f32(finish_tile(call.epilogue, slab, cell, scales, added), sum);
                });
        });
}

void run_int4_few(const ProductCall& call, const SparseWeight& w, const SparseS8Kernels& kernels) {
    const U4Kernels& u4 = *find_kernels(u4_list(), kernels.isa);  // every ISA with such kernels has u4
    run_int4(
        call, w, {u4, kPanelRows, 0, call.M + kExpandCodesRows}, [](int64_t, uint8_t*) {},
        [&](const CenteredRows& rows, const Cell& cell, const uint8_t*, float* sum) {
            for (int64_t j = 0; j < cell.n_panels(); ++j) {
                const int64_t m = cell.first_row, panel = first_panel(cell) + j;
                kernels.run_int4({panel_lines(w, panel), rows.at(m), rows.a.panel_rows, cell.rows, rows.sums_at(m), rows.scales_at(m),
                                  w.layout.packed_groups, rows.group_k(), panel_scales(w, panel), w.spec.scale_type,
                                  sum + j * kPanelColumns});
            }
        });
}

U4Block strip_block(const SparseWeight& w, const CenteredRows& rows, const Cell& cell, const uint8_t* codes, float* sum) {
    U4Block block{};
    block.a = rows.at(cell.first_row);
    block.panel_rows = rows.a.panel_rows;
    block.a_panel_stride = rows.a.panel_stride;
    block.a_sums = rows.sums_at(cell.first_row);
    block.a_scales = rows.scales_at(cell.first_row);
    block.groups = w.layout.packed_groups;
    block.b = codes;
    block.b_panel_stride = codes_stride(w);
    block.n_panels = cell.n_panels();
    block.M = cell.rows;
    block.K = w.layout.K64;
    block.group_k = rows.group_k();
    block.scales = panel_scales(w, first_panel(cell));
    block.scale_type = w.spec.scale_type;
    block.sum = sum;
    return block;
}

}  // namespace

void product_sparse_s8_few(const ProductCall& call, const SparseWeight& weight, const SparseS8Kernels& kernels) {
    if (weight.spec.format == FormatId::sparse_int8) return run_int8(call, weight, kernels);
    run_int4_few(call, weight, kernels);
}

const U4Kernels* u4_for(const ProductCall& call, const SparseWeight& weight) {
    if (weight.spec.format != FormatId::sparse_int4) return nullptr;
    FourBitWeight codes{};
    codes.format = FormatId::int4;
    codes.layout.group_k = weight.layout.G == 0 ? weight.layout.K64 : weight.layout.G;
    return u4_for(call, codes);
}

void product_sparse_u4(const ProductCall& call, const SparseWeight& weight, const U4Kernels& u4) {
    const SparseS8Kernels& kernels = select_kernels(sparse_s8_list(), call.isa);
    const int64_t stride = codes_stride(weight), row_bytes = weight.layout.K64;
    run_int4(
        call, weight, {u4, rows_in_l2(kMaxBlockRows, row_bytes), 2 * stride, call.M + kExpandCodesRows},
        [&](int64_t strip, uint8_t* codes) {
            const int64_t first = 2 * strip, last = std::min(first + 2, weight.panels());
            for (int64_t panel = first; panel < last; ++panel, codes += stride) kernels.expand_codes(panel_lines(weight, panel), codes);
        },
        [&](const CenteredRows& rows, const Cell& cell, const uint8_t* codes, float* sum) {
            u4.run(strip_block(weight, rows, cell, codes, sum));
        });
}

}  // namespace gossamer
