// f32 lane in portable C++. Contract: f32.h.
//
// The sums of a row and a panel, 16 columns, are an array of a fixed size, which compilers keep in vector registers.
#include <cstdint>

#include "gossamer/f32.h"

namespace gossamer {
namespace {

// One row by one panel; `row` is the row's first line.
void multiply_panel(const float* row, int64_t line_stride, const float* b, int64_t K, const float* before, float* c) {
    float sums[kPanelColumns];
    for (int64_t n = 0; n < kPanelColumns; ++n) sums[n] = before[n];
    for (int64_t k = 0; k < K; ++k, b += kPanelColumns) {
        const float a = row[k / F32Block::chunk * line_stride + k % F32Block::chunk];
        for (int64_t n = 0; n < kPanelColumns; ++n) sums[n] += a * b[n];
    }
    for (int64_t n = 0; n < kPanelColumns; ++n) c[n] = sums[n];
}

void run(const F32Block& t) {
    const int64_t line_stride = t.panel_rows * F32Block::chunk;
    for (int64_t m = 0; m < t.M; ++m) {
        const float* row = t.a + m / t.panel_rows * t.a_panel_stride + m % t.panel_rows * F32Block::chunk;
        for (int64_t j = 0; j < t.n_panels; ++j) {
            float* c = t.c + m * kStripColumns + j * kPanelColumns;
            const float* before = t.init != nullptr ? t.init + j * kPanelColumns : c;
            multiply_panel(row, line_stride, t.b + j * t.b_panel_stride, t.K, before, c);
        }
    }
}

}  // namespace

extern const F32Kernels f32_scalar;
const F32Kernels f32_scalar = {Isa::scalar, 64, 128, run, nullptr, nullptr};
}  // namespace gossamer
