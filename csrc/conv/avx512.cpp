#include "../simd/avx512.h"

#include "depthwise.h"
#include "patches.h"
#include "pixels.h"

namespace gossamer {
extern const ConvKernels conv_avx512;
const ConvKernels conv_avx512 = {Isa::avx512, largest, quantize, gather, depthwise};
}  // namespace gossamer
