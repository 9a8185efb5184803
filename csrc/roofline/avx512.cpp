// fp32 FMA peak on AVX-512: sixteen chains of 16 lanes.
#include <immintrin.h>

#include "peak.h"

namespace gossamer {
namespace {

void run(int64_t calls) {
    __m512 x[16];
    for (int i = 0; i < 16; ++i) x[i] = _mm512_set1_ps(1.0f + static_cast<float>(i));
    const __m512 a = _mm512_set1_ps(0.5f), b = _mm512_set1_ps(0.25f);
    for (int64_t c = 0; c < calls; ++c) {
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) x[i] = _mm512_fmadd_ps(x[i], a, b);
    }
    for (int i = 0; i < 16; ++i) asm volatile("" ::"v"(x[i]));
}

}  // namespace

extern const PeakKernels peak_avx512;
const PeakKernels peak_avx512 = {Isa::avx512, {{"fma-f32", 16 * 16 * 2, run}}};
}  // namespace gossamer
