#include "../simd/avx512.h"

#include "add_columns.h"

namespace gossamer {
extern const ColumnStatsKernels column_stats_avx512;
const ColumnStatsKernels column_stats_avx512 = {Isa::avx512, add_columns};
}  // namespace gossamer
