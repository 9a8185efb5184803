// Epilogue: from a tile of sums to the output.
//
//   y[m,n] = activation( sum[m,n] * row_scale[m] * column_scale[n] + bias[n] + addend[m,n] )      rounded to the output dtype
//
// Shapes: tiles are kStripColumns (32) wide; M rows, N <= 32 valid columns. Strides in elements.
// Numerics: sums convert to fp32 rounded to nearest; the chain is fp32. gelu uses erf by Abramowitz & Stegun 7.1.26 (absolute error of
// erf below 1.5e-7, so of gelu below 1e-7 * |x| plus rounding); exp is Cody-Waite with a degree-6 polynomial (below 2 ulp). bf16 and
// f16 outputs round to nearest even. NaN stays NaN through every activation.
// Why a tile of sums goes through memory (L1) instead of being finished in registers: AMX has no other way out of its tiles, and one
// epilogue per vector ISA then serves every lane and format. It costs a store and a load per output, 2-4 % at K = 768.
#pragma once
#include <cstdint>

#include "gossamer/dtype.h"
#include "gossamer/isa.h"
#include "gossamer/lane.h"

namespace gossamer {

enum class Activation : int { none, relu, gelu, gelu_tanh, silu };
inline constexpr int kActivationCount = 5;

// What the caller of a whole layer asks for.
struct Epilogue {
    const void* bias = nullptr;  // [N] or null
    DType bias_dtype = DType::f32;
    Activation activation = Activation::none;
    const float* addend = nullptr;  // [M, N] fp32 or null
    int64_t addend_row_stride = 0;
    void* out = nullptr;  // [M, N]
    DType out_dtype = DType::f32;
    int64_t out_row_stride = 0;
};

// One tile on its way out.
struct FinishTile {
    int64_t M, N;
    const float* row_scale;     // [M]
    const float* column_scale;  // [32]
    const float* bias;          // [32], zeros where there is none
    const float* addend;        // at the tile's first element, or null
    int64_t addend_row_stride;
    Activation activation;
    void* out;  // at the tile's first element
    DType out_dtype;
    int64_t out_row_stride;
};

// sum[m,n] = (first ? 0 : sum[m,n]) + float(acc[m,n]) * column_scale[n] * row_scale[m]
struct ScaleAdd {
    int64_t M, columns;  // columns 16 or 32
    const int32_t* acc;  // [M][32]
    const float* column_scale;
    const float* row_scale;  // [M], row_scale_stride apart; null: 1
    int64_t row_scale_stride;
    bool first;
    float* sum;  // [M][32]
};

struct EpilogueKernels {
    Isa isa;
    void (*scale_add)(const ScaleAdd& tile);
    void (*finish_s32)(const FinishTile& tile, const int32_t* acc);  // acc [M, 32]
    void (*finish_f32)(const FinishTile& tile, const float* sum);    // sum [M, 32]
};

}  // namespace gossamer
