#include "../simd/avx512.h"

#include "columns.h"

namespace gossamer {
extern const ObsKernels obs_avx512;
const ObsKernels obs_avx512 = {Isa::avx512, kRows, run_rows};
}  // namespace gossamer
