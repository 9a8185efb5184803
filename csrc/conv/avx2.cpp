#include "../simd/avx2.h"

#include "depthwise.h"
#include "patches.h"
#include "pixels.h"

namespace gossamer {
extern const ConvKernels conv_avx2;
const ConvKernels conv_avx2 = {Isa::avx2, largest, quantize, gather, depthwise};
}  // namespace gossamer
