#include "../simd/scalar.h"

#include "columns.h"
#include "descent.h"

namespace gossamer {
extern const ObsKernels obs_scalar;
const ObsKernels obs_scalar = {Isa::scalar, kRows, update_rows, descend_rows};
}  // namespace gossamer
