// Tiles of T U^T for the cells of a base, on the panels of U that the lane has in place, or on one strip after another, expanded.
//
// One row, R = 32, int8 factors beside int4 (Zen 4, one thread): 70 ns a strip in all. Tried and lost: prefetching the strip of U that the
// next cell wants changed nothing.
#pragma once
#include <algorithm>

#include "dispatch/lists.h"
#include "finish.h"
#include "float_panels.h"
#include "panels.h"
#include "product.h"
#include "workspace.h"

namespace gossamer {
namespace {

thread_local Workspace up_workspace;  // a strip of U, expanded

inline const S8Kernels& up_kernels(const ProductCall& call, const S8Block*) { return s8_kernels(call); }
inline const Bf16Kernels& up_kernels(const ProductCall& call, const Bf16Block*) { return *find_kernels(bf16_list(), call.isa); }
inline const F32Kernels& up_kernels(const ProductCall& call, const F32Block*) { return select_kernels(f32_list(), call.isa); }

inline const int8_t* panels_in_place(const Int8Weight& weight, const S8Block*) { return weight.panels; }

// Columns of T to multiply: what lies beyond R is zero. AMX would load its configuration anew for less than a chunk.
template <class Block>
int64_t up_K(int64_t R, bool tiles) {
    constexpr int64_t half = Block::chunk / 2;
    return std::is_same_v<Block, S8Block> && !tiles && R <= half ? half : round_up(R, Block::chunk);
}

template <class Block>
class UpProjection {
    using Element = typename Block::B;
    using Sum = typename Block::Sum;

public:
    UpProjection(const ProductCall& call, const Weight& U)
        : U_(U),
          isa_(call.isa),
          kernels_(up_kernels(call, static_cast<const Block*>(nullptr))),
          epilogue_(select_kernels(epilogue_list(), call.isa)),
          K_(up_K<Block>(U.K, kernels_.begin != nullptr)),
          K64_(round_up(U.K, 64)) {
        visit_factor([&](const auto& form) { find_parts(form); });
        for (int64_t n = 0; n < kStripColumns; ++n) last_scales_[n] = n < kPanelColumns ? scales_at(U.N - 1)[n] : 0.0f;
    }

    void begin(int64_t panel_rows) const {
        if (kernels_.begin != nullptr) kernels_.begin(panel_rows);
    }
    void end() const {
        if (kernels_.end != nullptr) kernels_.end();
    }

    // out [rows of the cell][32]
    void tile(const Panels<Block>& t, const Cell& cell, const CellAddend& addend, float* out) const {
        alignas(64) Sum sums[kMaxBlockRows * kStripColumns];
        multiply(t, cell, sums);
        FinishTile f{};
        f.M = cell.rows;
        f.N = cell.columns;
        f.column_scale = cell.n_panels() == 2 ? scales_at(cell.first_column()) : last_scales_;
        f.bias = kZeroColumns.values;
        f.addend = addend.values;
        f.addend_row_stride = addend.row_stride;
        f.out = out;
        f.out_row_stride = kStripColumns;
        if constexpr (std::is_same_v<Block, S8Block>) {
            f.row_scale = t.scales_at(cell.first_row);
            epilogue_.finish_s32(f, sums);
        } else {
            f.row_scale = kOneRows.values;
            epilogue_.finish_f32(f, sums);
        }
    }

private:
    template <class Visit>
    void visit_factor(const Visit& visit) const {
        if (const auto* int8 = std::get_if<Int8Weight>(&U_.form)) return visit(*int8);
        if constexpr (!std::is_same_v<Block, S8Block>) {
            if (const auto* bf16 = std::get_if<Bf16Weight>(&U_.form)) return visit(*bf16);
            visit(std::get<F32Weight>(U_.form));
        }
    }

    void find_parts(const auto& form) {
        in_place_ = panels_in_place(form, static_cast<const Block*>(nullptr));
        scales_ = channel_scales(form);
        if constexpr (std::is_same_v<Block, S8Block>) init_ = form.init;
    }

    // Of the panel that the column lies in, and of the one behind it where there is one.
    const float* scales_at(int64_t column) const {
        return scales_ == nullptr ? kOneColumns.values : scales_ + column / kPanelColumns * kPanelColumns;
    }
    const Sum* init_at(const Cell& cell) const {
        if constexpr (std::is_same_v<Block, S8Block>) {
            return init_ + cell.first_column();
        } else {
            return kZeroColumns.values;
        }
    }

    const Element* strip_at(const Cell& cell) const {
        if (in_place_ != nullptr) return in_place_ + cell.first_column() * K64_;
        const int64_t panel_size = K64_ * kPanelColumns;
        Element* out = reinterpret_cast<Element*>(up_workspace.reserve(2 * panel_size * static_cast<int64_t>(sizeof(Element))));
        if constexpr (!std::is_same_v<Block, S8Block>) {
            visit_factor([&](const auto& form) {
                for (int64_t j = 0; j < cell.n_panels(); ++j) {
                    expand(form, PanelRange{cell.first_column() / kPanelColumns + j, 0, K64_}, isa_, out + j * panel_size);
                }
            });
        }
        return out;
    }

    void multiply(const Panels<Block>& t, const Cell& cell, Sum* sums) const {
        const Element* strip = strip_at(cell);
        Block block{};
        block.panel_rows = t.panel_rows;
        block.a_panel_stride = t.panel_stride;
        block.b_panel_stride = K64_ * kPanelColumns;
        block.n_panels = cell.n_panels();
        block.M = cell.rows;
        block.c = sums;
        for (int64_t k = 0; k < K_; k += block.K) {
            block.K = std::min(kernels_.block_k, K_ - k);
            block.a = t.at(cell.first_row) + k * t.panel_rows;
            block.b = strip + k * kPanelColumns;
            block.init = k == 0 ? init_at(cell) : nullptr;
            kernels_.run(block);
        }
    }

    const Weight& U_;
    Isa isa_;
    const LaneKernels<Block>& kernels_;
    const EpilogueKernels& epilogue_;
    int64_t K_, K64_;
    const Element* in_place_ = nullptr;
    const float* scales_ = nullptr;
    const int32_t* init_ = nullptr;
    alignas(64) float last_scales_[kStripColumns];  // of a last strip of one panel
};

}  // namespace
}  // namespace gossamer
