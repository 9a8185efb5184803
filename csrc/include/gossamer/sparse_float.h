// Kernels that read sparse bf16 and fp32 weights (format_sparse.h) for the bf16 and f32 lanes: expanded into panels, or multiplied as they
// are read.
#pragma once
#include <cstdint>

#include "gossamer/sparse_s8.h"

namespace gossamer {

// One panel for few rows:  c[m,n] = sum_k a[m,k] * w[n,k]      a panel of A of the lane (lane.h) at the first of the rows, from k = 0
template <class A>
struct SparseFloatRows {
    SparseLines b;
    const A* a;
    int64_t panel_rows;
    int64_t M;  // 1 to max_rows, all in that panel
    float* c;   // [M][32]
};

struct SparseFloatKernels {
    Isa isa;
    // Lines to lines of the bf16 panel and of the f32 panel, bit for bit.
    void (*expand_words)(const SparseLines& b, uint16_t* out);
    void (*expand_dwords)(const SparseLines& b, float* out);
    int64_t max_rows;  // above, expanding once is faster; 0: no such kernels
    // fp32 values and bf16 values on the f32 lane, bf16 values on the bf16 lane (null where the ISA has none).
    void (*run_f32)(const SparseFloatRows<float>& rows);
    void (*run_bf16_f32)(const SparseFloatRows<float>& rows);
    void (*run_bf16)(const SparseFloatRows<uint16_t>& rows);
};

}  // namespace gossamer
