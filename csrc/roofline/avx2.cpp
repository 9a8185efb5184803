// fp32 FMA peak on AVX2: ten chains of 8 lanes hide a latency of 4 to 5 cycles on two ports.
#include <immintrin.h>

#include "peak.h"

namespace gossamer {
namespace {

void run(int64_t calls) {
    __m256 x[10];
    for (int i = 0; i < 10; ++i) x[i] = _mm256_set1_ps(1.0f + static_cast<float>(i));
    const __m256 a = _mm256_set1_ps(0.5f), b = _mm256_set1_ps(0.25f);
    for (int64_t c = 0; c < calls; ++c) {
#pragma GCC unroll 10
        for (int i = 0; i < 10; ++i) x[i] = _mm256_fmadd_ps(x[i], a, b);
    }
    for (int i = 0; i < 10; ++i) asm volatile("" ::"x"(x[i]));
}

}  // namespace

extern const PeakKernels peak_avx2;
const PeakKernels peak_avx2 = {Isa::avx2, {{"fma-f32", 10 * 8 * 2, run}}};
}  // namespace gossamer
