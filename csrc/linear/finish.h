// From the sums of a cell to the output: what the epilogue kernels are given.
#pragma once
#include <cstdint>

#include "gossamer/epilogue.h"
#include "grid.h"
#include "low_rank.h"
#include "panels.h"
#include "simd/scalar.h"

namespace gossamer {
namespace {

// n floats that are all the same.
template <int n>
struct Constant {
    float values[n];
    explicit constexpr Constant(float value) : values() {
        for (float& x : values) x = value;
    }
};
constexpr Constant<kStripColumns> kZeroColumns(0.0f), kOneColumns(1.0f);
constexpr Constant<kMaxBlockRows> kOneRows(1.0f);

inline float bias_at(const Epilogue& e, int64_t n) {
    if (e.bias_dtype == DType::f32) return static_cast<const float*>(e.bias)[n];
    const uint16_t* bits = static_cast<const uint16_t*>(e.bias) + n;
    return (e.bias_dtype == DType::bf16 ? load_bf16(bits) : load_f16(bits)).v;
}

// The bias of one strip as 32 floats: in place where it lies so, else copied.
class StripBias {
public:
    StripBias(const Epilogue& e, const Cell& cell) : values_(kZeroColumns.values) {
        if (e.bias == nullptr) return;
        if (cell.columns == kStripColumns && e.bias_dtype == DType::f32) {
            values_ = static_cast<const float*>(e.bias) + cell.first_column();
            return;
        }
        for (int64_t n = 0; n < kStripColumns; ++n) copy_[n] = n < cell.columns ? bias_at(e, cell.first_column() + n) : 0.0f;
        values_ = copy_;
    }
    StripBias(const StripBias&) = delete;
    StripBias& operator=(const StripBias&) = delete;
    const float* values() const { return values_; }

private:
    const float* values_;
    float copy_[kStripColumns];
};

// All that is added to a cell: the bias, the caller's addend, the low-rank part of a sum.
class Additions {
public:
    template <class Block>
    Additions(const ProductCall& call, const Panels<Block>& a, int64_t slab, const Cell& cell) : bias_(call.epilogue, cell), addend_{} {
        const Epilogue& e = call.epilogue;
        if (e.addend != nullptr) {
            addend_ = {e.addend + (slab + cell.first_row) * e.addend_row_stride + cell.first_column(), e.addend_row_stride};
        }
        if (call.branch == nullptr) return;
        call.branch->add(a.rank, cell, addend_, tile_);
        addend_ = {tile_, kStripColumns};
    }
    Additions(const Additions&) = delete;
    Additions& operator=(const Additions&) = delete;
    const float* bias() const { return bias_.values(); }
    const CellAddend& addend() const { return addend_; }

private:
    StripBias bias_;
    CellAddend addend_;
    alignas(64) float tile_[kMaxBlockRows * kStripColumns];  // filled where there is a low-rank part
};

struct Scales {
    const float* rows;     // of the cell
    const float* columns;  // [32]
};

inline FinishTile finish_tile(const Epilogue& e, int64_t slab, const Cell& cell, const Scales& scales, const Additions& added) {
    const int64_t row = slab + cell.first_row, column = cell.first_column();
    FinishTile tile{};
    tile.M = cell.rows;
    tile.N = cell.columns;
    tile.row_scale = scales.rows;
    tile.column_scale = scales.columns;
    tile.bias = added.bias();
    tile.addend = added.addend().values;
    tile.addend_row_stride = added.addend().row_stride;
    tile.activation = e.activation;
    tile.out = static_cast<char*>(e.out) + (row * e.out_row_stride + column) * size_bytes(e.out_dtype);
    tile.out_dtype = e.out_dtype;
    tile.out_row_stride = e.out_row_stride;
    return tile;
}

}  // namespace
}  // namespace gossamer
