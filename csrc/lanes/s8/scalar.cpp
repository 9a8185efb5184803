// s8 lane in portable C++. Contract: s8.h.
#include <cstdint>
#include <cstring>

#include "gossamer/s8.h"

namespace gossamer {
namespace {

void multiply_line(const uint8_t* a, const int8_t* b, int32_t* c) {
    for (int64_t n = 0; n < kPanelColumns; ++n) {
        for (int64_t k = 0; k < 4; ++k) c[n] += a[k] * b[n * 4 + k];
    }
}

void run(const S8Block& t) {
    for (int64_t m = 0; m < t.M; ++m) {
        int32_t* c = t.c + m * kStripColumns;
        if (t.init != nullptr) std::memcpy(c, t.init, static_cast<size_t>(t.n_panels * kPanelColumns) * sizeof(int32_t));
        const uint8_t* row = t.a + m / t.panel_rows * t.a_panel_stride + m % t.panel_rows * S8Block::chunk;
        for (int64_t j = 0; j < t.n_panels; ++j) {
            const int8_t* b = t.b + j * t.b_panel_stride;
            for (int64_t k = 0; k < t.K; k += 4, b += kPanelColumns * 4) {
                const uint8_t* a = row + k / S8Block::chunk * (t.panel_rows * S8Block::chunk) + k % S8Block::chunk;
                multiply_line(a, b, c + j * kPanelColumns);
            }
        }
    }
}

}  // namespace

extern const S8Kernels s8_scalar;
const S8Kernels s8_scalar = {{Isa::scalar, 64, kMaxSumK, run, nullptr, nullptr}, nullptr};
}  // namespace gossamer
