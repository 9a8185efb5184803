// The coordinate descent of obs.h: its G is the W of a chunk.
#pragma once
#include <cstdint>

#include "chunk.h"
#include "rounding.h"

namespace gossamer {
namespace {

inline Lanes descend_column(const DescentBlock& block, Chunk& chunk, int64_t j) {
    const int64_t at = chunk.at(j), group_at = chunk.at(block.grid.groups[j]);
    const Vec curve = broadcast(chunk.l(j, j));
    Lanes wanted = load_lanes(chunk.w_at(j)), e;
    for (int64_t i = 0; i < kVectors; ++i) wanted.v[i] = wanted.v[i] / curve;
    if (block.keep != nullptr) wanted = masked(block.keep + at, wanted);
    for (int64_t i = 0; i < kVectors; ++i) {
        const Step step = step_at(block.grid, group_at + i * Vec::width);
        const Vec before = load(block.levels + at + i * Vec::width);
        const Vec after =
            nearest(block.grid, before + wanted.v[i] / divisor(step.scale), step.zero, block.grid.codes + at + i * Vec::width);
        e.v[i] = (before - after) * step.scale;
        store(block.levels + at + i * Vec::width, after);
        store(block.E + at + i * Vec::width, load(block.E + at + i * Vec::width) + e.v[i]);
    }
    return e;
}

void descend_rows(const DescentBlock& block, int64_t first_row) {
    Chunk chunk(block.H, block.h_stride, block.rows, first_row);
    chunk.read(block.G, block.columns);
    walk(chunk, block.columns, kStep, [&](int64_t j, int64_t, int64_t) {
        Lanes none;
        for (int64_t i = 0; i < kVectors; ++i) none.v[i] = broadcast(0.0f);
        return chunk.l(j, j) > 0 ? descend_column(block, chunk, j) : none;
    });
}

}  // namespace
}  // namespace gossamer
