// VPDPBUSD peak on 256-bit registers: twelve chains of 32 multiply-adds.
#include <immintrin.h>

#include "peak.h"

namespace gossamer {
namespace {

void run(int64_t calls) {
    __m256i x[12];
    for (int i = 0; i < 12; ++i) x[i] = _mm256_set1_epi32(i);
    const __m256i a = _mm256_set1_epi32(0x01020304), b = _mm256_set1_epi32(0x7f80017f);
    for (int64_t c = 0; c < calls; ++c) {
#pragma GCC unroll 12
        for (int i = 0; i < 12; ++i) x[i] = _mm256_dpbusd_avx_epi32(x[i], a, b);
    }
    for (int i = 0; i < 12; ++i) asm volatile("" ::"x"(x[i]));
}

}  // namespace

extern const PeakKernels peak_avxvnni;
const PeakKernels peak_avxvnni = {Isa::avxvnni, {{"vnni-int8", 12 * 32 * 2, run}}};
}  // namespace gossamer
