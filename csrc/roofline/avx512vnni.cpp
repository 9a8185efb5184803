// VPDPBUSD peak: sixteen chains of 64 multiply-adds.
#include <immintrin.h>

#include "peak.h"

namespace gossamer {
namespace {

void run(int64_t calls) {
    __m512i x[16];
    for (int i = 0; i < 16; ++i) x[i] = _mm512_set1_epi32(i);
    const __m512i a = _mm512_set1_epi32(0x01020304), b = _mm512_set1_epi32(0x7f80017f);
    for (int64_t c = 0; c < calls; ++c) {
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) x[i] = _mm512_dpbusd_epi32(x[i], a, b);
    }
    for (int i = 0; i < 16; ++i) asm volatile("" ::"v"(x[i]));
}

}  // namespace

extern const PeakKernels peak_avx512vnni;
const PeakKernels peak_avx512vnni = {Isa::avx512vnni, {{"vnni-int8", 16 * 64 * 2, run}}};
}  // namespace gossamer
