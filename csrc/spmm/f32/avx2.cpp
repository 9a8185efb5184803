// Sparse fp32 on AVX2. Contract: kernels.h.
//
// Two loads and two multiply-adds of 32 bytes a cycle: 8 sums hide the latency, and are half of the registers.
#include "../../simd/avx2.h"

#include "../transpose_avx2.h"
#include "rows.h"

namespace gossamer {
namespace {

void run(const SpmmF32Block& block) {
    switch (block.vectors) {
        case 0: return run_one(block);
        case 1: return run_rows<4, 2>(block);
        case 2: return run_rows<2, 4>(block);
        case 3: return run_rows<1, 6>(block);
        default: return run_rows<1, 8>(block);
    }
}

}  // namespace

extern const SpmmF32Kernels spmm_f32_avx2;
const SpmmF32Kernels spmm_f32_avx2 = {Isa::avx2, 4, run, transpose, finite};
}  // namespace gossamer
