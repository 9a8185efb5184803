// Rows of bf16 into the A panels of the bf16 lane. Contract: convert.h.
#include <cstring>

#include "gossamer/bf16.h"
#include "gossamer/convert.h"

namespace gossamer {
namespace {

constexpr int64_t kChunk = Bf16Block::chunk;

// One row into lines of 32 elements, line_stride elements apart.
void copy_row(const uint16_t* x, int64_t K, uint16_t* line, int64_t line_stride) {
    int64_t k = 0;
    for (; k + kChunk <= K; k += kChunk, line += line_stride) std::memcpy(line, x + k, sizeof(uint16_t) * kChunk);
    if (k == K) return;
    std::memset(line, 0, sizeof(uint16_t) * kChunk);
    std::memcpy(line, x + k, sizeof(uint16_t) * static_cast<size_t>(K - k));
}

}  // namespace

void copy_rows_bf16(const ConvertRows& rows) {
    const int64_t R = rows.panel_rows, panel_stride = R * ((rows.K + kChunk - 1) / kChunk * kChunk);
    for (int64_t m = rows.first_row; m < rows.last_row; ++m) {
        uint16_t* line = static_cast<uint16_t*>(rows.panels) + m / R * panel_stride + m % R * kChunk;
        copy_row(static_cast<const uint16_t*>(rows.x) + m * rows.x_row_stride, rows.K, line, R * kChunk);
    }
}

}  // namespace gossamer
