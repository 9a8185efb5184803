// The part "spmm" of sparse f32 weights: its layout, packing and product. Contract: spmm.h, whose functions these are for one type.
#pragma once
#include <cstdint>

#include "gossamer/spmm.h"

namespace gossamer::spmm_f32 {

int64_t bytes(const SparseRows& rows);
void pack(const SparseRows& rows, uint8_t* part, int threads);
void check(const SparseSpec& spec, const uint8_t* part, int64_t part_bytes);
int64_t nnz(const SparseSpec& spec, const uint8_t* part);
void unpack(const SparseSpec& spec, const uint8_t* part, uint8_t* mask, void* values);
void values(const SparseSpec& spec, const uint8_t* part, int64_t first_row, int64_t last_row, float* out);
int64_t min_rows(const SparseWeight& weight, Isa isa);
void product(const ProductCall& call, const SparseWeight& weight);

}  // namespace gossamer::spmm_f32
