// Measuring the roof. Contract: roofline.h.
#include "gossamer/roofline.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <memory>
#include <stdexcept>

#include "dispatch/lists.h"
#include "gossamer/parallel.h"

namespace gossamer {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// Those this machine has, best first, the same instruction more than once where several ISAs bring it.
std::vector<const Peak*> available_peaks() {
    std::vector<const Peak*> found;
    for (const PeakKernels* kernels : peak_list()) {
        if (!isa_available(kernels->isa)) continue;
        for (const Peak& peak : kernels->peaks) {
            if (peak.instruction != nullptr) found.push_back(&peak);
        }
    }
    return found;
}

const Peak& find_peak(const std::string& instruction) {
    for (const Peak* peak : available_peaks()) {
        if (instruction == peak->instruction) return *peak;
    }
    std::string known;
    for (const std::string& name : peak_instructions()) known += (known.empty() ? "" : ", ") + name;
    throw std::invalid_argument("peak_ops: instruction: got '" + instruction + "', wanted one of: " + known);
}

// The fastest of repeated runs of body(rank) on all threads, in seconds; a shared machine only ever adds time.
template <class Body>
double fastest(int threads, double seconds, const Body& body) {
    double best = 1e30;
    const Clock::time_point start = Clock::now();
    do {
        double elapsed = 0;
        parallel(threads, [&](Team team) {
            team.barrier();
            const Clock::time_point begin = Clock::now();
            body(team);
            team.barrier();
            if (team.rank == 0) elapsed = seconds_since(begin);
        });
        best = std::min(best, elapsed);
    } while (seconds_since(start) < seconds);
    return best;
}

// A sum the compiler cannot drop or shorten; vectors of 8 words in the baseline.
uint64_t read_all(const uint64_t* words, int64_t count) {
    uint64_t sum[8] = {};
    for (int64_t i = 0; i + 8 <= count; i += 8) {
        for (int64_t j = 0; j < 8; ++j) sum[j] += words[i + j];
    }
    uint64_t total = 0;
    for (uint64_t s : sum) total += s;
    return total;
}

}  // namespace

std::vector<std::string> peak_instructions() {
    std::vector<std::string> names;
    for (const Peak* peak : available_peaks()) {
        const bool seen = std::find(names.begin(), names.end(), peak->instruction) != names.end();
        if (!seen) names.emplace_back(peak->instruction);
    }
    return names;
}

double peak_ops(const std::string& instruction, int threads, double seconds) {
    const Peak& peak = find_peak(instruction);
    constexpr int64_t kCalls = 200000;  // a fraction of a millisecond to a few: short enough to find a quiet moment
    const int team = std::max(threads, 1);
    const double elapsed = fastest(team, seconds, [&](Team) { peak.run(kCalls); });
    return peak.ops_per_call * static_cast<double>(kCalls) * team / elapsed;
}

double read_bandwidth(int64_t buffer_bytes, int threads, double seconds) {
    if (buffer_bytes < 4096)
        throw std::invalid_argument("read_bandwidth: buffer_bytes: got " + std::to_string(buffer_bytes) + ", wanted at least 4096");
    const int team = std::max(threads, 1);
    const int64_t words = buffer_bytes / 8;
    const auto buffer = std::make_unique<uint64_t[]>(static_cast<size_t>(words));
    std::atomic<uint64_t> sink{0};
    // Small buffers are read often enough for the clock.
    const int64_t repeats = std::max<int64_t>(1, (int64_t{8} << 20) / buffer_bytes);
    const double elapsed = fastest(team, seconds, [&](Team t) {
        const Range part = split_range(words / 8, t.rank, t.size);
        for (int64_t r = 0; r < repeats; ++r) sink += read_all(buffer.get() + part.begin * 8, (part.end - part.begin) * 8);
    });
    return static_cast<double>(words / 64 * 64 * 8) * static_cast<double>(repeats) / elapsed;
}

}  // namespace gossamer
