// A whole linear layer, whatever the format of its weight.
//
//   y = activation( (A(x) W^T) + bias + addend )        x [M, K], W [N, K] packed, y [M, N]; A as the weight's header says (format.h)
//
// int8 activations: error against the exact product of the stored weight |y - x W^T| <= sum_k |W[n,k]| * scale[m] / 2 from rounding x, plus
// fp32 rounding of the epilogue; with an input scale that holds where |x| <= 127 * scale, and larger x count as that. Sums are exact
// integers. Exact activations: the error of the lane (f32.h, bf16.h).
//
// int8_group activations, with q and x_scale of quantize.h and integers w of the weight:
//
//   (A(x) W^T)[m,n] = sum_g ( sum_{k in g} q[m,k] * w[n,k] ) * w_scale[n,g] * x_scale[m,g]       added in fp32, in the order of g
//
// so the error from rounding x is at most sum_k |W[n,k]| * x_scale[m,k/G] / 2, and 3 roundings of fp32 are added per group.
//
// 4-bit weights with groups, int8 activations, many rows: the groups are re-quantized to one int8 scale per column while they are expanded,
// which raises the RMS error of the output by at most 2 % over that of the format (format_four_bit.h); strips that would exceed it keep
// exact group scaling, and so do all with int8_group activations.
//
// Low-rank weights and sums (format_low_rank.h), y = activation( (A(x) B^T) + T U^T + bias + addend ), T = A(x) V^T in fp32, B a sum's
// base:
//
//   int8 activations (int8 factors)   T is rounded to int8 row by row, as x is. With t_scale[m] = max_r |T[m,r]| / 127, the error from it
//   is
//                                     at most sum_r |U[n,r]| * t_scale[m] / 2, beside that from rounding x,
//                                     sum_r |U[n,r]| sum_k |V[r,k]| * x_scale[m] / 2, and 3 roundings of fp32
//   exact, f32 lane                   (K + R + 4) * 2^-24 * sum_r |U[n,r]| sum_k |V[r,k]| |x[m,k]|
//   exact, bf16 lane                  the same, and T is rounded to bf16: 2^-8 * sum_r |U[n,r]| |T[m,r]|
//
// The bf16 lane is for bf16 x and factors none of which is fp32, beside a base on that lane or one that rounds x. Beside int8_group
// activations int8 factors meet x with one scale for each row.
// A NaN in a row of x makes the row of T NaN, and so the row of y; where T is rounded, an infinity too.
//
// The output is bit-identical for every thread count. Threads share the panels of x and split the grid of (rows x strips of 32 columns).
#pragma once
#include <cstdint>
#include <variant>

#include "gossamer/epilogue.h"
#include "gossamer/format_bf16.h"
#include "gossamer/format_f32.h"
#include "gossamer/format_four_bit.h"
#include "gossamer/format_fp8.h"
#include "gossamer/format_int8.h"
#include "gossamer/format_low_rank.h"
#include "gossamer/format_sparse.h"
#include "gossamer/isa.h"

namespace gossamer {

struct Weight {
    std::variant<Int8Weight, FourBitWeight, Fp8Weight, Bf16Weight, F32Weight, SparseWeight, LowRankWeight, SumWeight> form;
    Activations activations;
    int64_t N, K;
    float input_scale = 0;  // of the header (format.h)
};

// Throws std::invalid_argument when the bytes are not a packed weight of this version.
Weight weight_view(const void* packed, int64_t packed_bytes);

// Writes the input scale into the header of a packed weight; 0: none. The low-rank part of a sum meets the rows of x that the base rounds.
// Throws std::invalid_argument as weight_view and check_activations do.
void set_input_scale(void* packed, int64_t packed_bytes, float input_scale);

enum class Lane { s8, bf16, f32 };
const char* name(Lane lane);

// How a sparse weight meets x: expanded in registers row by row of a few, expanded into panels of the lane, or skipping zeros (spmm.h).
// `automatic` chooses by M, the parts that the weight has, and the ISA.
enum class SparsePath : uint8_t { automatic, gemv, expand, spmm };
inline constexpr int kSparsePathCount = 4;
const char* name(SparsePath path);  // "auto", "gemv", "expand", "spmm"

// The lane on which x of this dtype meets this weight.
Lane lane_of(const Weight& weight, DType x_dtype, Isa isa);

// Where the rows of A come from: fills panels (lane.h) of the lane, and for s8 a scale per row, or per group of a row.
class RowSource {
public:
    struct Target {
        int64_t first_row;   // of the source: row 0 of the panels
        int64_t begin, end;  // rows to fill, counted from first_row
        int64_t panel_rows;
        void* panels;
        float* scale;         // [rows][groups], s8 only; groups = ceil(padded K / group_k), or 1
        int64_t group_k = 0;  // k that share a scale; 0: all of a row
        Lane lane = Lane::s8;
    };
    virtual void fill(const Target& target) const = 0;
    // Whether fill heeds group_k. Weights with int8_group activations are refused where it does not.
    virtual bool scales_groups() const { return false; }
    // Whether fill heeds the lane of the target, and can fill this one (bf16: without rounding x). Else it fills that of the call only, and
    // a sum whose low-rank part needs panels of its own is refused.
    virtual bool fills(Lane) const { return false; }

protected:
    ~RowSource() = default;
};

class Branch;

// The product of rows from anywhere with a weight.
struct ProductCall {
    const RowSource& rows;
    int64_t M;
    const Weight& weight;
    Lane lane;
    Epilogue epilogue;
    int threads;
    Isa isa;
    SparsePath path = SparsePath::automatic;
    Branch* branch = nullptr;  // added to the product (csrc/linear/low_rank.h)
};

// The path that product() takes for a sparse weight; `wanted` itself where it is not automatic. Throws std::invalid_argument where the
// weight has no part for it, or the ISA no kernel for so many rows.
SparsePath sparse_path(const SparseWeight& weight, Lane lane, int64_t M, Isa isa, SparsePath wanted);

// Throws std::invalid_argument where the weight wants scales that the rows do not have.
void product(const ProductCall& call);

struct LinearCall {
    const void* x;
    DType x_dtype;
    int64_t M;
    int64_t x_row_stride;
    const Weight& weight;
    Epilogue epilogue;
    int threads;
    Isa isa;
    SparsePath path = SparsePath::automatic;
};

void linear(const LinearCall& call);

// The integer sums alone: out[m,n] = sum_k x[m,k] * values[n,k], x int8 [M, K], out int64 [M, N] contiguous. For tests and research; int8
// weights only.
struct AccumulateCall {
    const int8_t* x;
    int64_t M;
    int64_t x_row_stride;
    Int8Weight weight;
    int64_t* out;
    int threads;
    Isa isa;
};

void accumulate(const AccumulateCall& call);

}  // namespace gossamer
