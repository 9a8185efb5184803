// The part "spmm" of sparse int8 weights, in bytes.
//
//   header    PartHeader                        64 bytes
//   offsets   int64  [strips + 1]               byte of the part where a strip of 32 rows of the weight begins; the last entry: the end
//   strips    each: [blocks] segments           on a 64-byte boundary the first of them
//
// A group is 4 k of one row, from a multiple of 4 on, of which one value at least is not zero; a block is block_groups groups of K.
//
//   segment   counts   uint16 [32]              stored groups of each row in this block
//             words    int8   [stored][4]       row after row, by ascending k, zeros inside kept
//             indices  uint8  [stored]          of the group within the block
//             zeros up to a multiple of 16 bytes
//
// Bytes: 5 for a stored group, 2 for each row and block. At density d (unstructured) 1 - (1 - d)^4 of the groups are stored: 0.43 bytes a
// weight at 90 %, 0.23 at 95 %; blocks of 1x4: 1.25 d. An index of 16 bits would cost a sixth more and allow longer blocks, of which none
// was faster.
//
// block_groups: a tile of 64 rows of x takes 256 bytes a group, so 128 groups are what an L1 of 32 KiB holds, and each line is used
// 32 * share of stored groups times a strip. Below a share of 1/8 that is too seldom to matter, and what a row costs for each block that it
// meets (its sums are loaded and stored, the loop begins and ends) weighs more: 256 groups.
#pragma once
#include <cstdint>

#include "gossamer/format.h"
#include "gossamer/lane.h"
#include "gossamer/s8.h"

namespace gossamer::spmm_s8 {

inline constexpr int64_t kGroup = 4;
inline constexpr int64_t kShortBlock = 128, kLongBlock = 256;  // groups; an index is a byte
static_assert(kMaxSumK % (kGroup * kLongBlock) == 0);

struct PartHeader {
    int64_t N, K;
    int64_t block_groups;
    int64_t stored_groups;
    int64_t nnz;  // values, the zeros inside groups not counted
    int64_t reserved[3];
};
static_assert(sizeof(PartHeader) == 64);

constexpr int64_t count_of(int64_t x, int64_t size) { return (x + size - 1) / size; }

struct Segment {
    const uint16_t* counts;
    const int32_t* words;
    const uint8_t* indices;
    const uint8_t* end;
};

inline int64_t segment_bytes(int64_t stored) { return round_up(kStripColumns * 2 + stored * 5, 16); }

inline int64_t stored_in(const uint16_t* counts) {
    int64_t stored = 0;
    for (int64_t n = 0; n < kStripColumns; ++n) stored += counts[n];
    return stored;
}

inline Segment segment_at(const uint8_t* bytes) {
    const uint16_t* counts = reinterpret_cast<const uint16_t*>(bytes);
    const int64_t stored = stored_in(counts);
    const uint8_t* words = bytes + kStripColumns * 2;
    return {counts, reinterpret_cast<const int32_t*>(words), words + stored * 4, bytes + segment_bytes(stored)};
}

// A part; it does not own the bytes.
struct Part {
    const uint8_t* bytes;

    const PartHeader& header() const { return *reinterpret_cast<const PartHeader*>(bytes); }
    const int64_t* offsets() const { return reinterpret_cast<const int64_t*>(bytes + sizeof(PartHeader)); }
    int64_t strips() const { return count_of(header().N, kStripColumns); }
    int64_t groups() const { return count_of(header().K, kGroup); }
    int64_t blocks() const { return count_of(groups(), header().block_groups); }
    const uint8_t* strip(int64_t s) const { return bytes + offsets()[s]; }
    double stored_share() const {
        return static_cast<double>(header().stored_groups) / (static_cast<double>(header().N) * static_cast<double>(groups()));
    }
};

inline int64_t first_offset(int64_t strips) { return round_up(static_cast<int64_t>(sizeof(PartHeader)) + (strips + 1) * 8, 64); }

}  // namespace gossamer::spmm_s8
