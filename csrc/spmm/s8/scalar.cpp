// Skip-compute int8 in portable C++. Contract: kernels.h.
#include <cstdint>
#include <cstring>

#include "kernels.h"

namespace gossamer {
namespace {

void add_group(const uint8_t* x, const int8_t* word, int64_t rows, int32_t* c) {
    for (int64_t m = 0; m < rows; ++m, x += 4) c[m] += x[0] * word[0] + x[1] * word[1] + x[2] * word[2] + x[3] * word[3];
}

void run(const SpmmS8Block& block) {
    const int64_t rows = block.vectors * kPanelRows;
    const int8_t* words = reinterpret_cast<const int8_t*>(block.words);
    const uint8_t* indices = block.indices;
    for (int64_t n = 0; n < kStripColumns; ++n) {
        int32_t* c = block.c + n * rows;
        for (int64_t m = 0; block.init != nullptr && m < rows; ++m) c[m] = block.init[n];
        for (int64_t g = 0; g < block.counts[n]; ++g, words += 4, ++indices) add_group(block.x + *indices * rows * 4, words, rows, c);
    }
}

void transpose(const void* in, int64_t in_stride, int64_t rows, void* out, int64_t out_stride) {
    const uint8_t* from = static_cast<const uint8_t*>(in);
    uint8_t* to = static_cast<uint8_t*>(out);
    for (int64_t j = 0; j < 16; ++j) {
        for (int64_t i = 0; i < 16; ++i) {
            uint8_t* word = to + (j * out_stride + i) * 4;
            i < rows ? std::memcpy(word, from + (i * in_stride + j) * 4, 4) : std::memset(word, 0, 4);
        }
    }
}

void transpose_lines(const uint8_t* lines, int64_t rows, uint8_t* x, int64_t group_stride) {
    transpose(lines, 16, rows, x, group_stride / 4);
}

}  // namespace

extern const SpmmS8Kernels spmm_s8_scalar;
const SpmmS8Kernels spmm_s8_scalar = {Isa::scalar, 4, 4, run, transpose_lines, transpose};
}  // namespace gossamer
