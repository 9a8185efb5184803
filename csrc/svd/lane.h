// The lane of a pass: its kernels and the conversions into its panels. What sketch, project and power_step share.
#pragma once
#include <algorithm>
#include <stdexcept>
#include <string>

#include "dispatch/lists.h"
#include "gossamer/parallel.h"
#include "gossamer/svd.h"
#include "linear/grid.h"
#include "linear/workspace.h"

namespace gossamer {
namespace {

template <class B>
struct SvdKernels {
    using Block = B;
    using Element = typename B::A;
    static constexpr int64_t element_bytes = sizeof(Element);

    const LaneKernels<B>& product;
    const SvdConversions<Element>& to;
    void (*accumulate)(const float* c, int64_t count, double* sum);
};

// Calls run(SvdKernels) with those of the pass.
template <class Run>
void with_lane(const SvdPass& pass, const Run& run) {
    const SvdPanelKernels& panels = select_kernels(svd_panels_list(), pass.isa);
    if (pass.lane == SvdLane::f32) {
        return run(SvdKernels<F32Block>{select_kernels(f32_list(), pass.isa), panels.f32, panels.accumulate});
    }
    const Bf16Kernels* bf16 = find_kernels(bf16_list(), pass.isa);
    if (bf16 == nullptr) {
        throw std::invalid_argument(std::string("lane: 'bf16' needs avx512bf16 or amx, the instruction set is ") + isa_name(pass.isa));
    }
    run(SvdKernels<Bf16Block>{*bf16, panels.bf16, panels.accumulate});
}

alignas(64) constexpr float kZeroSums[kStripColumns] = {};

// c [M][32] = A B, or c + A B, over block.K in the kernel's blocks. M is at most the kernel's block_rows.
template <class Block>
void multiply(const LaneKernels<Block>& kernels, const Block& block, bool from_zero) {
    Block part = block;
    for (int64_t k = 0; k < block.K; k += kernels.block_k) {
        part.K = std::min(kernels.block_k, block.K - k);
        part.a = block.a + k * block.panel_rows;
        part.b = block.b + k * kPanelColumns;
        part.init = from_zero && k == 0 ? kZeroSums : nullptr;
        kernels.run(part);
    }
}

inline constexpr int64_t round_to(int64_t x, int64_t step) { return ceil_div(x, step) * step; }

inline const void* element(const SvdPass& pass, int64_t row, int64_t column) {
    return static_cast<const char*>(pass.W) + (row * pass.w_row_stride + column) * size_bytes(pass.w_dtype);
}

// X as panels of B, [ceil(l/16)][K/word][16][word], in memory that somebody else owns.
template <class Block>
struct PackedX {
    using Element = typename Block::B;
    int64_t K, panel_stride;
    Element* panels;

    PackedX(const SvdPass& pass, Element* memory) : K(round_to(pass.n, Block::chunk)), panel_stride(K * kPanelColumns), panels(memory) {}
    static int64_t size_in_bytes(const SvdPass& pass) {
        return round_to(pass.l, kPanelColumns) * round_to(pass.n, Block::chunk) * static_cast<int64_t>(sizeof(Element));
    }
    // This thread's part of the rows of X.
    void fill(const SvdPass& pass, const SvdKernels<Block>& kernels, Team team) const {
        const Range part = split_range(K / Block::chunk, team.rank, team.size);
        const int64_t first = part.begin * Block::chunk, last = part.end * Block::chunk;
        if (first == last) return;
        kernels.to.columns({pass.X + first * pass.x_row_stride, DType::f32, pass.x_row_stride, std::min(last, pass.n) - first, pass.l,
                            last - first, panels + first * kPanelColumns, panel_stride});
    }
    // Strip s from row k on; the caller sets K of the block.
    void put_into(Block& block, int64_t strip, int64_t k, int64_t l) const {
        block.b = panels + 2 * strip * panel_stride + k * kPanelColumns;
        block.b_panel_stride = panel_stride;
        block.n_panels = std::min<int64_t>(2, ceil_div(l, kPanelColumns) - 2 * strip);
    }
};

// Sums [strips][block_rows][32] to rows of Y.
inline void store_rows(const SvdPass& pass, const float* sums, int64_t strip_stride, int64_t first_row, int64_t rows) {
    for (int64_t i = 0; i < rows; ++i) {
        float* y = pass.Y + (first_row + i) * pass.y_row_stride;
        for (int64_t c = 0; c < pass.l; c += kStripColumns) {
            std::copy_n(sums + c / kStripColumns * strip_stride + i * kStripColumns, std::min(kStripColumns, pass.l - c), y + c);
        }
    }
}

// Sums of Z^T, [rows: columns first_c.. of Z][32: rows of Z from strip on], to Z.
inline void store_transposed(const SvdPass& pass, const double* sums, int64_t strip, int64_t first_c, int64_t rows) {
    const int64_t first_k = strip * kStripColumns, count = std::min(kStripColumns, pass.n - first_k);
    for (int64_t k = 0; k < count; ++k) {
        float* z = pass.Z + (first_k + k) * pass.z_row_stride + first_c;
        for (int64_t c = 0; c < rows; ++c) z[c] = static_cast<float>(sums[c * kStripColumns + k]);
    }
}

inline int svd_threads(const SvdPass& pass) {
    const double size = static_cast<double>(pass.m) * static_cast<double>(pass.n);
    return useful_threads({size * static_cast<double>(size_bytes(pass.w_dtype)), size * static_cast<double>(pass.l), 40e3}, pass.threads);
}

}  // namespace
}  // namespace gossamer
