// The loop over stored groups, written once over the vectors of an ISA; each <isa>.cpp defines them, then includes this. They are
//
//   Sums                     Sums::rows sums of int32
//   kLineBytes, kWantedSums  bytes of a line: one group of Sums::rows rows of x; independent sums that hide the latency of dot
//   Quad, load_quad(p)       four words of the weight, word<i>(quad) one of them for all rows; one_word(p)
//   dot(sum, line, word)     sum + the products with the line of x
//
// For each group: an index, a line of x and a dot for every vector of sums, and a word, whose own load would take a fifth of what the load
// unit can do with 64 rows of x; so four words come in one load and are spread by shuffles, of which there is plenty (6 to 10 % faster on
// Zen 4 than a broadcast load for each). With that, loads and dots are in balance, and rows of the weight that share a loaded line of x
// could win another 6 % at most, for a loop for each pattern of shared groups: not done. Padding rows of the weight to whole quads lost to
// the loop over the 0 to 3 that are left, 4 %.
//
// Segments of some KB with three streams each are too short for the prefetchers of the hardware: each row asks for as many bytes of the
// segment that comes next, into L2.
#pragma once
#include <immintrin.h>

#include <cstdint>

#include "kernels.h"

namespace gossamer {
namespace {

inline constexpr int64_t kPanelVectors = kPanelRows / Sums::rows;  // of sums, for 16 rows of x

inline void prefetch(const uint8_t* p) { _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T1); }

template <int count>
inline void add_group(Sums (&sums)[count], const uint8_t* line, Word word) {
#pragma GCC unroll 8
    for (int i = 0; i < count; ++i) sums[i] = dot(sums[i], line + i * kLineBytes, word);
}

template <int count>
inline void start(Sums (&sums)[count], const SpmmS8Block& block, int64_t n, const int32_t* c) {
#pragma GCC unroll 8
    for (int i = 0; i < count; ++i) sums[i] = block.init != nullptr ? broadcast(block.init[n]) : load(c + i * Sums::rows);
}

template <int vectors>
void run_tile(const SpmmS8Block& block) {
    constexpr int count = vectors * kPanelVectors, wanted = kWantedSums / count;
    constexpr int chains = wanted >= 4 ? 4 : wanted >= 2 ? 2 : 1;
    constexpr int64_t stride = count * kLineBytes;
    const int32_t* words = block.words;
    const uint8_t* indices = block.indices;
    const uint8_t* next = block.next;
    int32_t* c = block.c;
    for (int64_t n = 0; n < kStripColumns; ++n, c += count * Sums::rows) {
        const int64_t groups = block.counts[n];
        if (groups == 0 && block.init == nullptr) continue;
        Sums sums[chains][count];
        start(sums[0], block, n, c);
        for (int j = 1; j < chains; ++j) {
            for (int i = 0; i < count; ++i) sums[j][i] = broadcast(0);
        }
        int64_t g = 0;
        for (; g + 4 <= groups; g += 4) {
            const Quad quad = load_quad(words + g);
            add_group(sums[0], block.x + indices[g] * stride, word<0>(quad));
            add_group(sums[1 % chains], block.x + indices[g + 1] * stride, word<1>(quad));
            add_group(sums[2 % chains], block.x + indices[g + 2] * stride, word<2>(quad));
            add_group(sums[3 % chains], block.x + indices[g + 3] * stride, word<3>(quad));
        }
        for (; g < groups; ++g) add_group(sums[0], block.x + indices[g] * stride, one_word(words + g));
        for (int j = 1; j < chains; ++j) {
            for (int i = 0; i < count; ++i) sums[0][i] = add(sums[0][i], sums[j][i]);
        }
        for (int i = 0; i < count; ++i) store(c + i * Sums::rows, sums[0][i]);
        words += groups;
        indices += groups;
        for (int64_t i = 0; i < groups * 5; i += 64) prefetch(next + i);
        next += groups * 5;
    }
}

}  // namespace
}  // namespace gossamer
