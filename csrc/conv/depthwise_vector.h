// One vector of the channels of a pixel, in and out of any dtype: all of its channels if `whole`, otherwise the `present` first.
#pragma once
#include <cstdint>
#include <cstring>

#include "../simd/load_as.h"
#include "gossamer/conv_kernels.h"

namespace gossamer {
namespace {

template <bool whole, class T>
inline Vec load_channels(const T* p, int64_t present) {
    return whole ? load_as(p) : load_tail(p, present);
}

inline void store_as(void* out, DType dtype, int64_t offset, Vec y) {
    switch (dtype) {
        case DType::f32: return store(static_cast<float*>(out) + offset, y);
        case DType::bf16: return store_bf16(static_cast<uint16_t*>(out) + offset, y);
        case DType::f16: return store_f16(static_cast<uint16_t*>(out) + offset, y);
    }
}

template <bool whole>
inline void store_channels(const DepthwiseRows& rows, int64_t offset, int64_t present, Vec y) {
    if (whole) return store_as(rows.out, rows.out_dtype, offset, y);
    float buffer[Vec::width];
    store_as(buffer, rows.out_dtype, 0, y);
    const int64_t element = size_bytes(rows.out_dtype);
    std::memcpy(static_cast<char*>(rows.out) + offset * element, buffer, static_cast<size_t>(present * element));
}

}  // namespace
}  // namespace gossamer
