// Quantizing an image, written once over the vector type of simd/<isa>.h. Contract: conv_kernels.h.
#pragma once
#include <cstdint>
#include <cstring>

#include "../simd/load_as.h"
#include "gossamer/conv_kernels.h"

namespace gossamer {
namespace {

template <class T>
uint32_t largest_of(const T* x, int64_t n) {
    // Four chains hide the latency of the maximum.
    constexpr int64_t w = Vec::width;
    AbsMax m0, m1, m2, m3;
    int64_t i = 0;
    for (; i + 4 * w <= n; i += 4 * w) {
        update(m0, load_as(x + i));
        update(m1, load_as(x + i + w));
        update(m2, load_as(x + i + 2 * w));
        update(m3, load_as(x + i + 3 * w));
    }
    for (; i + w <= n; i += w) update(m0, load_as(x + i));
    if (i < n) update(m1, load_tail(x + i, n - i));
    update(m0, m1);
    update(m2, m3);
    update(m0, m2);
    return reduce(m0);
}

uint32_t largest(const void* x, DType dtype, int64_t n) {
    switch (dtype) {
        case DType::f32: return largest_of(static_cast<const float*>(x), n);
        case DType::bf16: return largest_of(static_cast<const Bf16*>(x), n);
        case DType::f16: return largest_of(static_cast<const F16*>(x), n);
    }
    return 0;
}

template <class T, bool clamp>
void quantize_of(const QuantizePixels& p) {
    constexpr int64_t w = Vec::width;
    const T* x = static_cast<const T*>(p.x);
    const Vec before = broadcast(p.before), inverse = broadcast(p.inverse), top = broadcast(127.0f), bottom = broadcast(-127.0f);
    const auto quantized = [&](Vec v) {
        v = v * before * inverse;
        return clamp ? maximum(minimum(v, top), bottom) : v;
    };
    int64_t i = 0;
    for (; i + w <= p.n; i += w) store_biased_u8(p.out + i, quantized(load_as(x + i)));
    if (i == p.n) return;
    uint8_t tail[w];
    store_biased_u8(tail, quantized(load_tail(x + i, p.n - i)));
    std::memcpy(p.out + i, tail, static_cast<size_t>(p.n - i));
}

template <class T>
void quantize_as(const QuantizePixels& p) {
    p.clamp ? quantize_of<T, true>(p) : quantize_of<T, false>(p);
}

void quantize(const QuantizePixels& pixels) {
    switch (pixels.x_dtype) {
        case DType::f32: return quantize_as<float>(pixels);
        case DType::bf16: return quantize_as<Bf16>(pixels);
        case DType::f16: return quantize_as<F16>(pixels);
    }
}

}  // namespace
}  // namespace gossamer
