// Panels of A (lane.h) of one slab, then a scale for each row, in memory that somebody else owns.
#pragma once
#include <algorithm>
#include <cstdint>

#include "gossamer/linear.h"
#include "grid.h"

namespace gossamer {

template <class Block>
struct Panels {
    using A = typename Block::A;

    A* data;
    float* scale;
    int64_t panel_rows;
    int64_t K;  // padded to whole chunks
    int64_t panel_stride;

    Panels(uint8_t* memory, int64_t rows, int64_t k)
        : data(reinterpret_cast<A*>(memory)), panel_rows(std::min(rows, kPanelRows)), K(round_up(k, Block::chunk)), panel_stride(panel_rows * K) {
        scale = reinterpret_cast<float*>(data + ceil_div(rows, panel_rows) * panel_stride);
    }

    static int64_t size_bytes(int64_t rows, int64_t k) {
        const int64_t panel_rows = std::min(rows, kPanelRows);
        const int64_t elements = round_up(rows, panel_rows) * round_up(k, Block::chunk);
        return elements * static_cast<int64_t>(sizeof(A)) + round_up(rows * 4, 64);
    }
    // The panel in which a block of rows begins.
    A* at(int64_t first_row) const { return data + first_row / panel_rows * panel_stride; }
    RowSource::Target target(int64_t slab, Range rows) const { return {slab, rows.begin, rows.end, panel_rows, data, scale}; }
};

}  // namespace gossamer
