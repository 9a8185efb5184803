// Sparse bf16 and fp32 lines on AVX-512 with VBMI2. Contract: sparse_float.h.
#include "lines_vbmi2.h"
#include "tile.h"

namespace gossamer {
extern const SparseFloatKernels sparse_float_avx512vbmi2;
const SparseFloatKernels sparse_float_avx512vbmi2 = {Isa::avx512vbmi2, expand<2, uint16_t>, expand<1, float>, kMaxRows,
                                                     run<F32Lines>,    run<Bf16LinesF32>,   nullptr};
}  // namespace gossamer
