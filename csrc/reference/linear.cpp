// One output of a linear layer in fp64.
#include <algorithm>
#include <cmath>
#include <numbers>

#include "reference/reference.h"

namespace gossamer::reference {

double activate(Activation activation, double x) {
    switch (activation) {
        case Activation::none: return x;
        case Activation::relu: return x < 0 ? 0 : x;
        case Activation::gelu: return 0.5 * x * std::erfc(-x * std::sqrt(0.5));
        // x sigmoid(2u) is 0.5 x (1 + tanh u) without its cancellation.
        case Activation::gelu_tanh: return x / (1 + std::exp(-2 * std::sqrt(2 / std::numbers::pi) * (x + 0.044715 * x * x * x)));
        case Activation::silu: return x / (1 + std::exp(-x));
    }
    return x;
}

Preactivation preactivation(const QuantizedRow& x, const int8_t* values, const float* scales, int64_t G, double bias, double addend) {
    const int64_t K = static_cast<int64_t>(x.q.size()), group = G == 0 ? K : G;
    Preactivation z{bias + addend, std::fabs(bias) + std::fabs(addend)};
    for (int64_t first = 0; first < K; first += group) {
        const int64_t last = std::min(first + group, K);
        int64_t sum = 0;
        for (int64_t k = first; k < last; ++k) sum += x.q[static_cast<size_t>(k)] * values[k];
        const double part = static_cast<double>(sum) * static_cast<double>(scales[first / group]) * static_cast<double>(x.scale);
        z.value += part;
        z.magnitude += std::fabs(part);
    }
    return z;
}

Preactivation preactivation(const double* x, const double* w, int64_t K, double bias, double addend) {
    Preactivation z{bias + addend, std::fabs(bias) + std::fabs(addend)};
    for (int64_t k = 0; k < K; ++k) {
        const double part = x[k] * w[k];
        z.value += part;
        z.magnitude += std::fabs(part);
    }
    return z;
}

}  // namespace gossamer::reference
