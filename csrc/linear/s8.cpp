// Products on the s8 lane: rows quantized to int8, weights used in place or expanded to int8.
#include <variant>

#include "dispatch/lists.h"
#include "finish.h"
#include "gossamer/linear.h"
#include "product.h"
#include "walk.h"

namespace gossamer {
namespace {

// Up to this many rows VPDPBUSD beats AMX, whose tiles would be mostly empty.
constexpr int64_t kRowsBelowAmx = 4;

// One layer on one ISA; what stays the same over all cells.
struct Job {
    const S8Kernels& s8;
    const EpilogueKernels& epilogue;
    const ProductCall& call;

    explicit Job(const ProductCall& c) : s8(s8_kernels(c)), epilogue(select_kernels(epilogue_list(), c.isa)), call(c) {}
};

// A cell with all it is made of.
struct Piece {
    const Job& job;
    const Panels<S8Block>& a;
    int64_t slab;
    Cell cell;
    S8Strip strip;

    const float* row_scale() const { return a.scales_at(cell.first_row); }
    bool row_groups() const { return a.group_k != 0; }
};

// acc [rows, 32] = the sums of sum block `s`.
void multiply(const S8Kernels& s8, const Panels<S8Block>& a, const Cell& cell, const S8Strip& strip, int64_t s, int32_t* acc) {
    const int64_t first_k = s * strip.sum_k, last_k = std::min(first_k + strip.sum_k, a.K);
    S8Block block{};
    block.panel_rows = a.panel_rows;
    block.a_panel_stride = a.panel_stride;
    block.b_panel_stride = strip.panel_stride;
    block.n_panels = cell.n_panels();
    block.M = cell.rows;
    block.c = acc;
    const uint8_t* rows = a.at(cell.first_row);
    for (int64_t k = first_k; k < last_k; k += block.K) {
        block.K = std::min(s8.block_k, last_k - k);
        block.a = rows + k / S8Block::chunk * S8Block::chunk * a.panel_rows + k % S8Block::chunk;
        block.b = strip.panels + k * kPanelColumns;
        block.init = k == first_k ? strip.init + s * strip.group_stride : nullptr;
        s8.run(block);
    }
}

// The strip's scales as 32 floats: the last strip may have only 16.
class ColumnScales {
public:
    ColumnScales(const S8Strip& strip, const Cell& cell) : values_(strip.scales) {
        if (cell.n_panels() == 2) return;
        for (int64_t n = 0; n < kStripColumns; ++n) copy_[n] = n < kPanelColumns ? strip.scales[n] : 0.0f;
        values_ = copy_;
    }
    ColumnScales(const ColumnScales&) = delete;
    ColumnScales& operator=(const ColumnScales&) = delete;
    const float* values() const { return values_; }

private:
    const float* values_;
    float copy_[kStripColumns];
};

// One scale per column, K <= 65,536: the sums go straight to the output.
void run_cell(const Piece& p) {
    alignas(64) int32_t acc[kMaxBlockRows * kStripColumns];
    multiply(p.job.s8, p.a, p.cell, p.strip, 0, acc);
    const ColumnScales columns(p.strip, p.cell);
    const Additions added(p.job.call, p.a, p.slab, p.cell);
    p.job.epilogue.finish_s32(finish_tile(p.job.call.epilogue, p.slab, p.cell, {p.row_scale(), columns.values()}, added), acc);
}

void finish_scaled(const Piece& p, const float* sum) {
    const Additions added(p.job.call, p.a, p.slab, p.cell);
    const Scales scales{p.row_groups() ? kOneRows.values : p.row_scale(), kOneColumns.values};
    p.job.epilogue.finish_f32(finish_tile(p.job.call.epilogue, p.slab, p.cell, scales, added), sum);
}

// sum [rows, 32] = the sums of all groups, scaled by the weight's scales and by those that groups of x have, added in order.
void multiply_grouped(const Piece& p, float* sum) {
    const S8Strip& strip = p.strip;
    if (p.job.s8.run_grouped != nullptr && !p.row_groups()) {
        const int64_t K = std::min(p.a.K, strip.sum_blocks * strip.sum_k);
        return p.job.s8.run_grouped({p.a.at(p.cell.first_row), p.a.panel_rows, p.a.panel_stride, strip.panels, strip.panel_stride,
                                     p.cell.n_panels(), p.cell.rows, K, strip.sum_k, strip.init, strip.scales, strip.group_stride, sum});
    }
    alignas(64) int32_t acc[kMaxBlockRows * kStripColumns];
    for (int64_t g = 0; g < strip.sum_blocks; ++g) {
        multiply(p.job.s8, p.a, p.cell, strip, g, acc);
        const float* row_scale = p.row_groups() ? p.row_scale() + g : nullptr;
        p.job.epilogue.scale_add({p.cell.rows, p.cell.n_panels() * kPanelColumns, acc, strip.scales + g * strip.group_stride, row_scale,
                                  p.a.groups, g == 0, sum});
    }
}

void run_cell_grouped(const Piece& p) {
    alignas(64) float sum[kMaxBlockRows * kStripColumns];
    multiply_grouped(p, sum);
    finish_scaled(p, sum);
}

// One scale per column, K > 65,536: blocks add up in int64 and are converted once.
void run_cell_long(const Piece& p) {
    alignas(64) int32_t acc[kMaxBlockRows * kStripColumns];
    alignas(64) float sum[kMaxBlockRows * kStripColumns];
    int64_t total[kMaxBlockRows * kStripColumns] = {};
    const int64_t count = p.cell.rows * kStripColumns;
    for (int64_t s = 0; s < p.strip.sum_blocks; ++s) {
        multiply(p.job.s8, p.a, p.cell, p.strip, s, acc);
        for (int64_t i = 0; i < count; ++i) total[i] += acc[i];
    }
    for (int64_t i = 0; i < count; ++i) sum[i] = static_cast<float>(total[i]);
    const ColumnScales columns(p.strip, p.cell);
    const Additions added(p.job.call, p.a, p.slab, p.cell);
    p.job.epilogue.finish_f32(finish_tile(p.job.call.epilogue, p.slab, p.cell, {p.row_scale(), columns.values()}, added), sum);
}

void run_piece(const Piece& p) {
    if (p.strip.grouped) return run_cell_grouped(p);
    if (p.strip.sum_blocks > 1) return run_cell_long(p);
    run_cell(p);
}

S8Strip strip_of(const Int8Weight& weight, int64_t strip, const ProductCall& call, uint8_t* buffer) {
    return s8_strip(weight, strip, call.isa, buffer);
}
S8Strip strip_of(const FourBitWeight& weight, int64_t strip, const ProductCall& call, uint8_t* buffer) {
    return s8_strip(weight, strip, call.isa, buffer, call.weight.activations == Activations::int8_group);
}

S8Strip strip_of(const SparseWeight& weight, int64_t strip, const ProductCall& call, uint8_t* buffer) {
    return s8_strip(weight, strip, call.isa, buffer, call.weight.activations == Activations::int8_group);
}

template <class W>
void run_cells(const Job& job, const W& weight, const Panels<S8Block>& a, int64_t slab, int64_t rows, Team team) {
    const int64_t strip_bytes = s8_strip_bytes(weight);
    const int64_t together =
        strip_bytes == 0 ? kMaxStripsTogether : std::clamp<int64_t>(kExpandedBytes / strip_bytes, 1, kMaxStripsTogether);
    uint8_t* memory = strips_workspace.reserve(strip_bytes * together);
    const WalkShape shape{rows, a.panel_rows, job.call.weight.N, rows_in_l2(job.s8.block_rows, a.K), together};
    S8Strip strips[kMaxStripsTogether];
    if (job.s8.begin != nullptr) job.s8.begin(a.panel_rows);
    for_each_cell(
        shape, team, [&](int64_t strip, int64_t i) { strips[i] = strip_of(weight, strip, job.call, memory + i * strip_bytes); },
        [&](const Cell& cell, int64_t i) { run_piece({job, a, slab, cell, strips[i]}); });
    if (job.s8.end != nullptr) job.s8.end();
}

template <class W>
void run(const ProductCall& call, const W& weight) {
    const Job job(call);
    const double count = static_cast<double>(call.weight.N) * static_cast<double>(call.weight.K);
    const int threads = useful_threads({count, count * static_cast<double>(call.M), 150e3}, call.threads);
    for_each_slab<S8Block>(
        call, {threads, 0, row_group_k(call, weight.layout.G)}, kNothingMore,
        [&](const Panels<S8Block>& a, int64_t slab, int64_t rows, Team team) { run_cells(job, weight, a, slab, rows, team); });
}

}  // namespace

const S8Kernels& s8_kernels(const ProductCall& call) {
    return select_kernels(s8_list(), call.M <= kRowsBelowAmx ? std::min(call.isa, Isa::avx512bf16) : call.isa);
}

void run_slab(const ProductCall& call, const Panels<S8Block>& a, int64_t slab, int64_t rows, Team team) {
    run_cells(Job(call), std::get<Int8Weight>(call.weight.form), a, slab, rows, team);
}

void product_s8(const ProductCall& call) {
    if (const auto* w = std::get_if<Int8Weight>(&call.weight.form)) return run(call, *w);
    if (const auto* w = std::get_if<SparseWeight>(&call.weight.form)) {
        if (const U4Kernels* u4 = u4_for(call, *w)) return product_sparse_u4(call, *w, *u4);
        return run(call, *w);
    }
    const FourBitWeight& four_bit = std::get<FourBitWeight>(call.weight.form);
    if (const U4Kernels* u4 = u4_for(call, four_bit)) return product_u4(call, four_bit, *u4);
    run(call, four_bit);
}

void accumulate(const AccumulateCall& call) {
    const Int8Layout& w = call.weight.layout;
    if (call.M == 0) return;
    const S8Kernels& s8 = select_kernels(s8_list(), call.isa);
    const Panels<S8Block> a(panels_workspace.reserve(Panels<S8Block>::size_bytes(call.M, w.K, 0)), call.M, w.K, 0);
    for (int64_t m = 0; m < call.M; ++m) {
        uint8_t* line = a.at(m) + m % a.panel_rows * S8Block::chunk;
        for (int64_t k = 0; k < a.K; ++k) {
            const int value = k < w.K ? call.x[m * call.x_row_stride + k] : 0;
            line[k / S8Block::chunk * S8Block::chunk * a.panel_rows + k % S8Block::chunk] = static_cast<uint8_t>(value + 128);
        }
    }
    const WalkShape shape{call.M, a.panel_rows, w.N, rows_in_l2(s8.block_rows, a.K), 1};
    parallel(std::max(call.threads, 1), [&](Team team) {
        if (s8.begin != nullptr) s8.begin(a.panel_rows);
        S8Strip strip;
        for_each_cell(
            shape, team, [&](int64_t index, int64_t) { strip = s8_strip(call.weight, index, call.isa, nullptr); },
            [&](const Cell& cell, int64_t) {
                alignas(64) int32_t acc[kMaxBlockRows * kStripColumns];
                for (int64_t s = 0; s < strip.sum_blocks; ++s) {
                    multiply(s8, a, cell, strip, s, acc);
                    for (int64_t m = 0; m < cell.rows; ++m) {
                        int64_t* out = call.out + (cell.first_row + m) * w.N + cell.first_column();
                        for (int64_t n = 0; n < cell.columns; ++n) out[n] = (s == 0 ? 0 : out[n]) + acc[m * kStripColumns + n];
                    }
                }
            });
        if (s8.end != nullptr) s8.end();
    });
}

}  // namespace gossamer
