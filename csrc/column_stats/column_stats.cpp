// Columns shared out over a team. Contract: column_stats.h.
#include "gossamer/column_stats.h"

#include "dispatch/lists.h"
#include "gossamer/parallel.h"
#include "linear/grid.h"

namespace gossamer {
namespace {

constexpr int64_t kColumns = 64;  // that a thread takes at least: 4 lines of fp32, for the prefetcher

}  // namespace

void add_column_stats(const ColumnStats& stats, Isa isa, int threads) {
    const ColumnStatsKernels& kernels = select_kernels(column_stats_list(), isa);
    const double numbers = static_cast<double>(stats.M) * static_cast<double>(stats.K);
    const int useful = useful_threads({numbers * static_cast<double>(size_bytes(stats.x_dtype)), numbers * 4, 20e3}, threads);
    parallel(useful, [&](Team team) {
        const Range part = split_range(ceil_div(stats.K, kColumns), team.rank, team.size);
        kernels.add(stats, part.begin * kColumns, std::min(part.end * kColumns, stats.K));
    });
}

}  // namespace gossamer
