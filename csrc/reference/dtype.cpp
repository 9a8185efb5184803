// Conversions between fp64 and the 16-bit types, from their definition: sign, exponent, significand.
#include <cmath>
#include <cstring>

#include "reference/reference.h"

namespace gossamer::reference {
namespace {

struct Format16 {
    int fraction_bits, bias;
};
constexpr Format16 kBf16 = {7, 127}, kF16 = {10, 15};

double decode(uint16_t bits, Format16 f) {
    const int exponent = (bits & 0x7fff) >> f.fraction_bits, fraction = bits & ((1 << f.fraction_bits) - 1);
    const double sign = (bits & 0x8000) != 0 ? -1.0 : 1.0;
    if (exponent == 2 * f.bias + 1) return fraction != 0 ? std::nan("") : sign * HUGE_VAL;
    if (exponent == 0) return sign * std::ldexp(fraction, 1 - f.bias - f.fraction_bits);
    return sign * std::ldexp(fraction + (1 << f.fraction_bits), exponent - f.bias - f.fraction_bits);
}

uint16_t encode(double x, Format16 f) {
    const int sign = std::signbit(x) ? 0x8000 : 0, infinity = (2 * f.bias + 1) << f.fraction_bits;
    const double magnitude = std::fabs(x);
    if (std::isnan(x)) return static_cast<uint16_t>(infinity | 1 << (f.fraction_bits - 1));
    if (magnitude == 0) return static_cast<uint16_t>(sign);
    if (magnitude >= std::ldexp(1.0, f.bias + 1)) return static_cast<uint16_t>(sign | infinity);
    const int smallest = 1 - f.bias, exponent = std::ilogb(magnitude) > smallest ? std::ilogb(magnitude) : smallest;
    const int significand = static_cast<int>(std::nearbyint(std::ldexp(magnitude, f.fraction_bits - exponent)));
    // The hidden bit adds one to the exponent field; where it is absent (subnormal) or doubled (rounded up to the next power) the sum
    // is right as well.
    return static_cast<uint16_t>(sign | (((exponent + f.bias - 1) << f.fraction_bits) + significand));
}

}  // namespace

double load(const void* x, DType dtype, int64_t index) {
    if (dtype == DType::f32) return static_cast<double>(static_cast<const float*>(x)[index]);
    return decode(static_cast<const uint16_t*>(x)[index], dtype == DType::bf16 ? kBf16 : kF16);
}

uint16_t to_bf16(double x) { return encode(x, kBf16); }
uint16_t to_f16(double x) { return encode(x, kF16); }

}  // namespace gossamer::reference
