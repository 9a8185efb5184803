#include "../simd/scalar.h"

#include "finish.h"

namespace gossamer {
extern const EpilogueKernels epilogue_scalar;
const EpilogueKernels epilogue_scalar = {Isa::scalar, scale_add, finish_s32, finish_f32};
}  // namespace gossamer
