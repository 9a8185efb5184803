// Sparse fp32 on AVX2. Contract: kernels.h.
//
// Two loads and two multiply-adds of 32 bytes a cycle: 8 sums hide the latency, and are half of the registers.
#include "../../simd/avx2.h"

#include "../transpose_avx2.h"
#include "rows.h"

namespace gossamer {
namespace {

// R rows of a slice at a time, L vectors of x for each: R * L sums in registers, which hide the latency of the multiply-add.
template <int R, int L>
void run_rows(const SpmmF32Block& block) {
    constexpr int64_t columns = L * Vec::width;
    const uint8_t* indices = block.indices;
    const float* values = block.values;
    for (int64_t s = 0; s < block.slice_count; ++s) {
        const SpmmF32Slice& slice = block.slices[s];
        const int64_t stored = slice.count * int64_t{4};
        for (int first = 0; first < 4; first += R) {
            float* c[R];
            Vec sum[R][L];
            for (int r = 0; r < R; ++r) {
                c[r] = block.c + slice.rows[first + r] * columns;
                for (int l = 0; l < L; ++l) sum[r][l] = load(c[r] + l * Vec::width);
            }
            for (int64_t i = first; i < stored; i += 4) {
                for (int r = 0; r < R; ++r) {
                    const float* x = block.x + indices[i + r] * columns;
                    const Vec value = broadcast(values[i + r]);
                    for (int l = 0; l < L; ++l) sum[r][l] = multiply_add(value, load(x + l * Vec::width), sum[r][l]);
                }
            }
            for (int r = 0; r < R; ++r) {
                for (int l = 0; l < L; ++l) store(c[r] + l * Vec::width, sum[r][l]);
            }
        }
        indices += stored;
        values += stored;
    }
}

void run(const SpmmF32Block& block) {
    switch (block.vectors) {
        case 0: return run_one(block);
        case 1: return run_rows<4, 2>(block);
        case 2: return run_rows<2, 4>(block);
        case 3: return run_rows<1, 6>(block);
        default: return run_rows<1, 8>(block);
    }
}

}  // namespace

extern const SpmmF32Kernels spmm_f32_avx2;
const SpmmF32Kernels spmm_f32_avx2 = {Isa::avx2, 4, run, transpose, finite};
}  // namespace gossamer
