// Skip-compute products with sparse weights (format_sparse.h, part "spmm"): work in proportion to the stored values.
//
//   y = activation( (A(x) W^T) + bias + addend )           shapes and epilogue as linear.h
//
//   sparse_f32    fp32 values; x of any dtype, widened exactly. One value times a vector of rows of x, transposed: y^T = W x^T. One row
//                 or two: the values of four rows of W times x looked up at their indices. 5.05 to 5.5 bytes a value.
//                 Error: as the f32 lane, with the values of a row in place of K
//   sparse_int8   groups of 4 along K, of which one value at least is stored; G = 0; x rounded to int8 per row
//
// The other formats have no such part. A zero weight times NaN or Inf in x is NaN in a dense product: rows of x that hold one are found
// while they are transposed, and give NaN in every column (the int8 quantizer does the same).
//
// The layout of the part belongs to csrc/spmm/<type>/; outside it is bytes.
#pragma once
#include <cstdint>

#include "gossamer/format_sparse.h"
#include "gossamer/linear.h"

namespace gossamer {

// Whether weights of this format and these groups can have the part.
bool spmm_offered(const SparseSpec& spec);

int64_t spmm_bytes(const SparseRows& rows);
void spmm_pack(const SparseRows& rows, uint8_t* part, int threads);
// Throws std::invalid_argument where an index, an offset or the size would lead outside of the part or of a row of x.
void spmm_check(const SparseSpec& spec, const uint8_t* part, int64_t part_bytes);
int64_t spmm_nnz(const SparseSpec& spec, const uint8_t* part);
// mask [N][ceil(K/8)] zeroed by the caller; values in canonical order.
void spmm_unpack(const SparseSpec& spec, const uint8_t* part, uint8_t* mask, void* values);

// The values, without scales, of rows [first_row, last_row): out [last_row - first_row, K], zeroed by the caller.
void spmm_values(const SparseSpec& spec, const uint8_t* part, int64_t first_row, int64_t last_row, float* out);

// Rows from which skipping beats expanding, where a weight has both parts.
int64_t spmm_min_rows(const SparseWeight& weight, Isa isa);
void product_spmm(const ProductCall& call, const SparseWeight& weight);

}  // namespace gossamer
