#include "expand_pairs.h"

namespace gossamer {
extern const Bf16ExpandKernels bf16_expand_avx2;
const Bf16ExpandKernels bf16_expand_avx2 = {Isa::avx2, expand_pairs};
}  // namespace gossamer
