// Products on the float lanes: x as it is, weights expanded to bf16 or fp32.
#include <variant>

#include "dispatch/lists.h"
#include "finish.h"
#include "float_panels.h"
#include "product.h"
#include "walk.h"

namespace gossamer {
namespace {

// Of an expanded panel when it is multiplied at once: two panels of 16 columns stay in L1.
constexpr int64_t kStreamedBytes = 16 << 10;

// Whether a form is multiplied here; the others are made of such.
template <class W>
inline constexpr bool kExpands = !std::is_same_v<W, LowRankWeight> && !std::is_same_v<W, SumWeight>;

template <class Block, class W>
class FloatProduct {
    using Element = typename Block::B;
    using Kernels = LaneKernels<Block>;

public:
    FloatProduct(const ProductCall& call, const W& weight, const Kernels& kernels)
        : call_(call),
          weight_(weight),
          kernels_(kernels),
          epilogue_(select_kernels(epilogue_list(), call.isa)),
          in_place_(panels_in_place(weight, static_cast<const Block*>(nullptr))),
          K64_(round_up(call.weight.K, 64)) {}

    void run() const {
        const double count = static_cast<double>(call_.weight.N) * static_cast<double>(call_.weight.K);
        const int threads = useful_threads({2 * count, count * static_cast<double>(call_.M), 40e3}, call_.threads);
        for_each_slab<Block>(call_, {threads}, kNothingMore,
                             [&](const Panels<Block>& a, int64_t slab, int64_t rows, Team team) { run_slab(a, slab, rows, team); });
    }

    void run_slab(const Panels<Block>& a, int64_t slab, int64_t rows, Team team) const {
        const int64_t block_rows = rows_in_l2(kernels_.block_rows, a.K * element_bytes);
        // One row block: each K block is expanded, into L1, when its turn comes. More: whole strips are, for all row blocks.
        const bool streamed = in_place_ == nullptr && rows <= block_rows;
        const int64_t strip_size = streamed ? kStreamedBytes / element_bytes * 2 : K64_ * kStripColumns;
        const int64_t together = in_place_ != nullptr || streamed
                                     ? kMaxStripsTogether
                                     : std::clamp<int64_t>(kExpandedBytes / (strip_size * element_bytes), 1, kMaxStripsTogether);
        Element* memory = nullptr;
        if (in_place_ == nullptr) {
            const int64_t strips = streamed ? 1 : together;
            memory = reinterpret_cast<Element*>(strips_workspace.reserve(strips * strip_size * element_bytes));
        }
        if (kernels_.begin != nullptr) kernels_.begin(a.panel_rows);
        for_each_cell(
            WalkShape{rows, a.panel_rows, call_.weight.N, block_rows, together}, team,
            [&](int64_t strip, int64_t i) {
                if (in_place_ == nullptr && !streamed) expand_strip(strip, 0, K64_, memory + i * strip_size);
            },
            [&](const Cell& cell, int64_t i) {
                alignas(64) float acc[kMaxBlockRows * kStripColumns];
                if (streamed) {
                    if (!multiply_codes(a, cell, acc)) multiply_streamed(a, cell, memory, acc);
                } else {
                    const Element* strip = in_place_ != nullptr ? in_place_ + cell.first_column() * K64_ : memory + i * strip_size;
                    multiply(a, cell, strip, acc);
                }
                finish(a, cell, slab, acc);
            });
        if (kernels_.end != nullptr) kernels_.end();
    }

private:
    static constexpr int64_t element_bytes = sizeof(Element);

    int64_t panels_of(int64_t strip) const { return std::min<int64_t>(2, ceil_div(call_.weight.N, kPanelColumns) - 2 * strip); }

    void expand_strip(int64_t strip, int64_t first_k, int64_t last_k, Element* out) const {
        for (int64_t j = 0; j < panels_of(strip); ++j) {
            expand(weight_, PanelRange{2 * strip + j, first_k, last_k}, call_.isa, out + j * (last_k - first_k) * kPanelColumns);
        }
    }

    Block block_of(const Panels<Block>& a, const Cell& cell, float* acc) const {
        Block block{};
        block.panel_rows = a.panel_rows;
        block.a_panel_stride = a.panel_stride;
        block.n_panels = cell.n_panels();
        block.M = cell.rows;
        block.c = acc;
        return block;
    }

