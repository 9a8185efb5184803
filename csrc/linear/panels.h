// Panels of A (lane.h) of one slab, then a scale for each row or each group of a row, in memory that somebody else owns.
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
    float* scale;  // [rows][groups]
    int64_t panel_rows;
    int64_t K;  // padded to whole chunks
    int64_t panel_stride;
    int64_t group_k, groups;  // group_k = 0: one scale for a row
    uint8_t* end;
    int rank = 0;  // of the thread that looks at them

    Panels(uint8_t* memory, int64_t rows, int64_t k, int64_t group)
        : data(reinterpret_cast<A*>(memory)),
          panel_rows(std::min(rows, kPanelRows)),
          K(round_up(k, Block::chunk)),
          panel_stride(panel_rows * K),
          group_k(group),
          groups(scales_of_row(k, group)),
          end(memory + size_bytes(rows, k, group)) {
        scale = reinterpret_cast<float*>(data + ceil_div(rows, panel_rows) * panel_stride);
    }

    static int64_t scales_of_row(int64_t k, int64_t group_k) { return group_k == 0 ? 1 : ceil_div(round_up(k, Block::chunk), group_k); }
    static int64_t size_bytes(int64_t rows, int64_t k, int64_t group_k) {
        const int64_t panel_rows = std::min(rows, kPanelRows);
        const int64_t elements = round_up(rows, panel_rows) * round_up(k, Block::chunk);
        return elements * static_cast<int64_t>(sizeof(A)) + round_up(rows * scales_of_row(k, group_k) * 4, 64);
    }
    // The same from a row on that begins a panel.
    Panels from(int64_t first_row) const {
        Panels rest = *this;
        rest.data = at(first_row);
        rest.scale += first_row * groups;
        return rest;
    }
    // The panel in which a block of rows begins.
    A* at(int64_t first_row) const { return data + first_row / panel_rows * panel_stride; }
    const float* scales_at(int64_t row) const { return scale + row * groups; }
    RowSource::Target target(int64_t slab, Range rows) const {
        constexpr Lane lane = sizeof(A) == 1 ? Lane::s8 : sizeof(A) == 2 ? Lane::bf16 : Lane::f32;
        return {slab, rows.begin, rows.end, panel_rows, data, scale, group_k, lane};
    }
};

}  // namespace gossamer
