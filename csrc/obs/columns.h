// The column loop of obs.h, written once over the vector type of simd/<isa>.h; each <isa>.cpp includes that, then this.
//
// kRows rows at a time; their block of W, and of E, lies in L1. Columns go in steps of about 16. A step first collects what all columns
// before it owe (collect: sums stay in registers), then each of its columns passes its error on to the rest of the step at once. So
// nearly all products are those of collect, bound by FMA and not by stores of W.
#pragma once
#include <cstdint>
#include <cstring>

#include "gossamer/obs.h"

namespace gossamer {
namespace {

constexpr int64_t kVectors = 2, kRows = kVectors * Vec::width;
constexpr int64_t kTile = 4;   // columns that collect together: eight sums, enough to hide the latency of two FMA units
constexpr int64_t kStep = 16;  // columns

struct Lanes {
    Vec v[kVectors];
};

inline Lanes load_lanes(const float* p) {
    Lanes lanes;
    for (int64_t i = 0; i < kVectors; ++i) lanes.v[i] = load(p + i * Vec::width);
    return lanes;
}
inline void store_lanes(float* p, const Lanes& lanes) {
    for (int64_t i = 0; i < kVectors; ++i) store(p + i * Vec::width, lanes.v[i]);
}

// Rows first_row .. of a block, in L1.
struct Chunk {
    const ObsBlock& block;
    int64_t first_row;
    alignas(64) float w[kObsColumns * kRows];
    alignas(64) float e[kObsColumns * kRows];

