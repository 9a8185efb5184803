// VDPBF16PS peak: sixteen chains of 32 multiply-adds.
#include <immintrin.h>

#include "peak.h"

namespace gossamer {
namespace {

void run(int64_t calls) {
    __m512 x[16];
    for (int i = 0; i < 16; ++i) x[i] = _mm512_set1_ps(static_cast<float>(i));
    const __m512bh a = reinterpret_cast<__m512bh>(_mm512_set1_epi32(0x3f003e80)),
                   b = reinterpret_cast<__m512bh>(_mm512_set1_epi32(0x3e803f00));
    for (int64_t c = 0; c < calls; ++c) {
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) x[i] = _mm512_dpbf16_ps(x[i], a, b);
    }
    for (int i = 0; i < 16; ++i) asm volatile("" ::"v"(x[i]));
}

}  // namespace

extern const PeakKernels peak_avx512bf16;
const PeakKernels peak_avx512bf16 = {Isa::avx512bf16, {{"avx512-bf16", 16 * 32 * 2, run}}};
}  // namespace gossamer
