#include "../../../simd/avx2.h"

#include "round_groups.h"

namespace gossamer {
extern const RoundInt4Kernels round_int4_avx2;
const RoundInt4Kernels round_int4_avx2 = {Isa::avx2, best_scales, codes};
}  // namespace gossamer
