#include "expand_lines.h"

namespace gossamer {
extern const Int8ExpandKernels int8_expand_avx512;
const Int8ExpandKernels int8_expand_avx512 = {Isa::avx512, expand_lines_to_f32, expand_lines_to_bf16};
}  // namespace gossamer
