// Sparse bf16 and fp32 lines on AVX-512 with VBMI2 and AVX512-BF16. Contract: sparse_float.h; numerics of VDPBF16PS: bf16.h.
#include <cstring>

#include "lines_vbmi2.h"

namespace gossamer {
namespace {

inline Sums add_zero_times(Sums sum, const uint16_t* a) {
    return {_mm512_dpbf16_ps(sum.v, reinterpret_cast<__m512bh>(_mm512_loadu_si512(a)), reinterpret_cast<__m512bh>(_mm512_setzero_si512()))};
}
inline Sums dot(Sums sum, const uint16_t* a, Line line) {
    int32_t word;
    std::memcpy(&word, a, 4);
    return {_mm512_dpbf16_ps(sum.v, reinterpret_cast<__m512bh>(_mm512_set1_epi32(word)), reinterpret_cast<__m512bh>(line.v))};
}

}  // namespace
}  // namespace gossamer

#include "tile.h"

namespace gossamer {
extern const SparseFloatKernels sparse_float_avx512bf16;
const SparseFloatKernels sparse_float_avx512bf16 = {Isa::avx512bf16, expand<2, uint16_t>, expand<1, float>, kMaxRows,
                                                    run<F32Lines>,   run<Bf16LinesF32>,   run<Bf16Lines>};
}  // namespace gossamer
