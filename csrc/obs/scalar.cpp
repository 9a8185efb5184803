#include "../simd/scalar.h"

#include "columns.h"

namespace gossamer {
extern const ObsKernels obs_scalar;
const ObsKernels obs_scalar = {Isa::scalar, kRows, run_rows};
}  // namespace gossamer