    void multiply(const Panels<Block>& a, const Cell& cell, const Element* strip, float* acc) const {
        Block block = block_of(a, cell, acc);
        block.b_panel_stride = K64_ * kPanelColumns;
        for (int64_t k = 0; k < a.K; k += block.K) {
            block.K = std::min(kernels_.block_k, a.K - k);
            block.a = a.at(cell.first_row) + k * a.panel_rows;
            block.b = strip + k * kPanelColumns;
            block.init = k == 0 ? kZeroColumns.values : nullptr;
            kernels_.run(block);
        }
    }

    // Straight from the codes, where the format can do that for this few rows. M decides, not the rows of the cell, so that the number of
    // threads does not change the result.
    bool multiply_codes(const Panels<Block>& a, const Cell& cell, float* acc) const {
        if constexpr (std::is_same_v<W, Fp8Weight> && std::is_same_v<Block, Bf16Block>) {
            if (call_.M > Fp8Rows::max_rows) return false;
            return multiply_few_rows(weight_, cell.strip, call_.isa, {a.at(cell.first_row), a.panel_rows, cell.rows, acc});
        }
        return false;
    }

    void multiply_streamed(const Panels<Block>& a, const Cell& cell, Element* memory, float* acc) const {
        const int64_t step = std::min(kStreamedBytes / element_bytes / kPanelColumns, kernels_.block_k);
        Block block = block_of(a, cell, acc);
        for (int64_t k = 0; k < a.K; k += step) {
            const int64_t last_k = std::min(k + step, K64_);
            expand_strip(cell.strip, k, last_k, memory);
            block.K = std::min(step, a.K - k);
            block.a = a.at(cell.first_row) + k * a.panel_rows;
            block.b = memory;
            block.b_panel_stride = (last_k - k) * kPanelColumns;
            block.init = k == 0 ? kZeroColumns.values : nullptr;
            kernels_.run(block);
        }
    }

    void finish(const Panels<Block>& a, const Cell& cell, int64_t slab, const float* acc) const {
        float columns[kStripColumns] = {};
        const float* channel = channel_scales(weight_);
        for (int64_t n = 0; n < cell.columns; ++n) columns[n] = channel == nullptr ? 1.0f : channel[cell.first_column() + n];
        const Additions added(call_, a, slab, cell);
        epilogue_.finish_f32(finish_tile(call_.epilogue, slab, cell, {kOneRows.values, columns}, added), acc);
    }

    const ProductCall& call_;
    const W& weight_;
    const Kernels& kernels_;
    const EpilogueKernels& epilogue_;
    const Element* in_place_;
    int64_t K64_;
};

// Calls run(product) with the FloatProduct of the call.
template <class Block, class Run>
void with_product(const ProductCall& call, const LaneKernels<Block>& kernels, const Run& run) {
    const auto multiply = [&]<class W>(const W& weight) {
        if constexpr (kExpands<W>) run(FloatProduct<Block, W>(call, weight, kernels));
    };
    std::visit(multiply, call.weight.form);
}

const Bf16Kernels& kernels_of(const ProductCall& call, const Bf16Block*) { return *find_kernels(bf16_list(), call.isa); }
const F32Kernels& kernels_of(const ProductCall& call, const F32Block*) { return select_kernels(f32_list(), call.isa); }

template <class Block>
void run(const ProductCall& call) {
    with_product<Block>(call, kernels_of(call, static_cast<const Block*>(nullptr)), [](const auto& product) { product.run(); });
}

template <class Block>
void run_cells(const ProductCall& call, const Panels<Block>& a, int64_t slab, int64_t rows, Team team) {
    with_product<Block>(call, kernels_of(call, static_cast<const Block*>(nullptr)),
                        [&](const auto& product) { product.run_slab(a, slab, rows, team); });
}

}  // namespace

void product_bf16(const ProductCall& call) { run<Bf16Block>(call); }
void product_f32(const ProductCall& call) { run<F32Block>(call); }

void run_slab(const ProductCall& call, const Panels<Bf16Block>& a, int64_t slab, int64_t rows, Team team) {
    run_cells(call, a, slab, rows, team);
}
void run_slab(const ProductCall& call, const Panels<F32Block>& a, int64_t slab, int64_t rows, Team team) {
    run_cells(call, a, slab, rows, team);
}

}  // namespace gossamer
