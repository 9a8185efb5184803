// The ways of a product; linear.cpp and sparse.cpp choose.
#pragma once
#include "gossamer/bf16.h"
#include "gossamer/f32.h"
#include "gossamer/linear.h"
#include "gossamer/s8.h"
#include "gossamer/sparse_float.h"
#include "gossamer/sparse_s8.h"
#include "gossamer/u4.h"
#include "panels.h"

namespace gossamer {

// On panels of the lane, expanded where the format is another.
void product_dense(const ProductCall& call);
void product_s8(const ProductCall& call);
void product_bf16(const ProductCall& call);
void product_f32(const ProductCall& call);

// The cells of a slab for one thread of a team, on panels that are filled; of the dense weights that are multiplied channel by channel:
// int8 with int8 activations, and exact ones.
void run_slab(const ProductCall& call, const Panels<S8Block>& a, int64_t slab, int64_t rows, Team team);
void run_slab(const ProductCall& call, const Panels<Bf16Block>& a, int64_t slab, int64_t rows, Team team);
void run_slab(const ProductCall& call, const Panels<F32Block>& a, int64_t slab, int64_t rows, Team team);

// The fastest for this many rows.
const S8Kernels& s8_kernels(const ProductCall& call);

// k that share a scale of x, where groups of the weight are G long; 0: all of a row.
inline int64_t row_group_k(const ProductCall& call, int64_t G) { return call.weight.activations == Activations::int8_group ? G : 0; }

// Kernels that multiply the codes of this weight as they are; null where expanding them is faster, or the ISA has none.
const U4Kernels* u4_for(const ProductCall& call, const FourBitWeight& weight);
void product_u4(const ProductCall& call, const FourBitWeight& weight, const U4Kernels& u4);

// By the path of the call (linear.h).
void product_sparse(const ProductCall& call, const SparseWeight& weight);
// Few rows, multiplied with the weight as it is read.
void product_sparse_s8_few(const ProductCall& call, const SparseWeight& weight, const SparseS8Kernels& kernels);
// The same for codes that are expanded strip by strip; null where the s8 lane is faster, or the weight is no int4.
const U4Kernels* u4_for(const ProductCall& call, const SparseWeight& weight);
void product_sparse_u4(const ProductCall& call, const SparseWeight& weight, const U4Kernels& u4);
void product_sparse_float_few(const ProductCall& call, const SparseWeight& weight, const SparseFloatKernels& kernels);

// Two products in one parallel region each time: down to R columns, and up again (low_rank.h).
void product_low_rank(const ProductCall& call, const LowRankWeight& weight);
void product_sum(const ProductCall& call, const SumWeight& weight);
// Whether a factor is fp32, which the bf16 lane would round.
bool is_wide(const LowRankWeight& weight);

}  // namespace gossamer
