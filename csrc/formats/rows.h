// The rows of a weight shared out over threads in multiples of a panel, so that no two threads write bytes of the same one.
#pragma once
#include <algorithm>

#include "gossamer/lane.h"
#include "gossamer/parallel.h"

namespace gossamer {
namespace {

// Calls body(panel) for the panels of a range.
template <class Body>
void for_each_panel(Range panels, int threads, const Body& body) {
    parallel(threads, [&](Team team) {
        const Range mine = split_range(panels.end - panels.begin, team.rank, team.size);
        for (int64_t panel = panels.begin + mine.begin; panel < panels.begin + mine.end; ++panel) body(panel);
    });
}

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
