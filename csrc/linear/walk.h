// The slabs of a product over a team, and the cells of a slab over one thread.
#pragma once
#include <cstdint>

#include "gossamer/linear.h"
#include "grid.h"
#include "low_rank.h"
#include "panels.h"
#include "workspace.h"

namespace gossamer {
namespace {

thread_local Workspace panels_workspace, strips_workspace;

struct SlabOptions {
    int threads;
    int64_t row_extra_bytes = 0;  // wanted behind the panels, for each row
    int64_t group_k = 0;          // of the scales of A (panels.h)
};

// For for_each_slab: the panels are all that there is to prepare.
constexpr auto kNothingMore = [](const auto&, Range) {};

// Calls run_slab(panels, slab, rows, team) for every slab, once its panels were filled, the low-rank part of the call was projected down,
// and `prepare` was called for all rows of the panels.
template <class Block, class Prepare, class RunSlab>
void for_each_slab(const ProductCall& call, const SlabOptions& options, const Prepare& prepare, const RunSlab& run_slab) {
    const int64_t M = call.M, K = call.weight.K, group_k = options.group_k;
    Branch* const branch = call.branch;
    const int64_t panels_bytes = round_up(K, Block::chunk) * static_cast<int64_t>(sizeof(typename Block::A));
    const int64_t row_bytes = branch == nullptr ? panels_bytes : std::max(panels_bytes, branch->row_bytes());
    const int64_t slab_panels = std::max<int64_t>(1, kSlabBytes / (row_bytes * kPanelRows));
    const int64_t slab_rows = std::min({M, kSlabRows, slab_panels * kPanelRows});
    const int64_t bytes = round_up(Panels<Block>::size_bytes(slab_rows, K, group_k) + slab_rows * options.row_extra_bytes, 64);
    const bool private_copies = M <= kPrivateRows;
    uint8_t* all = panels_workspace.reserve(private_copies ? bytes * options.threads : bytes);
    if (branch != nullptr) branch->reserve(slab_rows, options.threads);
    parallel(options.threads, [&](Team team) {
        uint8_t* memory = all + (private_copies ? team.rank * bytes : 0);
        for (int64_t slab = 0; slab < M; slab += slab_rows) {
            const int64_t rows = std::min(slab_rows, M - slab);
            const Range mine = private_copies ? Range{0, M} : split_range(rows, team.rank, team.size);
            Panels<Block> panels(memory, rows, K, group_k);
            panels.rank = team.rank;
            if (slab > 0) team.barrier();  // the slab before is still being read
            call.rows.fill(panels.target(slab, mine));
            if (branch != nullptr) branch->project({slab, rows, mine, private_copies, team}, memory);
            prepare(panels, mine);
            if (!private_copies) team.barrier();
            if (branch != nullptr) branch->begin_cells(team.rank);
            run_slab(panels, slab, rows, team);
            if (branch != nullptr) branch->end_cells();
        }
    });
}

struct WalkShape {
    int64_t rows, panel_rows, N;
    int64_t block_rows;
    int64_t strips_together;  // at most kMaxStripsTogether
    StripBytes bytes = {};    // threads share these where strips differ
};
inline constexpr int64_t kMaxStripsTogether = 64;

// Calls prepare(strip, i) for up to strips_together strips, then run(cell, i) for each row block and strip of them.
template <class Prepare, class Run>
void for_each_cell(const WalkShape& shape, Team team, const Prepare& prepare, const Run& run) {
    const Share share = choose_share(shape.rows, shape.panel_rows, ceil_div(shape.N, kStripColumns), team, shape.bytes);
    for (int64_t first = share.strips.begin; first < share.strips.end; first += shape.strips_together) {
        const int64_t last = std::min(first + shape.strips_together, share.strips.end);
        for (int64_t strip = first; strip < last; ++strip) prepare(strip, strip - first);
        for (int64_t m = share.rows.begin; m < share.rows.end; m += shape.block_rows) {
            const int64_t rows = std::min(shape.block_rows, share.rows.end - m);
            for (int64_t strip = first; strip < last; ++strip) {
                run(Cell{m, rows, strip, std::min(kStripColumns, shape.N - strip * kStripColumns)}, strip - first);
            }
        }
    }
}

}  // namespace
}  // namespace gossamer
