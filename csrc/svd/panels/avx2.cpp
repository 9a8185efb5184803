#include "../../simd/avx2.h"

#include "interleave.h"

namespace gossamer {
namespace {
inline void store_rounded(uint16_t* p, Vec v) { store_bf16(p, v); }
}  // namespace
}  // namespace gossamer

#include "convert.h"

namespace gossamer {
extern const SvdPanelKernels svd_panels_avx2;
const SvdPanelKernels svd_panels_avx2 = {Isa::avx2, kToF32, kToBf16, add_to_f64};
}  // namespace gossamer
