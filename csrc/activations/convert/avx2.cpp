#include "../../simd/avx2.h"

#include "../convert_rows.h"

namespace gossamer {
extern const ConvertKernels convert_avx2;
const ConvertKernels convert_avx2 = {Isa::avx2, widen_rows};
}  // namespace gossamer
