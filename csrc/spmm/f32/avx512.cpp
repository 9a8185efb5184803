// Sparse fp32 on AVX-512. Contract: kernels.h.
//
// A value costs `vectors` multiply-adds that load x; on Zen 4 (one load of 64 bytes and one multiply-add a cycle) what else is loaded
// binds. Share of the peak in L1 with 1, 2 and 4 vectors: 68 / 80 / 85 %, and 53 / 70 / 78 where each value is a load that broadcasts. With
// sums to load and store (128 k at 50 / 80 / 90 / 95 %): 80 / 76 / 70 / 59 with 4 vectors.
//
// Tried and lost (Zen 4, N = K = 4096, M = 256, share of the peak at 50 / 80 / 90 / 95 %; with broadcasting loads and one row after the
// other this design had 67 / 62 / 60 / 54 then):
//   sparse register tiling (4 rows share each load of x, columns sorted by their pattern of 4 bits, a straight-line loop for each pattern):
//     83 / 58 / 49 / 40: fewer loads pay at 50 %, 15 short loops and their mispredicted ends cost more from 80 % on
//   8 vectors, so half the broadcasts: 73 / 66 / 59 / 49 where K blocks of 64 fit L1, and too many sums to load and store above 90 %
//   one row after the other, unsorted: as fast with 4 vectors, half as fast with one at 95 % (every row ends its loop unpredicted)
//   prefetching values and indices 1 to 4 KiB ahead: a third slower with one vector, no faster with more
//
// One row of x: 0.8 cycles a value at 50 to 90 % where its block of K is looked up in registers, 1.15 by scalar loads, 1.5 by VGATHERDPS.
// In registers, 256 k cost twice as many instructions as 128: 1.3 at 95 %.
#include "../../simd/avx512.h"

#include <cstring>

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

// The four rows of a slice at once, L vectors of x for each: 4 L sums in registers, which hide the latency of the multiply-add. Their
// values come in one load and are broadcast by a shuffle, their indices in another.
template <int L>
void run_rows(const SpmmF32Block& block) {
    constexpr int64_t columns = L * Vec::width;
    const __m512i lane[4] = {_mm512_set1_epi32(0), _mm512_set1_epi32(1), _mm512_set1_epi32(2), _mm512_set1_epi32(3)};
    const uint8_t* indices = block.indices;
    const float* values = block.values;
    for (int64_t s = 0; s < block.slice_count; ++s) {
        const SpmmF32Slice& slice = block.slices[s];
        float* c[4];
        Vec sum[4][L];
        for (int r = 0; r < 4; ++r) {
            c[r] = block.c + slice.rows[r] * columns;
            for (int l = 0; l < L; ++l) sum[r][l] = load(c[r] + l * Vec::width);
        }
        for (int64_t i = 0; i < slice.count; ++i, indices += 4, values += 4) {
            const __m512 quad = _mm512_castps128_ps512(_mm_loadu_ps(values));
            uint32_t index;
            std::memcpy(&index, indices, sizeof index);
            for (int r = 0; r < 4; ++r, index >>= 8) {
                const float* x = block.x + (index & 0xff) * columns;
                const Vec value = {_mm512_permutexvar_ps(lane[r], quad)};
                for (int l = 0; l < L; ++l) sum[r][l] = multiply_add(value, load(x + l * Vec::width), sum[r][l]);
            }
        }
        for (int r = 0; r < 4; ++r) {
            for (int l = 0; l < L; ++l) store(c[r] + l * Vec::width, sum[r][l]);
        }
    }
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
        case 1: return run_rows<1>(block);
        case 2: return run_rows<2>(block);
        case 3: return run_rows<3>(block);
        default: return run_rows<4>(block);
    }
}

}  // namespace

extern const SpmmF32Kernels spmm_f32_avx512;
const SpmmF32Kernels spmm_f32_avx512 = {Isa::avx512, 4, run, transpose, finite};
}  // namespace gossamer
