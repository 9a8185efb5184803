#include "../simd/avx2.h"

#include "quantize_rows.h"

namespace gossamer {
extern const QuantizeKernels quantize_avx2;
const QuantizeKernels quantize_avx2 = {Isa::avx2, quantize_rows};
}  // namespace gossamer