    Chunk(const ObsBlock& of, int64_t row) : block(of), first_row(row) {
        for (int64_t j = 0; j < block.columns; ++j) std::memcpy(w_at(j), block.W + at(j), sizeof(float) * kRows);
    }
    float* w_at(int64_t j) { return w + j * kRows; }
    float* e_at(int64_t j) { return e + j * kRows; }
    int64_t at(int64_t j) const { return j * block.rows + first_row; }
    float l(int64_t k, int64_t j) const { return block.L[k * block.l_stride + j]; }
};

// w[k] += sum over j < first of e[j] L[k,j], for Columns columns k.
template <int64_t Columns>
inline void collect(Chunk& chunk, int64_t first, int64_t k) {
    Lanes sums[Columns];
    for (int64_t c = 0; c < Columns; ++c) sums[c] = load_lanes(chunk.w_at(k + c));
    const float* l = chunk.block.L + k * chunk.block.l_stride;
    for (int64_t j = 0; j < first; ++j) {
        const Lanes e = load_lanes(chunk.e_at(j));
        for (int64_t c = 0; c < Columns; ++c) {
            const Vec factor = broadcast(l[c * chunk.block.l_stride + j]);
            for (int64_t i = 0; i < kVectors; ++i) sums[c].v[i] = multiply_add(e.v[i], factor, sums[c].v[i]);
        }
    }
    for (int64_t c = 0; c < Columns; ++c) store_lanes(chunk.w_at(k + c), sums[c]);
}

// A scale of zero divides as infinity.
inline Vec divisor(Vec scale) { return select_negative(broadcast(0.0f) - absolute(scale), scale, broadcast(__builtin_inff())); }

inline Vec round_uniform(const ObsGrid& grid, Vec x, Vec scale, Vec zero, uint8_t* codes) {
    const Vec q = minimum(maximum(round_even(x / divisor(scale)) + zero, broadcast(grid.lowest)), broadcast(grid.highest));
    store_biased_u8(codes, q - broadcast(grid.lowest + 128.0f));
    return (q - zero) * scale;
}

inline Vec round_codebook(const ObsGrid& grid, Vec x, Vec scale, Vec zero, uint8_t* codes) {
    const Vec y = x / divisor(scale) + zero, one = broadcast(1.0f), none = broadcast(0.0f);
    Vec count = broadcast(-128.0f);
    for (int64_t i = 0; i < grid.count - 1; ++i) count = count + select_negative(broadcast(grid.thresholds[i]) - y, one, none);
    store_biased_u8(codes, count);
    float levels[Vec::width];
    for (int64_t r = 0; r < Vec::width; ++r) levels[r] = grid.levels[codes[r]];
    return (load(levels) - zero) * scale;
}

inline Lanes round_lanes(const Chunk& chunk, int64_t j, const Lanes& x) {
    const ObsGrid& grid = chunk.block.grid;
    if (grid.codes == nullptr) return x;
    const int64_t at = grid.groups[j] * chunk.block.rows + chunk.first_row;
    Lanes v;
    for (int64_t i = 0; i < kVectors; ++i) {
        const Vec scale = load(grid.scales + at + i * Vec::width);
        const Vec zero = grid.zeros == nullptr ? broadcast(0.0f) : load(grid.zeros + at + i * Vec::width);
        uint8_t* codes = grid.codes + chunk.at(j) + i * Vec::width;
        v.v[i] =
            grid.thresholds == nullptr ? round_uniform(grid, x.v[i], scale, zero, codes) : round_codebook(grid, x.v[i], scale, zero, codes);
    }
    return v;
}

inline Lanes prune_lanes(const Chunk& chunk, int64_t j, Lanes x) {
    if (chunk.block.keep == nullptr) return x;
    const uint8_t* keep = chunk.block.keep + chunk.at(j);
    float chosen[kRows];
    for (int64_t r = 0; r < kRows; ++r) chosen[r] = keep[r] != 0 ? -1.0f : 0.0f;
    for (int64_t i = 0; i < kVectors; ++i) x.v[i] = select_negative(load(chosen + i * Vec::width), x.v[i], broadcast(0.0f));
    return x;
}

// The mask of the columns from first on, at most of_m: each pair of scores is compared once, and the smaller loses a place.
inline void choose(Chunk& chunk, int64_t first, int64_t last) {
    const ObsBlock& block = chunk.block;
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

inline void run_column(Chunk& chunk, int64_t j, int64_t last) {
    const Lanes w = load_lanes(chunk.w_at(j));
    const Lanes v = round_lanes(chunk, j, prune_lanes(chunk, j, w));
    const Vec pivot = broadcast(chunk.l(j, j));
    Lanes e;
    for (int64_t i = 0; i < kVectors; ++i) e.v[i] = (v.v[i] - w.v[i]) / pivot;
    store_lanes(chunk.block.W + chunk.at(j), v);
    store_lanes(chunk.e_at(j), e);
    for (int64_t k = j + 1; k < last; ++k) {
        const Vec factor = broadcast(chunk.l(k, j));
        Lanes rest = load_lanes(chunk.w_at(k));
        for (int64_t i = 0; i < kVectors; ++i) rest.v[i] = multiply_add(e.v[i], factor, rest.v[i]);
        store_lanes(chunk.w_at(k), rest);
    }
}

void run_rows(const ObsBlock& block, int64_t first_row) {
    Chunk chunk(block, first_row);
    const int64_t m = block.of_m, step = m == 0 ? kStep : m <= kStep ? kStep / m * m : m;
    for (int64_t first = 0; first < block.columns; first += step) {
        const int64_t last = first + step < block.columns ? first + step : block.columns;
        int64_t k = first;
        for (; k + kTile <= last; k += kTile) collect<kTile>(chunk, first, k);
        for (; k < last; ++k) collect<1>(chunk, first, k);
        for (int64_t j = first; j < last; ++j) {
            if (m != 0 && (j - first) % m == 0) choose(chunk, j, last);
            run_column(chunk, j, last);
        }
    }
    double* loss = block.loss + first_row;
    for (int64_t j = 0; j < block.columns; ++j) {
        std::memcpy(block.E + chunk.at(j), chunk.e_at(j), sizeof(float) * kRows);
        for (int64_t r = 0; r < kRows; ++r) loss[r] += static_cast<double>(chunk.e_at(j)[r]) * static_cast<double>(chunk.e_at(j)[r]);
    }
}

}  // namespace
}  // namespace gossamer
