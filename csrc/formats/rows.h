// The rows of a weight shared out over threads in multiples of a panel, so that no two threads write bytes of the same one.
#pragma once
#include <algorithm>

#include "gossamer/lane.h"
#include "gossamer/parallel.h"

namespace gossamer {
namespace {

template <class Body>
void for_each_row(int64_t N, int threads, const Body& body) {
    parallel(threads, [&](Team team) {
        const Range panels = split_range((N + kPanelColumns - 1) / kPanelColumns, team.rank, team.size);
        const int64_t end = std::min(N, panels.end * kPanelColumns);
        for (int64_t n = panels.begin * kPanelColumns; n < end; ++n) body(n);
    });
}

}  // namespace
}  // namespace gossamer
