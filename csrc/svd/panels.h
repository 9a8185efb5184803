// What the passes over W (svd.h) need beside the lanes: pieces of row-major matrices into panels (lane.h), and sums of sums.
//
//   rows         A[r,k] = x[r,k]       rows of W as rows of A
//   columns      B[k,c] = x[k,c]       rows of W or X as steps of the reduction
//   transposed   A[c,k] = x[k,c]       columns of Y as rows of A
//   turned       B[r,k] = A[r,k]       rows of A, of a strip of 32 k, as steps of the reduction
//   accumulate   sum[i] += c[i]        fp32 into fp64
//
// Panels of A have 16 rows here. Values are widened exactly (f32) or rounded to nearest even (bf16, where denormals may become zero).
#pragma once
#include <cstdint>

#include "gossamer/bf16.h"
#include "gossamer/dtype.h"
#include "gossamer/f32.h"
#include "gossamer/isa.h"

namespace gossamer {

// x [rows, columns] to panels of A. Columns are padded with zeros to whole chunks; rows from `rows` to stored_rows are zeros.
struct SvdRows {
    const void* x;
    DType x_dtype;
    int64_t x_row_stride;  // elements
    int64_t rows, stored_rows, columns;
    void* panels;          // of the lane's type, at the first column
    int64_t panel_stride;  // elements
};

// x [rows, columns], padded with zeros to K rows, whole chunks, and to whole panels of columns.
struct SvdPiece {
    const void* x;
    DType x_dtype;
    int64_t x_row_stride;  // elements
    int64_t rows, columns, K;
    void* panels;          // of the lane's type
    int64_t panel_stride;  // elements, from a panel of 16 columns to the next
};

template <class Element>
struct SvdTurn {
    const Element* panels;  // A, at the first k of the strip
    int64_t panel_stride;
    int64_t K;  // rows of A, whole chunks and panels
    int64_t n_panels;
    Element* strip;  // n_panels of B, 16 K elements each
};

template <class Element>
struct SvdConversions {
    void (*rows)(const SvdRows& rows);
    void (*columns)(const SvdPiece& piece);
    void (*transposed)(const SvdPiece& piece);  // x is f32
    void (*turned)(const SvdTurn<Element>& turn);
};

struct SvdPanelKernels {
    Isa isa;
    SvdConversions<float> f32;
    SvdConversions<uint16_t> bf16;
    void (*accumulate)(const float* c, int64_t count, double* sum);
};

}  // namespace gossamer
