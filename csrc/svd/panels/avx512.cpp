#include "../../simd/avx512.h"

#include "interleave_avx512.h"

namespace gossamer {
namespace {
inline void store_rounded(uint16_t* p, Vec v) { store_bf16(p, v); }
}  // namespace
}  // namespace gossamer

#include "convert.h"

namespace gossamer {
extern const SvdPanelKernels svd_panels_avx512;
const SvdPanelKernels svd_panels_avx512 = {Isa::avx512, kToF32, kToBf16, add_to_f64};
}  // namespace gossamer
