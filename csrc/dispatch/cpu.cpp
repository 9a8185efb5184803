// Detection and the active ISA. Compiled with baseline flags only. Contract: cpu.h.
#include "gossamer/cpu.h"

#include <array>
#include <atomic>
#include <cstdlib>
#include <stdexcept>

#include "features.h"

namespace gossamer {
namespace {

constexpr std::array<const char*, kIsaCount> kNames = {"scalar",     "avx2",        "avxvnni",    "avx512",
                                                       "avx512vnni", "avx512vbmi2", "avx512bf16", "amx"};

// Detected once, when first asked for.
const CpuFeatures& features() {
    static const CpuFeatures detected = detect_features();
    return detected;
}

std::string list_available() {
    std::string text;
    for (int i = 0; i < kIsaCount; ++i) {
        if (isa_available(static_cast<Isa>(i))) text += (text.empty() ? "" : ", ") + std::string(kNames[static_cast<size_t>(i)]);
    }
    return text;
}

Isa best_available() {
    for (int i = kIsaCount - 1; i > 0; --i) {
        if (isa_available(static_cast<Isa>(i))) return static_cast<Isa>(i);
    }
    return Isa::scalar;
}

constexpr int kUndecided = -1;
std::atomic<int> active{kUndecided};

}  // namespace

const char* isa_name(Isa isa) { return kNames[static_cast<size_t>(isa)]; }

std::vector<std::string> isa_names() { return {kNames.begin(), kNames.end()}; }

bool isa_available(Isa isa) {
#if defined(GOSSAMER_SCALAR_ONLY)
    return isa == Isa::scalar;
#else
    return isa == Isa::scalar || features().has[static_cast<size_t>(isa)];
#endif
}

Isa isa_from_name(std::string_view name) {
    for (int i = 0; i < kIsaCount; ++i) {
        if (name != kNames[static_cast<size_t>(i)]) continue;
        if (isa_available(static_cast<Isa>(i))) return static_cast<Isa>(i);
        throw std::runtime_error("isa: this machine cannot run '" + std::string(name) + "'; it can run: " + list_available());
    }
    throw std::invalid_argument("isa: unknown name '" + std::string(name) + "'; this machine can run: " + list_available());
}

Isa isa_active() {
    int current = active.load(std::memory_order_relaxed);
    if (current == kUndecided) {
        const char* wanted = std::getenv("GOSSAMER_ISA");
        const Isa chosen = wanted != nullptr && *wanted != '\0' ? isa_from_name(wanted) : best_available();
        // Another thread may have forced one meanwhile; its choice stands.
        active.compare_exchange_strong(current, static_cast<int>(chosen));
        current = active.load(std::memory_order_relaxed);
    }
    return static_cast<Isa>(current);
}

void isa_force(std::string_view name) { active.store(static_cast<int>(name.empty() ? best_available() : isa_from_name(name))); }

std::map<std::string, std::string> cpu_info() {
    std::map<std::string, std::string> info;
    info["processor"] = features().processor;
    info["amx"] = features().amx_status;
#if defined(GOSSAMER_THREADS_OPENMP)
    info["thread runtime"] = "OpenMP";
#elif defined(GOSSAMER_THREADS_STD)
    info["thread runtime"] = "std::thread";
#else
    info["thread runtime"] = "none";
#endif
#if defined(__clang__)
    info["compiler"] = "clang " __clang_version__;
#else
    info["compiler"] = "gcc " __VERSION__;
#endif
    return info;
}

}  // namespace gossamer
