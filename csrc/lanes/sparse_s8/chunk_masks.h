// The bits of 16 lines, 64 a line whatever the pattern: in place, or spread out. So kernels know one pattern only; spreading costs 3 to 8
// instructions a line (PDEP would be one, but is slow before Zen 3).
#pragma once
#include <cstdint>
#include <cstring>

#include "gossamer/sparse_s8.h"

namespace gossamer {
namespace {

constexpr int64_t kChunkLines = 16;  // of 64 k

template <class T>
inline T load_bits(const uint8_t* p) {
    T bits;
    std::memcpy(&bits, p, sizeof bits);
    return bits;
}

// Four groups of 4 bits, each to the lowest of 16.
inline uint64_t spread_fours(uint64_t bits) {
    bits = (bits | bits << 24) & 0x000000ff000000ff;
    return (bits | bits << 12) & 0x000f000f000f000f;
}

// 16 bits, each to the lowest of 4.
inline uint64_t spread_ones(uint64_t bits) {
    bits = spread_fours(bits);
    bits = (bits | bits << 6) & 0x0303030303030303;
    return (bits | bits << 3) & 0x1111111111111111;
}

// A column's 4 k are a word of 4 bytes: 1x4 and 1x16 set all of them or none, by one of 16 bits.
inline bool masks_words(SparsePattern pattern) { return pattern == SparsePattern::b1x4 || pattern == SparsePattern::b1x16; }
inline uint16_t word_mask(const SparseLines& b, int64_t line) {
    return load_bits<uint16_t>(b.masks + (b.pattern == SparsePattern::b1x4 ? line : line / 4) * 2);
}

// Masks of lines [line, line + count), count <= 16, `line` a multiple of 16. `room`: for 16 masks.
inline const uint8_t* chunk_masks(const SparseLines& b, int64_t line, int64_t count, uint64_t* room) {
    if (b.pattern == SparsePattern::any) return b.masks + line * 8;
    for (int64_t i = 0; i < count; ++i) {
        if (masks_words(b.pattern)) {
            room[i] = spread_ones(word_mask(b, line + i)) * 15;
        } else if (b.pattern == SparsePattern::b4x1) {
            room[i] = spread_fours(load_bits<uint16_t>(b.masks + (line + i) * 2)) * 0x1111;
        } else {
            room[i] = static_cast<uint64_t>(b.masks[(line + i) / 2] >> (line + i) % 2 * 4 & 15) * 0x1111111111111111;
        }
    }
    return reinterpret_cast<const uint8_t*>(room);
}

// Calls run(masks, line, count) for 16 lines at a time, the last time for what is left.
template <class Run>
inline void for_each_chunk(const SparseLines& b, const Run& run) {
    uint64_t room[kChunkLines];
    for (int64_t line = 0; line < b.lines; line += kChunkLines) {
        const int64_t count = b.lines - line < kChunkLines ? b.lines - line : kChunkLines;
        run(chunk_masks(b, line, count, room), line, count);
    }
}

}  // namespace
}  // namespace gossamer
