#include "../simd/avx2.h"

#include "finish.h"

namespace gossamer {
extern const EpilogueKernels epilogue_avx2;
const EpilogueKernels epilogue_avx2 = {Isa::avx2, scale_add, finish_s32, finish_f32};
}  // namespace gossamer
