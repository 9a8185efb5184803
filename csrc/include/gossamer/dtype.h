// Floating-point types of activations, outputs and biases. Plain: kernel files include it.
#pragma once
#include <cstdint>

namespace gossamer {

enum class DType : int { f32, bf16, f16 };

constexpr int64_t size_bytes(DType dtype) { return dtype == DType::f32 ? 4 : 2; }

}  // namespace gossamer
