// The grid of a product, rows x strips of 32 columns: how it is shared out over a team and walked by one thread.
//
// Loop nest of one thread, outermost first:
//   slabs           at most kSlabRows rows and kSlabBytes of A, so that the panels stay bounded, and in L3, for any M and K
//   strip groups    strips that are expanded together: kExpandedBytes of B in L2; all of them where nothing is expanded
//   row blocks      at most block_rows x K of A, in L2
//   strips          32 columns of B, read once per row block
//
// Tried and lost (Zen 4): prefetching the lines that the epilogue will write, 1-2 % faster at M = 1024 and 2 % slower at M = 1; K blocks of
// 512 or 1024 on VNNI, whose B comes from L2 fast enough, no faster.
#pragma once
#include <algorithm>
#include <cstdint>

#include "gossamer/lane.h"
#include "gossamer/parallel.h"

namespace gossamer {

inline constexpr int64_t kSlabRows = 2048, kSlabBytes = int64_t{16} << 20;
inline constexpr int64_t kMaxBlockRows = 128;
inline constexpr int64_t kBlockBytes = 1 << 20;       // of A, half of a 2 MiB L2
inline constexpr int64_t kExpandedBytes = 256 << 10;  // of B
// Up to this many rows every thread makes the panels of all of A for itself, which is cheaper than a barrier.
inline constexpr int64_t kPrivateRows = 4;

constexpr int64_t ceil_div(int64_t x, int64_t y) { return (x + y - 1) / y; }

// A cell of the grid: rows of the slab x one strip.
struct Cell {
    int64_t first_row, rows, strip, columns;  // columns: the valid ones
    int64_t n_panels() const { return ceil_div(columns, kPanelColumns); }
    int64_t first_column() const { return strip * kStripColumns; }
};

// The part of the grid (panels of rows x strips) that falls to one thread: the split with the least work for the busiest.
struct Share {
    Range rows, strips;
};

// Bytes of the strips of a weight where they differ, as sums that lie in the weight itself.
struct StripBytes {
    const int64_t* sums = nullptr;  // null: all strips are alike
    int64_t step = 0, last = 0;     // of `sums`: from a strip to the next; the entry for the end of the weight
    int64_t others = 0;             // bytes of each strip that `sums` does not count

    int64_t before(int64_t strip) const { return sums[std::min(strip * step, last)] + strip * others; }
};

// Part `index` of `count` parts of the strips, of nearly equal bytes: a strip falls to the part in which its middle lies.
inline Range split_strips(int64_t strips, const StripBytes& bytes, int64_t index, int64_t count) {
    if (bytes.sums == nullptr) return split_range(strips, index, count);
    const auto first_of = [&](int64_t part) {
        int64_t first = 0, end = part == 0 ? 0 : strips;
        const int64_t twice = 2 * (bytes.before(strips) / count * part);
        while (first < end) {
            const int64_t middle = (first + end) / 2;
            if (part < count && bytes.before(middle) + bytes.before(middle + 1) >= twice) {
                end = middle;
            } else {
                first = middle + 1;
            }
        }
        return first;
    };
    return {first_of(index), first_of(index + 1)};
}

inline Share choose_share(int64_t rows, int64_t panel_rows, int64_t strips, Team team, const StripBytes& bytes = {}) {
    const int64_t panels = ceil_div(rows, panel_rows);
    int64_t row_parts = 1, strip_parts = 1, least = panels * strips;
    for (int64_t parts = team.size; parts >= 1; --parts) {
        const int64_t others = team.size / parts;
        const int64_t busiest = ceil_div(panels, others) * ceil_div(strips, parts);
        // Ties go to the split along N, which reads the weight once.
        if (busiest < least) {
            least = busiest;
            row_parts = others;
            strip_parts = parts;
        }
    }
    if (team.rank >= row_parts * strip_parts) return {{0, 0}, {0, 0}};
    const Range part = split_range(panels, team.rank / strip_parts, row_parts);
    return {{part.begin * panel_rows, std::min(part.end * panel_rows, rows)},
            split_strips(strips, bytes, team.rank % strip_parts, strip_parts)};
}

// Rows per call of a kernel that likes block_rows of them, each row_bytes long.
inline int64_t rows_in_l2(int64_t block_rows, int64_t row_bytes) {
    return std::min(block_rows, std::max(kBlockBytes / row_bytes / kStripColumns * kStripColumns, 2 * kPanelRows));
}

// Waking a thread costs a few microseconds; a thread must have more work than that.
struct Work {
    double bytes;     // of the weight
    double products;  // multiply-adds
    double products_per_microsecond;
};

inline int useful_threads(const Work& work, int threads) {
    constexpr double kBytesPerMicrosecond = 20e3, kMicrosecondsPerThread = 3;
    const double microseconds = std::max(work.bytes / kBytesPerMicrosecond, work.products / work.products_per_microsecond);
    return std::max(static_cast<int>(std::min(microseconds / kMicrosecondsPerThread, static_cast<double>(threads))), 1);
}

}  // namespace gossamer
