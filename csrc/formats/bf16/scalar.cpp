#include "expand_pairs.h"

namespace gossamer {
extern const Bf16ExpandKernels bf16_expand_scalar;
const Bf16ExpandKernels bf16_expand_scalar = {Isa::scalar, expand_pairs};
}  // namespace gossamer
