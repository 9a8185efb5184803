// The coordinate descent of obs.h: its G is the W of a chunk.
#pragma once
#include <cstdint>
#include <cstring>

#include "chunk.h"
#include "rounding.h"

namespace gossamer {
namespace {

// The levels of the rows of a chunk: read before the walk, whose columns are too short to hide how far away they lie.
struct Levels {
    alignas(64) float d[kObsColumns * kRows];

    Levels(const DescentBlock& block, const Chunk& chunk) {
        for (int64_t j = 0; j < block.columns; ++j) std::memcpy(d + j * kRows, block.levels + chunk.at(j), sizeof(float) * kRows);
    }
};

inline Lanes descend_column(const DescentBlock& block, Chunk& chunk, const Levels& levels, int64_t j) {
    const int64_t at = chunk.at(j), group_at = chunk.at(block.grid.groups[j]);
    const Vec curve = broadcast(chunk.l(j, j));
    Lanes wanted = load_lanes(chunk.w_at(j)), e;
    for (int64_t i = 0; i < kVectors; ++i) wanted.v[i] = wanted.v[i] / curve;
    if (block.keep != nullptr) wanted = masked(block.keep + at, wanted);
    for (int64_t i = 0; i < kVectors; ++i) {
        const int64_t lane = i * Vec::width;
        const Step step = step_at(block.grid, group_at + lane);
        const Vec before = load(levels.d + j * kRows + lane);
        const Vec after = nearest(block.grid, before + wanted.v[i] / divisor(step.scale), step.zero, block.grid.codes + at + lane);
        e.v[i] = (before - after) * step.scale;
        store(block.levels + at + lane, after);
    }
    return e;
}

void descend_rows(const DescentBlock& block, int64_t first_row) {
    Chunk chunk(block.H, block.h_stride, block.rows, first_row);
    chunk.read(block.G, block.columns);
    const Levels levels(block, chunk);
    walk(chunk, block.columns, kStep, [&](int64_t j, int64_t, int64_t) {
        Lanes none;
        for (int64_t i = 0; i < kVectors; ++i) none.v[i] = broadcast(0.0f);
        return chunk.l(j, j) > 0 ? descend_column(block, chunk, levels, j) : none;
    });
    for (int64_t j = 0; j < block.columns; ++j) {
        for (int64_t i = 0; i < kVectors; ++i) {
            float* E = block.E + chunk.at(j) + i * Vec::width;
            store(E, load(E) + load(chunk.e_at(j) + i * Vec::width));
        }
    }
}

}  // namespace
}  // namespace gossamer
