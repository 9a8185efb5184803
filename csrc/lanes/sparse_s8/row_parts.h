// Walking the rows of a call, all in one panel of A, a few at a time.
#pragma once
#include <cstdint>

#include "gossamer/sparse_s8.h"

namespace gossamer {
namespace {

inline void skip_rows(SparseS8Rows& r, int64_t rows) {
    r.a += rows * S8Block::chunk;
    r.c += rows * kStripColumns;
}

inline void skip_rows(SparseU4Rows& r, int64_t rows) {
    r.a += rows * S8Block::chunk;
    r.a_sums += rows * r.groups;
    if (r.a_scales != nullptr) r.a_scales += rows * r.groups;
    r.sum += rows * kStripColumns;
}

// Calls run(part) for at most `most` rows at a time, in parts of nearly the same size.
template <int most, class Rows, class Run>
inline void for_each_part(Rows rows, const Run& run) {
    for (int64_t left = rows.M, parts = (rows.M + most - 1) / most; parts > 0; --parts) {
        rows.M = (left + parts - 1) / parts;
        run(rows);
        skip_rows(rows, rows.M);
        left -= rows.M;
    }
}

}  // namespace
}  // namespace gossamer
