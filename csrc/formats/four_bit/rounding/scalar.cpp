#include "../../../simd/scalar.h"

#include "round_groups.h"

namespace gossamer {
extern const RoundInt4Kernels round_int4_scalar;
const RoundInt4Kernels round_int4_scalar = {Isa::scalar, best_scales, codes};
}  // namespace gossamer
