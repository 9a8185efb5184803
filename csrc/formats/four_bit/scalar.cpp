// Expansion of 4-bit codes in portable C++: "vectors" of 16 bytes.
#include "../../simd/scalar.h"

#include <cstdint>
#include <cstring>

#include "expand.h"

namespace gossamer {
namespace {

struct Bytes {
    static constexpr int64_t width = 16;
    uint8_t v[16];
};
struct Words {
    int16_t v[8];
};
struct FourSums {
    int32_t v[4] = {};
};

inline Bytes load(const uint8_t* p) {
    Bytes b;
    std::memcpy(b.v, p, 16);
    return b;
}
inline void store(int8_t* p, const Bytes& b) { std::memcpy(p, b.v, 16); }
inline Bytes low_codes(Bytes b) {
    for (uint8_t& x : b.v) x &= 15;
    return b;
}
inline Bytes high_codes(Bytes b) {
    for (uint8_t& x : b.v) x = static_cast<uint8_t>(x >> 4);
    return b;
}
inline Bytes lookup(const uint8_t* table, Bytes b) {
    for (uint8_t& x : b.v) x = table[x];
    return b;
}
inline Words low_words(const Bytes& b) {
    Words w;
    for (int i = 0; i < 8; ++i) w.v[i] = b.v[i];
    return w;
}
inline Words high_words(const Bytes& b) {
    Words w;
    for (int i = 0; i < 8; ++i) w.v[i] = b.v[8 + i];
    return w;
}
inline Words low_columns(const int16_t* p) { return {{p[0], p[0], p[0], p[0], p[1], p[1], p[1], p[1]}}; }
inline Words high_columns(const int16_t* p) { return low_columns(p + 2); }
inline Words subtract(Words a, const Words& b) {
    for (int i = 0; i < 8; ++i) a.v[i] = static_cast<int16_t>(a.v[i] - b.v[i]);
    return a;
}
inline Words shift_left(Words a, int shift) {
    for (int16_t& x : a.v) x = static_cast<int16_t>(x * (1 << shift));
    return a;
}
inline Words multiply_round(Words a, const Words& b) {
    for (int i = 0; i < 8; ++i) a.v[i] = static_cast<int16_t>((a.v[i] * b.v[i] + (1 << 14)) >> 15);
    return a;
}
inline Bytes narrow(const Words& low, const Words& high) {
    Bytes b;
    for (int i = 0; i < 8; ++i) {
        b.v[i] = static_cast<uint8_t>(low.v[i]);
        b.v[8 + i] = static_cast<uint8_t>(high.v[i]);
    }
    return b;
}
inline void add_fours(FourSums& sums, const Bytes& b) {
    for (int i = 0; i < 16; ++i) sums.v[i / 4] += static_cast<int8_t>(b.v[i]);
}
inline void add_to(int32_t* sum, const FourSums& sums) {
    for (int i = 0; i < 4; ++i) sum[i] += sums.v[i];
}
inline void floats_line(const uint8_t* codes, const FourBitFloats& g, float* out) {
    for (int64_t k = 0; k < 8; ++k) {
        for (int64_t n = 0; n < kPanelColumns; ++n) {
            const int code = codes[n * 4 + k % 4] >> (k < 4 ? 0 : 4) & 15;
            out[k * kPanelColumns + n] = (g.table[code] - g.zero[n]) * g.scale[n];
        }
    }
}

}  // namespace
}  // namespace gossamer

#include "expand_bytes.h"

namespace gossamer {
extern const FourBitKernels four_bit_scalar;
const FourBitKernels four_bit_scalar = {Isa::scalar, convert_scales, find_ratios, expand<ValuesOp>, expand<RequantizeOp>, expand_floats};
}  // namespace gossamer
