#include "../simd/avx512.h"

#include "finish.h"

namespace gossamer {
extern const EpilogueKernels epilogue_avx512;
const EpilogueKernels epilogue_avx512 = {Isa::avx512, scale_add, finish_s32, finish_f32};
}  // namespace gossamer
