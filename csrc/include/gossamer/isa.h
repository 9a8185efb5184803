// Instruction sets, in the order in which they are preferred. Plain: kernel files include it.
#pragma once

namespace gossamer {

// Each value implies the feature set written beside it, never the ones before it: a Zen 4 has avx512vnni but not avxvnni.
enum class Isa : int {
    scalar,       // portable C++ (the x86 baseline is x86-64-v2)
    avx2,         // AVX2, FMA, F16C
    avxvnni,      // avx2 + AVX-VNNI (256-bit, VEX)
    avx512,       // avx2 + AVX512 F, BW, DQ, VL
    avx512vnni,   // avx512 + AVX512-VNNI
    avx512vbmi2,  // avx512vnni + AVX512-VBMI, VBMI2 (Ice Lake)
    avx512bf16,   // avx512vbmi2 + AVX512-BF16
    amx,          // avx512bf16 + AMX-TILE, AMX-INT8, AMX-BF16, granted by the operating system
};
inline constexpr int kIsaCount = 8;

}  // namespace gossamer
