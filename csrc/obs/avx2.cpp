#include "../simd/avx2.h"

#include "columns.h"
#include "descent.h"

namespace gossamer {
extern const ObsKernels obs_avx2;
const ObsKernels obs_avx2 = {Isa::avx2, kRows, update_rows, descend_rows};
}  // namespace gossamer
