// Rows of activations into the A panels of the f32 and bf16 lanes, not quantized.
//
//   to_f32:          a[m,k] = float(x[m,k])     exact, from f32, bf16 or f16
//   copy_rows_bf16:  a[m,k] = x[m,k]            from bf16, bit for bit
//
// x is [M, K], unit stride along K. A panels, `panel_rows` (R <= 16) rows each, K padded with zeros to whole chunks of 64 bytes:
//
//     f32   panel p: [K/16][R rows][16 k]
//     bf16  panel p: [K/32][R rows][32 k]
//
// NaN and infinities pass through (to_f32 may make a signalling NaN quiet), denormals too. Rows outside [first_row, last_row) are not
// touched.
#pragma once
#include <cstdint>

#include "gossamer/dtype.h"
#include "gossamer/isa.h"

namespace gossamer {

struct ConvertRows {
    const void* x;
    DType x_dtype;
    int64_t x_row_stride;  // elements
    int64_t first_row, last_row, K;
    int64_t panel_rows;
    void* panels;  // the panel of row 0: float, or bf16 as uint16_t
};

struct ConvertKernels {
    Isa isa;
    void (*to_f32)(const ConvertRows& rows);
};

// x must be bf16. A copy needs no instruction set.
void copy_rows_bf16(const ConvertRows& rows);

}  // namespace gossamer
