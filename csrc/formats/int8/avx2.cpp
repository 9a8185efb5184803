#include "expand_lines.h"

namespace gossamer {
extern const Int8ExpandKernels int8_expand_avx2;
const Int8ExpandKernels int8_expand_avx2 = {Isa::avx2, expand_lines_to_f32, expand_lines_to_bf16};
}  // namespace gossamer
