// Products of few rows with sparse bf16 and fp32 weights on the float lanes: multiplied as they are read.
#include "dispatch/lists.h"
#include "finish.h"
#include "product.h"
#include "sparse_strips.h"
#include "walk.h"

namespace gossamer {
namespace {

// Expanding a line takes about as long as multiplying it with two rows.
constexpr int64_t kExpandRows = 2;

template <class Block>
using Multiply = void (*)(const SparseFloatRows<typename Block::A>&);

int useful_threads_for(const ProductCall& call, const SparseWeight& weight) {
    const SparseLayout& l = weight.layout;
    const double bytes = static_cast<double>(strip_bytes(weight).before(ceil_div(weight.panels(), 2)));
    const double products = static_cast<double>(l.N16) * static_cast<double>(l.K64 * (call.M + kExpandRows));
    return useful_threads({bytes, products, 40e3}, call.threads);
}

// The lines of a panel that the panels of A have words for.
SparseLines panel_lines(const SparseWeight& weight, int64_t panel, int64_t K) {
    SparseLines lines = sparse_lines(weight, {panel, 0, weight.layout.K64});
    lines.lines = K / weight.layout.line_k;
    return lines;
}

template <class Block>
void run(const ProductCall& call, const SparseWeight& weight, Multiply<Block> multiply) {
    const EpilogueKernels& epilogue = select_kernels(epilogue_list(), call.isa);
    for_each_slab<Block>(call, {useful_threads_for(call, weight)}, kNothingMore,
                         [&](const Panels<Block>& a, int64_t slab, int64_t rows, Team team) {
                             for_each_cell(
                                 WalkShape{rows, a.panel_rows, weight.layout.N, kPanelRows, kMaxStripsTogether, strip_bytes(weight)}, team,
                                 [](int64_t, int64_t) {},
                                 [&](const Cell& cell, int64_t) {
                                     alignas(64) float sums[kPanelRows * kStripColumns];
                                     for (int64_t j = 0; j < cell.n_panels(); ++j) {
                                         const SparseLines b = panel_lines(weight, cell.first_column() / kPanelColumns + j, a.K);
                                         multiply({b, a.at(cell.first_row), a.panel_rows, cell.rows, sums + j * kPanelColumns});
                                     }
                                     const Additions added(call, a, slab, cell);
                                     const Scales ones{kOneRows.values, kOneColumns.values};
                                     epilogue.finish_f32(finish_tile(call.epilogue, slab, cell, ones, added), sums);
                                 });
                         });
}

}  // namespace

void product_sparse_float_few(const ProductCall& call, const SparseWeight& weight, const SparseFloatKernels& kernels) {
    if (call.lane == Lane::bf16) return run<Bf16Block>(call, weight, kernels.run_bf16);
    run<F32Block>(call, weight, weight.spec.format == FormatId::sparse_f32 ? kernels.run_f32 : kernels.run_bf16_f32);
}

}  // namespace gossamer
