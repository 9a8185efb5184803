// Detection on x86-64: CPUID says what the processor has, XGETBV what the operating system saves, Linux must grant AMX to the process,
// and a tile product of each kind must come out right, because virtual machines have been seen to announce AMX and not to run it.
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>

#include "amx_self_test.h"
#include "features.h"

namespace gossamer {
namespace {

struct Registers {
    uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
};

Registers cpuid(uint32_t leaf, uint32_t subleaf = 0) {
    Registers r;
    if (leaf > static_cast<uint32_t>(__get_cpuid_max(leaf & 0x80000000, nullptr))) return r;
    __cpuid_count(leaf, subleaf, r.eax, r.ebx, r.ecx, r.edx);
    return r;
}

bool bit(uint32_t word, int position) { return (word >> position & 1) != 0; }

uint64_t saved_state() {
    uint32_t low, high;
    asm("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return static_cast<uint64_t>(high) << 32 | low;
}

std::string processor_name() {
    char name[49] = {};
    for (uint32_t i = 0; i < 3; ++i) {
        const Registers r = cpuid(0x80000002 + i);
        std::memcpy(name + 16 * i, &r, 16);
    }
    std::string text(name);
    const size_t first = text.find_first_not_of(' '), last = text.find_last_not_of(' ');
    return first == std::string::npos ? "unknown x86-64" : text.substr(first, last - first + 1);
}

// Linux: the tile data is 8 KiB of context, given only to processes that ask (Documentation/arch/x86/xstate.rst).
bool ask_for_tiles() {
    constexpr long kRequestPermission = 0x1023, kTileData = 18;
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

std::string probe_amx(const Registers& leaf7, uint64_t state) {
    constexpr uint64_t kTileState = 0x60000;
    if (!bit(leaf7.edx, 22) || !bit(leaf7.edx, 24) || !bit(leaf7.edx, 25)) return "not in this processor";
    if ((state & kTileState) != kTileState) return "not enabled by the operating system";
    if (!ask_for_tiles()) return "the operating system refused it to this process";
#if defined(GOSSAMER_HAVE_AMX)
    return amx_self_test() ? "available" : "the self-test gave a wrong product";
#else
    return "not built in";
#endif
}

}  // namespace

CpuFeatures detect_features() {
    const Registers leaf1 = cpuid(1), leaf7 = cpuid(7), leaf71 = cpuid(7, 1);
    const uint64_t state = bit(leaf1.ecx, 27) ? saved_state() : 0;
    const bool ymm = (state & 0x6) == 0x6, zmm = (state & 0xe6) == 0xe6;
    const bool avx2 = ymm && bit(leaf7.ebx, 5) && bit(leaf1.ecx, 12) && bit(leaf1.ecx, 29);  // AVX2, FMA, F16C
    const bool avx512 = avx2 && zmm && bit(leaf7.ebx, 16) && bit(leaf7.ebx, 17) && bit(leaf7.ebx, 30) && bit(leaf7.ebx, 31);
    const bool avx512vnni = avx512 && bit(leaf7.ecx, 11);
    const bool avx512vbmi2 = avx512vnni && bit(leaf7.ecx, 1) && bit(leaf7.ecx, 6);  // AVX512-VBMI, VBMI2
    const bool avx512bf16 = avx512vbmi2 && bit(leaf71.eax, 5);
    CpuFeatures f;
    f.processor = processor_name();
    f.amx_status = avx512bf16 ? probe_amx(leaf7, state) : "not in this processor";
    auto set = [&](Isa isa, bool value) { f.has[static_cast<size_t>(isa)] = value; };
    set(Isa::scalar, true);
    set(Isa::avx2, avx2);
    set(Isa::avxvnni, avx2 && bit(leaf71.eax, 4));
    set(Isa::avx512, avx512);
    set(Isa::avx512vnni, avx512vnni);
    set(Isa::avx512vbmi2, avx512vbmi2);
    set(Isa::avx512bf16, avx512bf16);
    set(Isa::amx, f.amx_status == "available");
    return f;
}

}  // namespace gossamer
