// A lane is what the inner loop multiplies. Three of them, over one geometry:
//
//   lane   A x B -> sums            word (elements)   chunk (elements)    file
//   s8     uint8 x int8 -> int32    4                 64                  s8.h
//   bf16   bf16 x bf16 -> fp32      2                 32                  bf16.h
//   f32    fp32 x fp32 -> fp32      1                 16                  f32.h
//
//   c[m,n] = init[n] + sum_k a[m,k] * b[n,k]
//
// A word is 4 bytes of a row of A, broadcast by the kernels; a chunk is 64 bytes of it. K is padded to whole chunks with zeros.
//
// A: panels of R = panel_rows rows.   panel p: [K/chunk][R rows][chunk]           16 lines of 64 bytes in sequence are one AMX tile
// B: panels of 16 columns.            panel j: [K/word][16 columns][word]         one 64-byte line is one zmm, or two ymm;
//                                                                                 16 of them in sequence are one AMX tile
// C: [M][32] row-major, two panels side by side ("strip"), sums of 4 bytes.
//
// A call multiplies up to block_rows rows by one strip over one K block. K is a multiple of a chunk, or for groups shorter than a chunk of
// 4 words.
#pragma once
#include <cstdint>

#include "gossamer/isa.h"

namespace gossamer {

inline constexpr int64_t kPanelRows = 16;     // at most, of A
inline constexpr int64_t kPanelColumns = 16;  // of B
inline constexpr int64_t kStripColumns = 32;

template <class AElement, class BElement, class SumElement>
struct LaneBlock {
    using A = AElement;
    using B = BElement;
    using Sum = SumElement;
    static constexpr int64_t word = 4 / static_cast<int64_t>(sizeof(A));
    static constexpr int64_t chunk = 64 / static_cast<int64_t>(sizeof(A));

    const A* a;              // panel of the first row, at the first k
    int64_t panel_rows;      // R
    int64_t a_panel_stride;  // elements from a panel to the next
    const B* b;              // first panel of the strip, at the first k
    int64_t b_panel_stride;  // elements from a panel to the next
    int64_t n_panels;        // 1 or 2
    int64_t M, K;
    const Sum* init;  // [n_panels * 16], or null: c holds the sum of the K blocks before
    Sum* c;           // [M rounded up to R][32]
};

template <class Block>
struct LaneKernels {
    Isa isa;
    int64_t block_rows;  // rows of A per call, a multiple of 16: the A block stays in L2, the C block in L1/L2
    int64_t block_k;     // k per call, a multiple of a chunk: the strip of B stays in L1 where the kernel reads it once per panel of A
    void (*run)(const Block& block);
    // Around a thread's work; null where there is nothing to do (AMX configures and releases its tiles).
    void (*begin)(int64_t panel_rows);
    void (*end)();
};

}  // namespace gossamer
