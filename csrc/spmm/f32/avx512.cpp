// Sparse fp32 on AVX-512. Contract: kernels.h.
//
// A value costs a broadcast and `vectors` multiply-adds that load x, so loads bind: on Zen 4 (one of 64 bytes a cycle, one multiply-add a
// cycle) 54, 70 and 78 % of the peak with 1, 2 and 4 vectors, x and sums in L1. Four rows in turn hide the latency of one vector each.
//
// Tried and lost (Zen 4, N = K = 4096, M = 256, share of the peak at 50 / 80 / 90 / 95 %; this design has 67 / 62 / 60 / 54):
//   sparse register tiling (4 rows share each load of x, columns sorted by their pattern of 4 bits, a straight-line loop for each pattern):
//     83 / 58 / 49 / 40: fewer loads pay at 50 %, 15 short loops and their mispredicted ends cost more from 80 % on
//   8 vectors, so half the broadcasts: 73 / 66 / 59 / 49 where K blocks of 64 fit L1, and too many sums to load and store above 90 %
//   one row after the other, unsorted: as fast with 4 vectors, half as fast with one at 95 % (every row ends its loop unpredicted)
//   one row of x by VPGATHERDPS: 1.5 cycles a value, against 1.15 of four scalar loads
#include "../../simd/avx512.h"

#include "../transpose_avx512.h"
#include "rows.h"

namespace gossamer {
namespace {

void run(const SpmmF32Block& block) {
    switch (block.vectors) {
        case 0: return run_one(block);
        case 1: return run_rows<4, 1>(block);
        case 2: return run_rows<4, 2>(block);
        case 3: return run_rows<4, 3>(block);
        default: return run_rows<2, 4>(block);
    }
}

}  // namespace

extern const SpmmF32Kernels spmm_f32_avx512;
const SpmmF32Kernels spmm_f32_avx512 = {Isa::avx512, 4, run, transpose, finite};
}  // namespace gossamer
