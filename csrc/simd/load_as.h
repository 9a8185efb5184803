// Reading fp32, bf16 and f16 arrays as vectors of fp32, chosen by the pointer's type; included after simd/<isa>.h.
#pragma once
#include <cstdint>
#include <cstring>

namespace gossamer {
namespace {

inline Vec load_as(const float* p) { return load(p); }
struct Bf16 {
    uint16_t bits;
};
struct F16 {
    uint16_t bits;
};
inline Vec load_as(const Bf16* p) { return load_bf16(&p->bits); }
inline Vec load_as(const F16* p) { return load_f16(&p->bits); }

// The last n < width elements of a row, zeros behind them.
template <class T>
inline Vec load_tail(const T* p, int64_t n) {
    T padded[Vec::width] = {};
    std::memcpy(padded, p, static_cast<size_t>(n) * sizeof(T));
    return load_as(padded);
}

}  // namespace
}  // namespace gossamer
