#include "../simd/scalar.h"

#include "depthwise.h"
#include "patches.h"
#include "pixels.h"

namespace gossamer {
extern const ConvKernels conv_scalar;
const ConvKernels conv_scalar = {Isa::scalar, largest, quantize, gather, depthwise};
}  // namespace gossamer
