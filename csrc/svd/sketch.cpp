// Y = W X. Contract: svd.h.
//
// Loop nest of one thread, outermost first:
//   row blocks    block_rows (128) rows of W
//   column blocks kBlockBytes of these rows as panels of A, in L2 (1 MiB on Zen 4, 2 MiB on Intel servers) beside the sums
//   strips        32 columns of X; the kernel walks them in its own blocks of 32 KiB, in L1, while A streams from L2
#include "lane.h"

namespace gossamer {
namespace {

constexpr int64_t kBlockBytes = 512 << 10;

thread_local Workspace x_workspace, block_workspace;

template <class Block>
class Sketch {
    using Kernels = SvdKernels<Block>;
    using Element = typename Kernels::Element;

public:
    Sketch(const SvdPass& pass, const Kernels& kernels)
        : pass_(pass),
          kernels_(kernels),
          x_(pass, reinterpret_cast<Element*>(x_workspace.reserve(PackedX<Block>::size_in_bytes(pass)))),
          block_rows_(kernels.product.block_rows),
          block_columns_(std::min(kBlockBytes / Kernels::element_bytes / block_rows_, x_.K)) {}

    void run() const {
        parallel(svd_threads(pass_), [&](Team team) {
            x_.fill(pass_, kernels_, team);
            team.barrier();
            // Whole panels, so that a row is summed in the same way whichever thread has it.
            const Range panels = split_range(ceil_div(pass_.m, kPanelRows), team.rank, team.size);
            run_rows(panels.begin * kPanelRows, std::min(panels.end * kPanelRows, pass_.m));
        });
    }

private:
    void run_rows(int64_t first, int64_t last) const {
        const int64_t a_bytes = block_rows_ * block_columns_ * Kernels::element_bytes;
        const int64_t strip_stride = block_rows_ * kStripColumns;
        uint8_t* memory = block_workspace.reserve(a_bytes + ceil_div(pass_.l, kStripColumns) * strip_stride * 4);
        auto* a = reinterpret_cast<Element*>(memory);
        auto* sums = reinterpret_cast<float*>(memory + a_bytes);
        if (kernels_.product.begin != nullptr) kernels_.product.begin(kPanelRows);
        for (int64_t row = first; row < last; row += block_rows_) {
            const int64_t rows = std::min(block_rows_, last - row);
            for (int64_t k = 0; k < pass_.n; k += block_columns_) {
                const int64_t columns = std::min(block_columns_, pass_.n - k);
                const int64_t K = round_to(columns, Block::chunk);
                kernels_.to.rows({element(pass_, row, k), pass_.w_dtype, pass_.w_row_stride, rows, rows, columns, a, kPanelRows * K});
                multiply_strips(a, k, rows, K, sums);
            }
            store_rows(pass_, sums, strip_stride, row, rows);
        }
        if (kernels_.product.end != nullptr) kernels_.product.end();
    }

    void multiply_strips(const Element* a, int64_t k, int64_t rows, int64_t K, float* sums) const {
        Block block{};
        block.a = a;
        block.panel_rows = kPanelRows;
        block.a_panel_stride = kPanelRows * K;
        block.M = rows;
        block.K = K;
        for (int64_t strip = 0; strip * kStripColumns < pass_.l; ++strip) {
            x_.put_into(block, strip, k, pass_.l);
            block.c = sums + strip * block_rows_ * kStripColumns;
            multiply(kernels_.product, block, k == 0);
        }
    }

    const SvdPass& pass_;
    const Kernels& kernels_;
    PackedX<Block> x_;
    int64_t block_rows_, block_columns_;
};

}  // namespace

bool svd_has_lane(SvdLane lane, Isa isa) { return lane == SvdLane::f32 || find_kernels(bf16_list(), isa) != nullptr; }

void sketch(const SvdPass& pass) {
    with_lane(pass, [&](const auto& kernels) { Sketch<typename std::decay_t<decltype(kernels)>::Block>(pass, kernels).run(); });
}

}  // namespace gossamer
