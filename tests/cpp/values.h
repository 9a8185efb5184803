// Arrays of activations, biases and outputs in any of the floating-point types.
#pragma once
#include <cstdint>
#include <cstring>

#include "gossamer/dtype.h"
#include "guarded.h"
#include "random.h"
#include "reference/reference.h"

namespace gossamer::test {

inline constexpr DType kDTypes[] = {DType::f32, DType::bf16, DType::f16};

inline const char* dtype_name(DType dtype) { return dtype == DType::f32 ? "f32" : dtype == DType::bf16 ? "bf16" : "f16"; }

inline uint32_t float_bits(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return bits;
}
inline float bits_float(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}

// Element i is rounded to the dtype when set; read back it is what the kernel sees.
class Values {
public:
    Values(DType type, int64_t n) : dtype(type), count(n), bytes_(n * size_bytes(type)) {}
    void set(int64_t i, double x) {
        if (dtype == DType::f32) {
            const float value = static_cast<float>(x);
            std::memcpy(bytes_.data() + 4 * i, &value, 4);
        } else {
            set_bits(i, dtype == DType::bf16 ? reference::to_bf16(x) : reference::to_f16(x));
        }
    }
    void set_bits(int64_t i, uint16_t bits) { std::memcpy(bytes_.data() + 2 * i, &bits, 2); }
    uint16_t bits(int64_t i) const {
        uint16_t value;
        std::memcpy(&value, bytes_.data() + 2 * i, 2);
        return value;
    }
    double get(int64_t i) const { return reference::load(bytes_.data(), dtype, i); }
    void* data() { return bytes_.data(); }
    const uint8_t* at(int64_t i) const { return bytes_.data() + i * size_bytes(dtype); }
    const uint8_t* bytes() const { return bytes_.data(); }
    int64_t size_in_bytes() const { return bytes_.size(); }

    const DType dtype;
    const int64_t count;

private:
    Guarded<uint8_t> bytes_;
};

// Uniform in [-scale, scale).
inline void fill(Values& values, Random& random, double scale = 1) {
    for (int64_t i = 0; i < values.count; ++i) values.set(i, random.uniform() * scale);
}

}  // namespace gossamer::test
