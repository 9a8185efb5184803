// parallel.h: ranges, teams, barriers, nesting.
#include <atomic>
#include <thread>
#include <vector>

#include "check.h"
#include "gossamer/parallel.h"

namespace gossamer::test {
namespace {

void test_ranges() {
    for (const int64_t n : {0, 1, 2, 5, 16, 17, 1000}) {
        for (const int64_t count : {1, 2, 3, 4, 7, 16}) {
            int64_t end = 0, shortest = n, longest = 0;
            for (int64_t i = 0; i < count; ++i) {
                const Range part = split_range(n, i, count);
                check(part.begin == end, "a part begins where the one before ends");
                end = part.end;
                shortest = std::min(shortest, part.end - part.begin);
                longest = std::max(longest, part.end - part.begin);
            }
            check(end == n && longest - shortest <= 1,
                  "parts of " + std::to_string(n) + " in " + std::to_string(count) + " are nearly equal");
        }
    }
}

// Each member runs once, and sees behind a barrier what the others wrote before it.
void check_team(int threads) {
    std::vector<int> runs(static_cast<size_t>(threads), 0), sizes = runs, seen = runs;
    parallel(threads, [&](Team team) {
        const size_t rank = static_cast<size_t>(team.rank);
        ++runs[rank];
        sizes[rank] = team.size;
        for (int round = 0; round < 20; ++round) {
            team.barrier();
            seen[rank] = 0;
            for (int i = 0; i < team.size; ++i) seen[rank] += runs[static_cast<size_t>(i)];
            team.barrier();
            ++runs[rank];
        }
    });
    const int size = sizes[0];
    check(size >= 1 && size <= threads, "a team of " + std::to_string(threads));
#if !defined(GOSSAMER_THREADS_STD) && !defined(GOSSAMER_THREADS_OPENMP)
    check(size == 1, "no threads were built in");
#else
    check(size == threads, "a team of " + std::to_string(threads) + " has that many members");
#endif
    for (int i = 0; i < threads; ++i) {
        const size_t rank = static_cast<size_t>(i);
        check(runs[rank] == (i < size ? 21 : 0) && seen[rank] == (i < size ? 20 * size : 0), "each member ran once, in step");
    }
}

void test_teams_do_not_nest() {
    std::atomic<int> outer{0}, inner{0};
    parallel(3, [&](Team team) {
        outer += 1;
        parallel(3, [&](Team nested) {
            inner += nested.size == 1 && nested.rank == 0 ? 1 : 1000;
            nested.barrier();
        });
        team.barrier();
    });
    check(outer == inner, "inside a team the body runs on the caller alone");
    parallel(2, [&](Team team) { outer += team.rank == 0 ? team.size : 0; });
    check(outer == inner + (inner == 3 ? 2 : 1), "and outside again on a team");
}

void test_several_callers() {
    std::atomic<int> sum{0};
    std::vector<std::thread> callers;
    for (int i = 0; i < 4; ++i) {
        callers.emplace_back([&] {
            for (int round = 0; round < 10; ++round) {
                parallel(2, [&](Team team) {
                    team.barrier();
                    if (team.rank == 0) ++sum;
                });
            }
        });
    }
    for (std::thread& caller : callers) caller.join();
    check(sum == 40, "teams of several callers at once");
}

}  // namespace
}  // namespace gossamer::test

int main() {
    using namespace gossamer::test;
    test_ranges();
    for (const int threads : {1, 2, 3, 4, 8}) check_team(threads);
    test_teams_do_not_nest();
    test_several_callers();
    return finish();
}
