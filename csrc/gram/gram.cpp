// G = X^T X on the lanes, the upper triangle only. Contract: gram.h.
//
// Loop nest, outermost first:
//   slabs       kSlabSteps rows of X, as panels of B and, word by word transposed, as panels of A; made by the whole team
//   row blocks  block_rows columns of X: 256 KiB of A in bf16, 512 KiB in f32, in L2
//   strips      32 columns of X from the diagonal on: B from L3, a block_k of it at a time in L1
// Cells of row block x strip are dealt out to the team in turn. The sums of a slab wait in G for the next.
#include "gossamer/gram.h"

#include <cstring>
#include <type_traits>

#include "svd/lane.h"

namespace gossamer {
namespace {

constexpr int64_t kSlabSteps = 1024;

thread_local Workspace panels_workspace;

// 16 lines of 64 bytes: words [16 steps][16 columns] of B to [16 columns][16 steps] of A.
inline void transpose_words(const void* lines, void* turned) {
    const char* from = static_cast<const char*>(lines);
    char* to = static_cast<char*>(turned);
    for (int64_t column = 0; column < 16; ++column) {
        for (int64_t step = 0; step < 16; ++step) std::memcpy(to + (column * 16 + step) * 4, from + (step * 16 + column) * 4, 4);
    }
}

template <class Block>
class GramProduct {
    using Element = typename Block::A;

public:
    GramProduct(const Gram& problem, const LaneKernels<Block>& product, const SvdConversions<Element>& to)
        : problem_(problem),
          product_(product),
          to_(to),
          n_panels_(ceil_div(problem.K, kPanelColumns)),
          panel_stride_(round_to(std::min(problem.T, kSlabSteps), Block::chunk) * kPanelColumns) {
        const int64_t elements = n_panels_ * panel_stride_;
        b_ = reinterpret_cast<Element*>(panels_workspace.reserve(2 * elements * static_cast<int64_t>(sizeof(Element))));
        a_ = b_ + elements;
    }

    void run() const {
        parallel(threads(), [&](Team team) {
            if (product_.begin != nullptr) product_.begin(kPanelRows);
            for (int64_t step = 0; step < problem_.T; step += kSlabSteps) {
                if (step > 0) team.barrier();  // the slab before is still being read
                fill(step, team);
                team.barrier();
                run_cells(step, team);
            }
            if (product_.end != nullptr) product_.end();
        });
    }

private:
    int threads() const {
        const double T = static_cast<double>(problem_.T), K = static_cast<double>(problem_.K);
        return useful_threads({T * K * static_cast<double>(size_bytes(problem_.x_dtype)), T * K * K / 2, 40e3}, problem_.threads);
    }
    int64_t steps_at(int64_t step) const { return std::min(kSlabSteps, problem_.T - step); }

    // This thread's part of the panels of the slab.
    void fill(int64_t step, Team team) const {
        const Range part = split_range(n_panels_, team.rank, team.size);
        if (part.begin == part.end) return;
        const int64_t first = part.begin * kPanelColumns, padded = round_to(steps_at(step), Block::chunk);
        const char* x = static_cast<const char*>(problem_.x) + (step * problem_.row_stride + first) * size_bytes(problem_.x_dtype);
        to_.columns({x, problem_.x_dtype, problem_.row_stride, steps_at(step), std::min(part.end * kPanelColumns, problem_.K) - first,
                     padded, b_ + part.begin * panel_stride_, panel_stride_});
        for (int64_t panel = part.begin; panel < part.end; ++panel) {
            for (int64_t k = 0; k < padded; k += Block::chunk) {
                const int64_t at = panel * panel_stride_ + k * kPanelColumns;
                transpose_words(b_ + at, a_ + at);
            }
        }
    }

    void run_cells(int64_t step, Team team) const {
        alignas(64) float c[kMaxBlockRows * kStripColumns] = {};
        Block block{};
        block.panel_rows = kPanelRows;
        block.a_panel_stride = block.b_panel_stride = panel_stride_;
        block.K = round_to(steps_at(step), Block::chunk);
        block.c = c;
        int64_t cell = 0;
        for (int64_t row = 0; row < problem_.K; row += product_.block_rows) {
            block.a = a_ + row / kPanelRows * panel_stride_;
            for (int64_t column = row; column < problem_.K; column += kStripColumns) {
                if (cell++ % team.size != team.rank) continue;
                block.M = std::min({product_.block_rows, column + kStripColumns - row, problem_.K - row});
                block.b = b_ + column / kPanelColumns * panel_stride_;
                block.n_panels = std::min<int64_t>(2, n_panels_ - column / kPanelColumns);
                if (step > 0) load(row, column, block.M, c);
                multiply(product_, block, step == 0);
                store(row, column, block.M, c);
                if (step + kSlabSteps >= problem_.T) mirror(row, column, block.M);
            }
        }
    }

    float* at(int64_t row, int64_t column) const { return problem_.G + row * problem_.K + column; }
    int64_t columns_at(int64_t column) const { return std::min(kStripColumns, problem_.K - column); }
    void load(int64_t row, int64_t column, int64_t rows, float* c) const {
        for (int64_t i = 0; i < rows; ++i) std::copy_n(at(row + i, column), columns_at(column), c + i * kStripColumns);
    }
    void store(int64_t row, int64_t column, int64_t rows, const float* c) const {
        for (int64_t i = 0; i < rows; ++i) std::copy_n(c + i * kStripColumns, columns_at(column), at(row + i, column));
    }
    void mirror(int64_t row, int64_t column, int64_t rows) const {
        for (int64_t j = column; j < column + columns_at(column); ++j) {
            const int64_t end = std::min(row + rows, j);
            for (int64_t i = row; i < end; ++i) *at(j, i) = *at(i, j);
        }
    }

    const Gram& problem_;
    const LaneKernels<Block>& product_;
    const SvdConversions<Element>& to_;
    int64_t n_panels_, panel_stride_;
    Element *a_, *b_;
};

}  // namespace

void gram(const Gram& problem) {
    SvdPass pass{};
    pass.lane = problem.lane;
    pass.isa = problem.isa;
    with_lane(pass, [&](const auto& kernels) {
        GramProduct<typename std::decay_t<decltype(kernels)>::Block>(problem, kernels.product, kernels.to).run();
    });
}

}  // namespace gossamer
