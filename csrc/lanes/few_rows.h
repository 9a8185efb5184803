// Walking the rows of a block a few at a time.
#pragma once
#include <cstdint>

#include "gossamer/lane.h"

namespace gossamer {
namespace {

// Calls run(a, rows, m) for at most max_rows rows at a time, from row m on; they lie in one panel, at a.
template <int64_t max_rows, class Block, class Run>
void for_each_few_rows(const Block& block, const Run& run) {
    for (int64_t m = 0; m < block.M;) {
        const int64_t in_panel = m % block.panel_rows;
        int64_t rows = block.panel_rows - in_panel < block.M - m ? block.panel_rows - in_panel : block.M - m;
        if (rows > max_rows) rows = max_rows;
        run(block.a + m / block.panel_rows * block.a_panel_stride + in_panel * Block::chunk, rows, m);
        m += rows;
    }
}

}  // namespace
}  // namespace gossamer
