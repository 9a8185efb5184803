// The three ways of a product; linear.cpp chooses.
#pragma once
#include "gossamer/linear.h"
#include "gossamer/u4.h"

namespace gossamer {

void product_s8(const ProductCall& call);
void product_bf16(const ProductCall& call);
void product_f32(const ProductCall& call);

// k that share a scale of x, where groups of the weight are G long; 0: all of a row.
inline int64_t row_group_k(const ProductCall& call, int64_t G) { return call.weight.activations == Activations::int8_group ? G : 0; }

// Kernels that multiply the codes of this weight as they are; null where expanding them is faster, or the ISA has none.
const U4Kernels* u4_for(const ProductCall& call, const FourBitWeight& weight);
void product_u4(const ProductCall& call, const FourBitWeight& weight, const U4Kernels& u4);

}  // namespace gossamer
