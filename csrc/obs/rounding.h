// The nearest level of a grid, by the rounding of obs.h.
#pragma once
#include <cstdint>

#include "gossamer/obs.h"

namespace gossamer {
namespace {

// What a lane of rows has in the group of its column.
struct Step {
    Vec scale, zero;
};
inline Step step_at(const ObsGrid& grid, int64_t at) {
    return {load(grid.scales + at), grid.zeros == nullptr ? broadcast(0.0f) : load(grid.zeros + at)};
}

// A scale of zero divides as infinity.
inline Vec divisor(Vec scale) { return select_negative(broadcast(0.0f) - absolute(scale), scale, broadcast(__builtin_inff())); }

inline Vec round_uniform(const ObsGrid& grid, Vec y, Vec zero, uint8_t* codes) {
    const Vec q = minimum(maximum(round_even(y) + zero, broadcast(grid.lowest)), broadcast(grid.highest));
    store_biased_u8(codes, q - broadcast(grid.lowest + 128.0f));
    return q - zero;
}

inline Vec round_codebook(const ObsGrid& grid, Vec y, Vec zero, uint8_t* codes) {
    const Vec x = y + zero, one = broadcast(1.0f), none = broadcast(0.0f);
    Vec count = broadcast(-128.0f);
    for (int64_t i = 0; i < grid.count - 1; ++i) count = count + select_negative(broadcast(grid.thresholds[i]) - x, one, none);
    store_biased_u8(codes, count);
    float levels[Vec::width];
    for (int64_t r = 0; r < Vec::width; ++r) levels[r] = grid.levels[codes[r]];
    return load(levels) - zero;
}

// The level nearest to y + zero, less zero; its code is written.
inline Vec nearest(const ObsGrid& grid, Vec y, Vec zero, uint8_t* codes) {
    return grid.thresholds == nullptr ? round_uniform(grid, y, zero, codes) : round_codebook(grid, y, zero, codes);
}

}  // namespace
}  // namespace gossamer
