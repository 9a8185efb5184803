#include "../simd/avx2.h"

#include "columns.h"

namespace gossamer {
extern const ObsKernels obs_avx2;
const ObsKernels obs_avx2 = {Isa::avx2, kRows, run_rows};
}  // namespace gossamer
