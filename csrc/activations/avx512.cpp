#include "../simd/avx512.h"

#include "quantize_rows.h"

namespace gossamer {
extern const QuantizeKernels quantize_avx512;
const QuantizeKernels quantize_avx512 = {Isa::avx512, quantize_rows};
}  // namespace gossamer
