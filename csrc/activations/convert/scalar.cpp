#include "../../simd/scalar.h"

#include "../convert_rows.h"

namespace gossamer {
extern const ConvertKernels convert_scalar;
const ConvertKernels convert_scalar = {Isa::scalar, widen_rows};
}  // namespace gossamer
