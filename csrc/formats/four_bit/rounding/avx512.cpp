#include "../../../simd/avx512.h"

#include "round_groups.h"

namespace gossamer {
extern const RoundInt4Kernels round_int4_avx512;
const RoundInt4Kernels round_int4_avx512 = {Isa::avx512, best_scales, codes};
}  // namespace gossamer
