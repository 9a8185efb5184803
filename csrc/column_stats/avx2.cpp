#include "../simd/avx2.h"

#include "add_columns.h"

namespace gossamer {
extern const ColumnStatsKernels column_stats_avx2;
const ColumnStatsKernels column_stats_avx2 = {Isa::avx2, add_columns};
}  // namespace gossamer
