#include "../simd/avx512.h"

#include "columns.h"
#include "descent.h"

namespace gossamer {
extern const ObsKernels obs_avx512;
const ObsKernels obs_avx512 = {Isa::avx512, kRows, update_rows, descend_rows};
}  // namespace gossamer
