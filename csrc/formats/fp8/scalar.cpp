#include "../../simd/scalar.h"

#include "expand_lines.h"

namespace gossamer {
extern const Fp8ExpandKernels fp8_expand_scalar;
const Fp8ExpandKernels fp8_expand_scalar = {Isa::scalar, expand_lines_to_f32, expand_lines_to_bf16, nullptr};
}  // namespace gossamer
