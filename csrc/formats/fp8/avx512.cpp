#include "../../simd/avx512.h"

#include "expand_lines.h"

namespace gossamer {
extern const Fp8ExpandKernels fp8_expand_avx512;
const Fp8ExpandKernels fp8_expand_avx512 = {Isa::avx512, expand_lines_to_f32, expand_lines_to_bf16, nullptr};
}  // namespace gossamer
