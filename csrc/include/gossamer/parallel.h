// The only file that knows the thread runtime: OpenMP by default, std::thread for the race detector (libgomp's barriers are
// invisible to it), or none.
//
// parallel(threads, body) runs body(team) once on each member of a team of at most `threads`. The caller passes the count
// (torch's), so there is no global state; teams do not nest: inside one, parallel() runs the body on the caller alone.
#pragma once
#include <algorithm>
#include <cstdint>

#if defined(GOSSAMER_THREADS_OPENMP)
#include <omp.h>
#elif defined(GOSSAMER_THREADS_STD)
#include <barrier>
#include <thread>
#include <vector>
#endif

namespace gossamer {

struct Range {
    int64_t begin, end;
};

// Part `index` of `count` nearly equal parts of [0, n).
inline Range split_range(int64_t n, int64_t index, int64_t count) {
    const int64_t base = n / count, extra = n % count;
    const int64_t begin = index * base + std::min(index, extra);
    return {begin, begin + base + (index < extra ? 1 : 0)};
}

#if defined(GOSSAMER_THREADS_OPENMP)

struct Team {
    int rank, size;
    void barrier() const {
        if (size > 1) {
#pragma omp barrier
        }
    }
};

template <class Body>
void parallel(int threads, const Body& body) {
    if (threads <= 1 || omp_in_parallel()) return body(Team{0, 1});
#pragma omp parallel num_threads(threads)
    body(Team{omp_get_thread_num(), omp_get_num_threads()});
}

#elif defined(GOSSAMER_THREADS_STD)

struct Team {
    int rank, size;
    std::barrier<>* shared_barrier = nullptr;
    void barrier() const {
        if (shared_barrier != nullptr) shared_barrier->arrive_and_wait();
    }
};

inline thread_local bool inside_team = false;

template <class Body>
void parallel(int threads, const Body& body) {
    if (threads <= 1 || inside_team) return body(Team{0, 1});
    std::barrier<> barrier(threads);
    auto member = [&](int rank) {
        inside_team = true;
        body(Team{rank, threads, &barrier});
        inside_team = false;
    };
    std::vector<std::thread> others;
    for (int rank = 1; rank < threads; ++rank) others.emplace_back(member, rank);
    member(0);
    for (std::thread& other : others) other.join();
}

#else

struct Team {
    int rank, size;
    void barrier() const {}
};

template <class Body>
void parallel(int, const Body& body) {
    body(Team{0, 1});
}

#endif

}  // namespace gossamer
