#include "../simd/scalar.h"

#include "quantize_rows.h"

namespace gossamer {
extern const QuantizeKernels quantize_scalar;
const QuantizeKernels quantize_scalar = {Isa::scalar, quantize_rows};
}  // namespace gossamer
