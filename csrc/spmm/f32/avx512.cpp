// Sparse fp32 on AVX-512. Contract: kernels.h.
//
// A value costs a broadcast and `vectors` multiply-adds that load x, so loads bind: on Zen 4 (one of 64 bytes a cycle, one multiply-add a
// cycle) 54, 70 and 78 % of the peak with 1, 2 and 4 vectors, x and sums in L1. Four rows in turn hide the latency of one vector each.
//
// Tried and lost (Zen 4, N = K = 4096, M = 256, share of the peak at 50 / 80 / 90 / 95 %; this design has 67 / 62 / 60 / 54):
//   sparse register tiling (4 rows share each load of x, columns sorted by their pattern of 4 bits, a straight-line loop for each pattern):
//     83 / 58 / 49 / 40: fewer loads pay at 50 %, 15 short loops and their mispredicted ends cost more from 80 % on
//   8 vectors, so half the broadcasts: 73 / 66 / 59 / 49 where K blocks of 64 fit L1, and too many sums to load and store above 90 %
//   one row after the other, unsorted: as fast with 4 vectors, half as fast with one at 95 % (every row ends its loop unpredicted)
// One row of x: 0.8 cycles a value at 50 to 90 % where its block of K is looked up in registers, 1.15 by scalar loads, 1.5 by VGATHERDPS.
// In registers, 256 k cost twice as many instructions as 128: 1.3 at 95 %.
#include "../../simd/avx512.h"

#include "../transpose_avx512.h"
#include "rows.h"

namespace gossamer {
namespace {

constexpr int kPairs = 4;  // of vectors, 128 k

// x[index] for 16 indices: VPERMT2PS looks 32 floats up at once, higher bits of the index choose among the pairs.
__m512 look_up(const __m512* x, __m512i index) {
    __m512 found[kPairs];
    for (int p = 0; p < kPairs; ++p) found[p] = _mm512_permutex2var_ps(x[2 * p], index, x[2 * p + 1]);
    for (int left = kPairs / 2, bit = 32; left > 0; left /= 2, bit *= 2) {
        const __mmask16 upper = _mm512_test_epi32_mask(index, _mm512_set1_epi32(bit));
        for (int p = 0; p < left; ++p) found[p] = _mm512_mask_mov_ps(found[2 * p], upper, found[2 * p + 1]);
    }
    return found[0];
}

// One row of x, its block of K in registers. Four quads at a time: the four rows of a slice four times over.
void run_one_in_registers(const SpmmF32Block& block) {
    __m512 x[2 * kPairs];
    for (int i = 0; i < 2 * kPairs; ++i) {
        const int64_t left = block.k - 16 * i;
        const __mmask16 valid = left >= 16 ? __mmask16{0xffff} : left > 0 ? static_cast<__mmask16>((1u << left) - 1) : __mmask16{0};
        x[i] = _mm512_maskz_loadu_ps(valid, block.x + 16 * i);
    }
    const uint8_t* indices = block.indices;
    const float* values = block.values;
    for (int64_t s = 0; s < block.slice_count; ++s) {
        const SpmmF32Slice& slice = block.slices[s];
        __m512 sum = _mm512_setzero_ps();
        int64_t left = slice.count * int64_t{4};
        for (; left >= 16; left -= 16, indices += 16, values += 16) {
            const __m512i index = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(indices)));
            sum = _mm512_fmadd_ps(_mm512_loadu_ps(values), look_up(x, index), sum);
        }
        const __mmask16 rest = static_cast<__mmask16>((1u << left) - 1);
        const __m512i index = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(rest, indices));
        sum = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(rest, values), look_up(x, index), sum);
        indices += left;
        values += left;
        const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(sum), _mm512_extractf32x8_ps(sum, 1));
        alignas(16) float sums[4];
        _mm_store_ps(sums, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
        for (int r = 0; r < 4; ++r) block.c[slice.rows[r]] += sums[r];
    }
}

void run(const SpmmF32Block& block) {
    switch (block.vectors) {
        case 0: return block.k <= 32 * kPairs ? run_one_in_registers(block) : run_one(block);
        case 1: return run_rows<4, 1>(block);
        case 2: return run_rows<4, 2>(block);
        case 3: return run_rows<4, 3>(block);
        default: return run_rows<2, 4>(block);
    }
}

}  // namespace

extern const SpmmF32Kernels spmm_f32_avx512;
const SpmmF32Kernels spmm_f32_avx512 = {Isa::avx512, 4, run, transpose, finite};
}  // namespace gossamer
