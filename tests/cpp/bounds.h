// How far an fp32 epilogue may be from fp64 (epilogue.h); every constant is a count of roundings.
#pragma once
#include <algorithm>
#include <cmath>

#include "reference/reference.h"

namespace gossamer::test {

inline constexpr double kHalfUlp = 0x1p-24;  // of fp32, relative

// Of the activation itself, for an exact argument.
inline double activation_bound(Activation activation, double z) {
    const double y = std::fabs(reference::activate(activation, z));
    switch (activation) {
        case Activation::none:
        case Activation::relu: return 0;
        // erf by Abramowitz & Stegun 7.1.26: 1.5e-7 at most, halved and times z.
        case Activation::gelu: return 0.8e-7 * std::fabs(z) + 8 * kHalfUlp * y;
        // The roundings of the exponential's argument u count |u| times; the clamp at e^88 leaves 1e-37 of a large |z|.
        case Activation::gelu_tanh: {
            const double u = std::min(1.6 * (std::fabs(z) + 0.045 * std::fabs(z * z * z)), 88.0);
            return (10 + 6 * u) * kHalfUlp * y + 1e-37 * std::fabs(z) + 0x1p-149;
        }
        case Activation::silu: return (10 + 2 * std::min(std::fabs(z), 88.0)) * kHalfUlp * y + 1e-37 * std::fabs(z) + 0x1p-149;
    }
    return 0;
}

// Of rounding y to the output's dtype.
inline double rounding_bound(DType dtype, double y) {
    if (dtype == DType::bf16) return 0x1p-8 * std::fabs(y);
    if (dtype == DType::f16) return 0x1p-11 * std::fabs(y) + 0x1p-25;
    return kHalfUlp * std::fabs(y) + 0x1p-149;
}

// Of a whole output: `roundings` of fp32 on parts that add up to z.magnitude, the activation (whose slope is below 1.13), the dtype.
inline double output_bound(const reference::Preactivation& z, int64_t roundings, Activation activation, DType dtype) {
    const double before = static_cast<double>(roundings) * kHalfUlp * z.magnitude;
    const double y = reference::activate(activation, z.value);
    const double fp32 = 1.13 * before + activation_bound(activation, z.value);
    return fp32 + rounding_bound(dtype, std::fabs(y) + fp32);
}

}  // namespace gossamer::test
