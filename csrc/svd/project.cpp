// Z = W^T Y, computed as Z^T = Y^T W: rows of A are columns of Y, columns of B are those of W. Contract: svd.h.
//
// Loop nest, outermost first:
//   slabs         rows of W for which Y^T takes at most kSlabBytes as panels of A, made by the whole team
//   columns of Y  kColumnsTogether of them: with a group of strips, fp64 sums of 8 MiB, which stay in L3 through the row blocks of a slab
//   groups        strips of 32 columns of W: with kProjectRows rows, kGroupBytes as panels of B, in L2
//   row blocks    kProjectRows rows: summed in fp32, then added to the fp64 sums
//   cells         block_rows columns of Y x one strip: A (128 KiB) from L2, B (32 KiB) from L1
// Columns of Y and strips are shared out over the team; each sum is one thread's work.
//
// Tried and lost (Zen 4): asking for the next row block between the cells (its lines are too many for the few calls of a thin Y), panels of
// B a line further apart than K, groups of 256 KiB.
#include "lane.h"

namespace gossamer {
namespace {

constexpr int64_t kColumnsTogether = 2048, kGroupBytes = 512 << 10;

constexpr int64_t kKeptBytes = 64 << 20;  // of sums, for the next call; above it they are given back

thread_local Workspace y_workspace, sums_workspace, group_workspace;

template <class Block>
class Project {
    using Kernels = SvdKernels<Block>;
    using Element = typename Kernels::Element;
    static constexpr int64_t y_panel_stride = kProjectRows * kPanelRows;
    static constexpr int64_t group_strips = kGroupBytes / (kProjectRows * kStripColumns * Kernels::element_bytes);

public:
    Project(const SvdPass& pass, const Kernels& kernels)
        : pass_(pass),
          kernels_(kernels),
          strips_(ceil_div(pass.n, kStripColumns)),
          y_panels_(ceil_div(pass.l, kPanelRows)),
          block_bytes_(y_panels_ * y_panel_stride * Kernels::element_bytes),
          slab_rows_(std::clamp<int64_t>(kSlabBytes / block_bytes_, 1, ceil_div(pass.m, kProjectRows)) * kProjectRows),
          y_(reinterpret_cast<Element*>(y_workspace.reserve(slab_rows_ / kProjectRows * block_bytes_))),
          sums_(reinterpret_cast<double*>(workspace_for(strips_ * sums_of_strip() * 8).reserve(strips_ * sums_of_strip() * 8))) {}

    void run() const {
        parallel(svd_threads(pass_), [&](Team team) {
            const Share share = choose_share(pass_.l, kPanelRows, strips_, team);
            auto* group = reinterpret_cast<Element*>(group_workspace.reserve(kGroupBytes));
            if (kernels_.product.begin != nullptr) kernels_.product.begin(kPanelRows);
            for (int64_t slab = 0; slab < pass_.m; slab += slab_rows_) {
                if (slab > 0) team.barrier();  // the slab before is still being read
                fill_slab(slab, team);
                team.barrier();
                run_slab(slab, share, group);
            }
            if (kernels_.product.end != nullptr) kernels_.product.end();
            for (int64_t strip = share.strips.begin; strip < share.strips.end; ++strip) {
                store_transposed(pass_, sums_at(strip, share.rows.begin), strip, share.rows.begin, share.rows.end - share.rows.begin);
            }
        });
    }

private:
    Workspace& workspace_for(int64_t bytes) { return bytes > kKeptBytes ? own_workspace_ : sums_workspace; }
    int64_t sums_of_strip() const { return y_panels_ * kPanelRows * kStripColumns; }
    double* sums_at(int64_t strip, int64_t column) const { return sums_ + strip * sums_of_strip() + column * kStripColumns; }
    int64_t rows_at(int64_t row) const { return std::min(kProjectRows, pass_.m - row); }
    Element* y_block(int64_t slab, int64_t row) const { return y_ + (row - slab) / kProjectRows * block_bytes_ / Kernels::element_bytes; }

    // This thread's part of the panels of Y^T: row blocks x panels of 16 columns.
    void fill_slab(int64_t slab, Team team) const {
        const int64_t rows = std::min(slab_rows_, pass_.m - slab);
        const Range tasks = split_range(ceil_div(rows, kProjectRows) * y_panels_, team.rank, team.size);
        for (int64_t task = tasks.begin; task < tasks.end; ++task) {
            const int64_t row = slab + task / y_panels_ * kProjectRows, panel = task % y_panels_, column = panel * kPanelRows;
            kernels_.to.transposed({pass_.Y + row * pass_.y_row_stride + column, DType::f32, pass_.y_row_stride, rows_at(row),
                                    std::min(kPanelRows, pass_.l - column), round_to(rows_at(row), Block::chunk),
                                    y_block(slab, row) + panel * y_panel_stride, y_panel_stride});
        }
    }

    void run_slab(int64_t slab, const Share& share, Element* group) const {
        const int64_t last = std::min(slab + slab_rows_, pass_.m);
        for (int64_t column = share.rows.begin; column < share.rows.end; column += kColumnsTogether) {
            const Range columns{column, std::min(column + kColumnsTogether, share.rows.end)};
            for (int64_t strip = share.strips.begin; strip < share.strips.end; strip += group_strips) {
                const Range strips{strip, std::min(strip + group_strips, share.strips.end)};
                for (int64_t row = slab; row < last; row += kProjectRows) {
                    const int64_t first_k = strip * kStripColumns, K = round_to(rows_at(row), Block::chunk);
                    kernels_.to.columns({element(pass_, row, first_k), pass_.w_dtype, pass_.w_row_stride, rows_at(row),
                                         std::min(strips.end * kStripColumns, pass_.n) - first_k, K, group, K * kPanelColumns});
                    run_cells(y_block(slab, row), group, K, columns, strips, row == 0);
                }
            }
        }
    }

    void run_cells(const Element* y, const Element* group, int64_t K, Range columns, Range strips, bool first) const {
        alignas(64) float c[kMaxBlockRows * kStripColumns] = {};  // a last strip of one panel leaves half of it alone
        Block block{};
        block.panel_rows = kPanelRows;
        block.a_panel_stride = y_panel_stride;
        block.b_panel_stride = K * kPanelColumns;
        block.K = K;
        block.c = c;
        for (int64_t column = columns.begin; column < columns.end; column += block.M) {
            block.M = std::min(kernels_.product.block_rows, columns.end - column);
            block.a = y + column / kPanelRows * y_panel_stride;
            for (int64_t strip = strips.begin; strip < strips.end; ++strip) {
                block.b = group + 2 * (strip - strips.begin) * block.b_panel_stride;
                block.n_panels = std::min<int64_t>(2, ceil_div(pass_.n, kPanelColumns) - 2 * strip);
                multiply(kernels_.product, block, true);
                double* sums = sums_at(strip, column);
                if (first) std::fill_n(sums, block.M * kStripColumns, 0.0);
                kernels_.accumulate(c, block.M * kStripColumns, sums);
            }
        }
    }

    const SvdPass& pass_;
    const Kernels& kernels_;
    int64_t strips_, y_panels_, block_bytes_, slab_rows_;
    Element* y_;
    Workspace own_workspace_;
    double* sums_;
};

}  // namespace

void project(const SvdPass& pass) {
    with_lane(pass, [&](const auto& kernels) { Project<typename std::decay_t<decltype(kernels)>::Block>(pass, kernels).run(); });
}

}  // namespace gossamer
