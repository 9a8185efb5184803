// The column update and the descent, rows shared out over a team. Contract: obs.h.
#include "gossamer/obs.h"

#include "dispatch/lists.h"
#include "gossamer/parallel.h"
#include "linear/grid.h"

namespace gossamer {
namespace {

template <class Block>
void over_rows(const Block& block, void (*run)(const Block&, int64_t), int64_t step, int threads) {
    const double weights = static_cast<double>(block.rows) * static_cast<double>(block.columns);
    const int useful = useful_threads({weights * 4, weights * static_cast<double>(block.columns) / 2, 20e3}, threads);
    parallel(useful, [&](Team team) {
        const Range part = split_range(block.rows / kObsRows, team.rank, team.size);
        for (int64_t row = part.begin * kObsRows; row < part.end * kObsRows; row += step) run(block, row);
    });
}

}  // namespace

void obs_update(const ObsBlock& block, Isa isa, int threads) {
    const ObsKernels& kernels = select_kernels(obs_list(), isa);
    over_rows(block, kernels.update, kernels.rows, threads);
}

void obs_descend(const DescentBlock& block, Isa isa, int threads) {
    const ObsKernels& kernels = select_kernels(obs_list(), isa);
    over_rows(block, kernels.descend, kernels.rows, threads);
}

}  // namespace gossamer
