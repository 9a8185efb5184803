// The skip-compute product with sparse fp32 weights. Contract: spmm.h.
#include <algorithm>
#include <cstring>
#include <limits>

#include "dispatch/lists.h"
#include "gossamer/f32.h"
#include "linear/finish.h"
#include "part.h"
#include "part_layout.h"
#include "spmm/walk.h"

namespace gossamer::spmm_f32 {
namespace {

constexpr int64_t kMaxTileVectors = 4;

thread_local Workspace sums_workspace;

// What spmm/walk.h asks of a weight.
class Product {
public:
    using Block = F32Block;

    Product(const ProductCall& call, const Part& part)
        : call_(call),
          part_(part),
          kernels_(select_kernels(spmm_f32_list(), call.isa)),
          epilogue_(select_kernels(epilogue_list(), call.isa)) {}

    int64_t tile_vectors() const { return kernels_.tile_vectors; }
    int64_t word_bytes() const { return sizeof(float); }
    bool takes_row() const { return true; }

    // A zero weight times NaN or infinity is NaN, in every column.
    void after_fill(const Panels<F32Block>& a, Range rows) const {
        for (int64_t m = rows.begin; m < rows.end; ++m) {
            const int64_t line_stride = a.panel_rows * F32Block::chunk;
            const float* line = a.at(m) + m % a.panel_rows * F32Block::chunk;
            a.scale[m] = kernels_.finite(line, line_stride, a.K / F32Block::chunk) ? 1.0f : std::numeric_limits<float>::quiet_NaN();
        }
    }

    void transpose(const SpmmLines<float>& l) const {
        kernels_.transpose(l.lines, F32Block::chunk, l.rows, reinterpret_cast<float*>(l.x), l.word_stride / word_bytes());
    }

    int64_t blocks() const { return part_.row_blocks(); }
    int64_t work_before(int64_t block) const {
        constexpr int64_t kRowWork = 16;  // transposing and finishing the sums of a row, in stored values
        return part_.tiles()[block * part_.k_blocks()].quad * kSliceRows + block * part_.header().block_rows * kRowWork;
    }

    void multiply(const SpmmTile<F32Block>& tile, int64_t block) const {
        const int64_t columns = std::max<int64_t>(1, tile.vectors * kVectorRows);
        const int64_t first = block * part_.header().block_rows, last = std::min(first + part_.header().block_rows, part_.header().N);
        const float* sums = run(tile, block, columns);
        for (int64_t n = first; n < last; n += kStripColumns, sums += kStripColumns * columns) finish(tile, tile.cell(n, last), sums);
    }

private:
    // [block_rows][columns]
    const float* run(const SpmmTile<F32Block>& tile, int64_t block, int64_t columns) const {
        const int64_t sums_bytes = part_.header().block_rows * columns * static_cast<int64_t>(sizeof(float));
        float* sums = reinterpret_cast<float*>(sums_workspace.reserve(sums_bytes));
        std::memset(sums, 0, static_cast<size_t>(sums_bytes));
        const Tile* of_weight = part_.tiles() + block * part_.k_blocks();
        for (int64_t k = 0; k < part_.k_blocks(); ++k) {
            const Tile& t = of_weight[k];
            const int64_t first_k = k * part_.header().block_k;
            kernels_.run({part_.slices() + t.slice, of_weight[k + 1].slice - t.slice, part_.indices() + t.quad * kSliceRows,
                          part_.values() + t.quad * kSliceRows, reinterpret_cast<const float*>(tile.x) + first_k * columns,
                          std::min(part_.header().block_k, part_.header().K - first_k), tile.vectors, sums});
        }
        return sums;
    }

    // 32 rows of sums to the output.
    void finish(const SpmmTile<F32Block>& tile, const Cell& cell, const float* sums) const {
        alignas(64) float transposed[kMaxTileVectors * kVectorRows * kStripColumns];
        for (int64_t v = 0; v < tile.vectors; ++v) {
            for (int64_t n = 0; n < kStripColumns; n += 16) {
                kernels_.transpose(sums + (n * tile.vectors + v) * kVectorRows, tile.vectors * kVectorRows, 16,
                                   transposed + v * kVectorRows * kStripColumns + n, kStripColumns);
            }
        }
        const StripBias bias(call_.epilogue, cell);
        epilogue_.finish_f32(finish_tile(call_.epilogue, tile.slab, cell, {tile.row_scales(), kOneColumns.values}, bias),
                             tile.vectors == 0 ? sums : transposed);
    }

    const ProductCall& call_;
    const Part& part_;
    const SpmmF32Kernels& kernels_;
    const EpilogueKernels& epilogue_;
};

}  // namespace

int64_t min_rows(const SparseWeight&, Isa) { return 16; }

void product(const ProductCall& call, const SparseWeight& weight) {
    if (call.M == 0) return;
    const Part part{weight.spmm};
    const double stored = static_cast<double>(part.header().quads * kSliceRows);
    const int threads = useful_threads({5 * stored, stored * static_cast<double>(call.M), 20e3}, call.threads);
    const Product product_of(call, part);
    SpmmWalk<Product>(call, product_of).run(threads);
}

}  // namespace gossamer::spmm_f32
