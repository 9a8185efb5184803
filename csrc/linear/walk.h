// The slabs of a product over a team, and the cells of a slab over one thread.
#pragma once
#include <cstdint>

#include "gossamer/linear.h"
#include "grid.h"
#include "panels.h"
#include "workspace.h"

namespace gossamer {
namespace {

thread_local Workspace panels_workspace, strips_workspace;

// Calls run_slab(panels, slab, rows, team) for every slab, once `make` has filled its panels. row_extra_bytes: wanted behind the panels,
// for each row. group_k: of the scales of A (panels.h).
template <class Block, class Make, class RunSlab>
void for_each_slab(int64_t M, int64_t K, int threads, int64_t row_extra_bytes, const Make& make, const RunSlab& run_slab,
                   int64_t group_k = 0) {
    const int64_t row_bytes = round_up(K, Block::chunk) * static_cast<int64_t>(sizeof(typename Block::A));
    const int64_t slab_panels = std::max<int64_t>(1, kSlabBytes / (row_bytes * kPanelRows));
    const int64_t slab_rows = std::min({M, kSlabRows, slab_panels * kPanelRows});
    const int64_t bytes = round_up(Panels<Block>::size_bytes(slab_rows, K, group_k) + slab_rows * row_extra_bytes, 64);
    const bool private_copies = M <= kPrivateRows;
    uint8_t* memory = panels_workspace.reserve(private_copies ? bytes * threads : bytes);
    parallel(threads, [&](Team team) {
        if (private_copies) {
            const Panels<Block> panels(memory + team.rank * bytes, M, K, group_k);
            make(panels, 0, Range{0, M});
            return run_slab(panels, 0, M, team);
        }
        for (int64_t slab = 0; slab < M; slab += slab_rows) {
            const int64_t rows = std::min(slab_rows, M - slab);
            const Panels<Block> panels(memory, rows, K, group_k);
            if (slab > 0) team.barrier();  // the slab before is still being read
            make(panels, slab, split_range(rows, team.rank, team.size));
            team.barrier();
            run_slab(panels, slab, rows, team);
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
