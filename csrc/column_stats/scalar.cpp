#include "../simd/scalar.h"

#include "add_columns.h"

namespace gossamer {
extern const ColumnStatsKernels column_stats_scalar;
const ColumnStatsKernels column_stats_scalar = {Isa::scalar, add_columns};
}  // namespace gossamer
