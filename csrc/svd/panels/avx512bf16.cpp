// Rounding by the instruction, which takes denormals for zeros.
#include "../../simd/avx512.h"
#include "interleave_avx512.h"

namespace gossamer {
namespace {
inline void store_rounded(uint16_t* p, Vec v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(v.v)));
}
}  // namespace
}  // namespace gossamer

#include "convert.h"

namespace gossamer {
extern const SvdPanelKernels svd_panels_avx512bf16;
const SvdPanelKernels svd_panels_avx512bf16 = {Isa::avx512bf16, kToF32, kToBf16, add_to_f64};
}  // namespace gossamer
