// The column update, rows shared out over a team. Contract: obs.h.
#include "gossamer/obs.h"

#include "dispatch/lists.h"
#include "gossamer/parallel.h"
#include "linear/grid.h"

namespace gossamer {

void obs_update(const ObsBlock& block, Isa isa, int threads) {
    const ObsKernels& kernels = select_kernels(obs_list(), isa);
    const double weights = static_cast<double>(block.rows) * static_cast<double>(block.columns);
    const int useful = useful_threads({weights * 4, weights * static_cast<double>(block.columns) / 2, 20e3}, threads);
    parallel(useful, [&](Team team) {
        const Range part = split_range(block.rows / kObsRows, team.rank, team.size);
        for (int64_t row = part.begin * kObsRows; row < part.end * kObsRows; row += kernels.rows) kernels.run(block, row);
    });
}

}  // namespace gossamer
