// The column update of obs.h.
#pragma once
#include <cstdint>
#include <cstring>

#include "chunk.h"
#include "rounding.h"

namespace gossamer {
namespace {

inline Lanes round_lanes(const ObsBlock& block, const Chunk& chunk, int64_t j, const Lanes& x) {
    const ObsGrid& grid = block.grid;
    if (grid.codes == nullptr) return x;
    Lanes v;
    for (int64_t i = 0; i < kVectors; ++i) {
        const Step step = step_at(grid, chunk.at(grid.groups[j]) + i * Vec::width);
        v.v[i] = nearest(grid, x.v[i] / divisor(step.scale), step.zero, grid.codes + chunk.at(j) + i * Vec::width) * step.scale;
    }
    return v;
}

// The mask of the columns from first on, at most of_m: each pair of scores is compared once, and the smaller loses a place.
inline void choose(const ObsBlock& block, Chunk& chunk, int64_t first, int64_t last) {
    const int64_t count = last - first < block.of_m ? last - first : block.of_m;
    float scores[kObsColumns * kRows], places[kObsColumns * kRows];
    std::memset(places, 0, sizeof(float) * static_cast<size_t>(count * kRows));
    for (int64_t c = 0; c < count; ++c) {
        const float l = chunk.l(first + c, first + c);
        for (int64_t r = 0; r < kRows; ++r) {
            const float x = chunk.w_at(first + c)[r] / l;
            scores[c * kRows + r] = x * x;
        }
    }
    for (int64_t a = 0; a < count; ++a) {
        for (int64_t b = a + 1; b < count; ++b) {
            for (int64_t r = 0; r < kRows; ++r) {
                const bool a_loses = scores[a * kRows + r] < scores[b * kRows + r];
                places[a * kRows + r] += a_loses ? 1.0f : 0.0f;
                places[b * kRows + r] += a_loses ? 0.0f : 1.0f;
            }
        }
    }
    const float limit = static_cast<float>(block.keep_n);
    for (int64_t c = 0; c < count; ++c) {
        uint8_t* keep = block.keep + chunk.at(first + c);
        for (int64_t r = 0; r < kRows; ++r) keep[r] = places[c * kRows + r] < limit ? 1 : 0;
    }
}

inline Lanes update_column(const ObsBlock& block, Chunk& chunk, int64_t j) {
    const Lanes w = load_lanes(chunk.w_at(j));
    const Lanes v = round_lanes(block, chunk, j, block.keep == nullptr ? w : masked(block.keep + chunk.at(j), w));
    const Vec pivot = broadcast(chunk.l(j, j));
    Lanes e;
    for (int64_t i = 0; i < kVectors; ++i) e.v[i] = (v.v[i] - w.v[i]) / pivot;
    store_lanes(block.W + chunk.at(j), v);
    return e;
}

void update_rows(const ObsBlock& block, int64_t first_row) {
    Chunk chunk(block.L, block.l_stride, block.rows, first_row);
    chunk.read(block.W, block.columns);
    const int64_t m = block.of_m, step = m == 0 ? kStep : m <= kStep ? kStep / m * m : m;
    walk(chunk, block.columns, step, [&](int64_t j, int64_t first, int64_t last) {
        if (m != 0 && (j - first) % m == 0) choose(block, chunk, j, last);
        return update_column(block, chunk, j);
    });
    double* loss = block.loss + first_row;
    for (int64_t j = 0; j < block.columns; ++j) {
        std::memcpy(block.E + chunk.at(j), chunk.e_at(j), sizeof(float) * kRows);
        for (int64_t r = 0; r < kRows; ++r) loss[r] += static_cast<double>(chunk.e_at(j)[r]) * static_cast<double>(chunk.e_at(j)[r]);
    }
}

}  // namespace
}  // namespace gossamer
