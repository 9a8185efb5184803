#include "../../simd/avx2.h"

#include "expand_lines.h"

namespace gossamer {
extern const Fp8ExpandKernels fp8_expand_avx2;
const Fp8ExpandKernels fp8_expand_avx2 = {Isa::avx2, expand_lines_to_f32, expand_lines_to_bf16, nullptr};
}  // namespace gossamer
