// Sparse fp32 in portable C++, in loops of 16 that compilers vectorize. Contract: kernels.h.
#include <cmath>

#include "kernels.h"

namespace gossamer {
namespace {

constexpr int64_t kColumns = 16;

// Row r of a slice by one tile of 16 rows of x.
void run_row(const SpmmF32Block& block, const uint8_t* indices, const float* values, int64_t stored, float* c) {
    float sum[kColumns];
    for (int64_t m = 0; m < kColumns; ++m) sum[m] = c[m];
    for (int64_t i = 0; i < stored; i += 4) {
        const float* x = block.x + indices[i] * kColumns;
        const float value = values[i];
        for (int64_t m = 0; m < kColumns; ++m) sum[m] += value * x[m];
    }
    for (int64_t m = 0; m < kColumns; ++m) c[m] = sum[m];
}

void run_row_of_one(const SpmmF32Block& block, const uint8_t* indices, const float* values, int64_t stored, float* c) {
    float sum = 0;
    for (int64_t i = 0; i < stored; i += 4) sum += values[i] * block.x[indices[i]];
    *c += sum;
}

void run(const SpmmF32Block& block) {
    const uint8_t* indices = block.indices;
    const float* values = block.values;
    for (int64_t s = 0; s < block.slice_count; ++s) {
        const SpmmF32Slice& slice = block.slices[s];
        const int64_t stored = slice.count * int64_t{4};
        for (int64_t r = 0; r < 4; ++r) {
            if (block.vectors == 0) {
                run_row_of_one(block, indices + r, values + r, stored, block.c + slice.rows[r]);
            } else {
                run_row(block, indices + r, values + r, stored, block.c + slice.rows[r] * kColumns);
            }
        }
        indices += stored;
        values += stored;
    }
}

void transpose(const float* in, int64_t in_stride, int64_t rows, float* out, int64_t out_stride) {
    for (int64_t j = 0; j < 16; ++j) {
        for (int64_t i = 0; i < 16; ++i) out[j * out_stride + i] = i < rows ? in[i * in_stride + j] : 0.0f;
    }
}

bool finite(const float* line, int64_t line_stride, int64_t lines) {
    for (int64_t i = 0; i < lines; ++i, line += line_stride) {
        for (int64_t j = 0; j < 16; ++j) {
            if (!std::isfinite(line[j])) return false;
        }
    }
    return true;
}

}  // namespace

extern const SpmmF32Kernels spmm_f32_scalar;
const SpmmF32Kernels spmm_f32_scalar = {Isa::scalar, 1, run, transpose, finite};
}  // namespace gossamer
