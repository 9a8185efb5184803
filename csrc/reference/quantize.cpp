// One row of activations, as quantize.h defines it. In fp32, because the contract fixes every rounding.
#include <cmath>
#include <limits>

#include "reference/reference.h"

namespace gossamer::reference {

QuantizedRow quantize_row(const void* x, DType dtype, int64_t K) {
    QuantizedRow row{std::vector<int8_t>(static_cast<size_t>(K), 0), 0.0f};
    float amax = 0;
    bool finite = true;
    for (int64_t k = 0; k < K; ++k) {
        const float value = static_cast<float>(load(x, dtype, k));
        finite = finite && std::isfinite(value);
        amax = std::fmax(amax, std::fabs(value));
    }
    if (!finite) row.scale = std::numeric_limits<float>::quiet_NaN();
    if (!finite || amax == 0) return row;
    row.scale = amax / 127.0f;
    const float before = amax < 0x1p-100f ? 0x1p100f : 1.0f;
    const float inverse = 127.0f / (amax * before);
    for (int64_t k = 0; k < K; ++k) {
        const float value = static_cast<float>(load(x, dtype, k)) * before;
        row.q[static_cast<size_t>(k)] = static_cast<int8_t>(std::nearbyint(value * inverse));
    }
    return row;
}

QuantizedRow quantize_row_with(float input_scale, const void* x, DType dtype, int64_t K) {
    QuantizedRow row{std::vector<int8_t>(static_cast<size_t>(K), 0), input_scale};
    for (int64_t k = 0; k < K; ++k) {
        if (!std::isfinite(load(x, dtype, k)))
            return {std::vector<int8_t>(static_cast<size_t>(K), 0), std::numeric_limits<float>::quiet_NaN()};
        const float before = input_scale < 0x1p-100f ? 0x1p100f : 1.0f;
        const float inverse = 1.0f / (input_scale * before);
        const float q = std::nearbyint(static_cast<float>(load(x, dtype, k)) * before * inverse);
        row.q[static_cast<size_t>(k)] = static_cast<int8_t>(std::fmin(std::fmax(q, -127.0f), 127.0f));
    }
    return row;
}

}  // namespace gossamer::reference
