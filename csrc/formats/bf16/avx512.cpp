#include "expand_pairs.h"

namespace gossamer {
extern const Bf16ExpandKernels bf16_expand_avx512;
const Bf16ExpandKernels bf16_expand_avx512 = {Isa::avx512, expand_pairs};
}  // namespace gossamer
