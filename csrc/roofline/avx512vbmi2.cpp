// How fast sparse int8 lines can be expanded and multiplied once, everything in L1: for each line of 64 weights a mask to a mask register,
// its bits counted for where the next values begin, VPEXPANDB and VPDPBUSD. Counted as dense operations, 128 a line.
#include <immintrin.h>

#include "peak.h"

namespace gossamer {
namespace {

constexpr int kLines = 64, kChains = 8;

void run(int64_t calls) {
    // Half of the bits, in every order that the multiplier makes.
    alignas(64) uint64_t masks[kLines];
    alignas(64) uint8_t values[kLines * 64 + 64];
    alignas(64) int32_t words[kLines];
    for (int i = 0; i < kLines; ++i) {
        masks[i] = 0x9e3779b97f4a7c15u * static_cast<uint64_t>(i + 1);
        words[i] = 0x01020304;
    }
    for (uint8_t& value : values) value = 1;
    __m512i x[kChains];
    for (__m512i& chain : x) chain = _mm512_setzero_si512();
    for (int64_t c = 0; c < calls; ++c) {
        const uint8_t* next = values;
        for (int line = 0; line < kLines; line += kChains) {
#pragma GCC unroll 8
            for (int i = 0; i < kChains; ++i) {
                const uint64_t mask = masks[line + i];
                __m512i packed = _mm512_loadu_si512(next);
                asm("" : "+v"(packed));  // the register form of VPEXPANDB
                next += _mm_popcnt_u64(mask);
                x[i] = _mm512_dpbusd_epi32(x[i], _mm512_set1_epi32(words[line + i]), _mm512_maskz_expand_epi8(mask, packed));
            }
        }
    }
    for (__m512i& chain : x) asm volatile("" ::"v"(chain));
}

}  // namespace

extern const PeakKernels peak_avx512vbmi2;
const PeakKernels peak_avx512vbmi2 = {Isa::avx512vbmi2, {{"expand-int8", kLines * 64 * 2, run}}};
}  // namespace gossamer
