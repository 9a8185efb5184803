// Rows of a block side by side, and the walk over its columns: what the column update and the descent of obs.h have in common. Written once
// over the vector type of simd/<isa>.h, which each <isa>.cpp includes first.
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
    const float* L;  // [columns][columns], the lower triangle
    int64_t l_stride, rows, first_row;
    alignas(64) float w[kObsColumns * kRows];
    alignas(64) float e[kObsColumns * kRows];

    Chunk(const float* lower, int64_t stride, int64_t all_rows, int64_t row) : L(lower), l_stride(stride), rows(all_rows), first_row(row) {}
    void read(const float* W, int64_t columns) {
        for (int64_t j = 0; j < columns; ++j) std::memcpy(w_at(j), W + at(j), sizeof(float) * kRows);
    }
    float* w_at(int64_t j) { return w + j * kRows; }
    float* e_at(int64_t j) { return e + j * kRows; }
    int64_t at(int64_t j) const { return j * rows + first_row; }
    float l(int64_t k, int64_t j) const { return L[k * l_stride + j]; }
};

// w[k] += sum over j < first of e[j] L[k,j], for Columns columns k.
template <int64_t Columns>
inline void collect(Chunk& chunk, int64_t first, int64_t k) {
    Lanes sums[Columns];
    for (int64_t c = 0; c < Columns; ++c) sums[c] = load_lanes(chunk.w_at(k + c));
    const float* l = chunk.L + k * chunk.l_stride;
    for (int64_t j = 0; j < first; ++j) {
        const Lanes e = load_lanes(chunk.e_at(j));
        for (int64_t c = 0; c < Columns; ++c) {
            const Vec factor = broadcast(l[c * chunk.l_stride + j]);
            for (int64_t i = 0; i < kVectors; ++i) sums[c].v[i] = multiply_add(e.v[i], factor, sums[c].v[i]);
        }
    }
    for (int64_t c = 0; c < Columns; ++c) store_lanes(chunk.w_at(k + c), sums[c]);
}

// w[k] += e L[k,j] for k = j+1 .. last-1.
inline void pass_on(Chunk& chunk, int64_t j, int64_t last, const Lanes& e) {
    store_lanes(chunk.e_at(j), e);
    for (int64_t k = j + 1; k < last; ++k) {
        const Vec factor = broadcast(chunk.l(k, j));
        Lanes rest = load_lanes(chunk.w_at(k));
        for (int64_t i = 0; i < kVectors; ++i) rest.v[i] = multiply_add(e.v[i], factor, rest.v[i]);
        store_lanes(chunk.w_at(k), rest);
    }
}

// One column after the other, in steps: error_of(j, first, last) of the step gives the error of column j.
template <class ErrorOf>
inline void walk(Chunk& chunk, int64_t columns, int64_t step, const ErrorOf& error_of) {
    for (int64_t first = 0; first < columns; first += step) {
        const int64_t last = first + step < columns ? first + step : columns;
        int64_t k = first;
        for (; k + kTile <= last; k += kTile) collect<kTile>(chunk, first, k);
        for (; k < last; ++k) collect<1>(chunk, first, k);
        for (int64_t j = first; j < last; ++j) pass_on(chunk, j, last, error_of(j, first, last));
    }
}

// 0 where the mask has 0.
inline Lanes masked(const uint8_t* keep, Lanes x) {
    float chosen[kRows];
    for (int64_t r = 0; r < kRows; ++r) chosen[r] = keep[r] != 0 ? -1.0f : 0.0f;
    for (int64_t i = 0; i < kVectors; ++i) x.v[i] = select_negative(load(chosen + i * Vec::width), x.v[i], broadcast(0.0f));
    return x;
}

}  // namespace
}  // namespace gossamer
