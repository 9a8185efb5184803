#include "../../simd/avx512.h"

#include "../convert_rows.h"

namespace gossamer {
extern const ConvertKernels convert_avx512;
const ConvertKernels convert_avx512 = {Isa::avx512, widen_rows};
}  // namespace gossamer
