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
    int64_t untransposed_rows() const { return 2; }  // three take as long as 16 transposed ones

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
        const int64_t first = block * part_.header().block_rows, last = std::min(first + part_.header().block_rows, part_.header().N);
        const int64_t row_sums = tile.vectors == 0 ? tile.rows : tile.vectors * kVectorRows;
        const int64_t sums_bytes = part_.header().block_rows * row_sums * static_cast<int64_t>(sizeof(float));
        float* sums = reinterpret_cast<float*>(sums_workspace.reserve(sums_bytes));
        std::memset(sums, 0, static_cast<size_t>(sums_bytes));
        for (int64_t k = 0; k < part_.k_blocks(); ++k) {
            if (tile.vectors == 0) {
                for (int64_t m = 0; m < tile.rows; ++m) run_row(tile, m, block, k, sums + m * part_.header().block_rows);
            } else {
                run(block, k, reinterpret_cast<const float*>(tile.x) + k * part_.header().block_k * row_sums, tile.vectors, sums);
            }
        }
        for (int64_t n = first; n < last; n += kStripColumns) finish(tile, tile.cell(n, last), sums, n - first);
    }

private:
    // x: at block k of K, as kernels.h says.
    void run(int64_t block, int64_t k, const float* x, int64_t vectors, float* sums) const {
        const Tile* t = part_.tiles() + block * part_.k_blocks() + k;
        const int64_t quad = t[0].quad * kSliceRows,
                      k_count = std::min(part_.header().block_k, part_.header().K - k * part_.header().block_k);
        kernels_.run({part_.slices() + t[0].slice, t[1].slice - t[0].slice, part_.indices() + quad, part_.values() + quad, x, k_count,
                      vectors, sums});
    }

    // Row m of an untransposed tile. sums [block_rows]
    void run_row(const SpmmTile<F32Block>& tile, int64_t m, int64_t block, int64_t k, float* sums) const {
        if (tile.panels.panel_rows == 1) return run(block, k, tile.panels.data + k * part_.header().block_k, 0, sums);
        alignas(64) float x[kLongBlock];
        const int64_t chunk = F32Block::chunk, first_line = k * part_.header().block_k / chunk;
        const int64_t lines = std::min(part_.header().block_k, tile.panels.K - k * part_.header().block_k) / chunk;
        for (int64_t i = 0; i < lines; ++i) {
            const float* line = tile.panels.data + ((first_line + i) * tile.panels.panel_rows + m) * chunk;
            std::memcpy(x + i * chunk, line, sizeof(float) * static_cast<size_t>(chunk));
        }
        run(block, k, x, 0, sums);
    }

    // Rows n to n + 31 of the block to the output.
    void finish(const SpmmTile<F32Block>& tile, const Cell& cell, const float* sums, int64_t n) const {
        alignas(64) float out[kMaxTileVectors * kVectorRows * kStripColumns];  // [rows][32]
        if (tile.vectors == 0) {
            for (int64_t m = 0; m < tile.rows; ++m) {
                std::memcpy(out + m * kStripColumns, sums + m * part_.header().block_rows + n, sizeof(float) * kStripColumns);
            }
        }
        for (int64_t v = 0; v < tile.vectors; ++v) {
            for (int64_t i = 0; i < kStripColumns; i += 16) {
                kernels_.transpose(sums + ((n + i) * tile.vectors + v) * kVectorRows, tile.vectors * kVectorRows, 16,
                                   out + v * kVectorRows * kStripColumns + i, kStripColumns);
            }
        }
        const Additions added(call_, tile.panels, tile.slab, cell);
        epilogue_.finish_f32(finish_tile(call_.epilogue, tile.slab, cell, {tile.row_scales(), kOneColumns.values}, added), out);
    }

    const ProductCall& call_;
    const Part& part_;
    const SpmmF32Kernels& kernels_;
    const EpilogueKernels& epilogue_;
};

}  // namespace

// Milliseconds on Zen 4, N = K = 4096, one thread (CPU time), skipping / multiplying the bitmask as it is read / expanding it:
//
//   density   M = 1 (AVX-512)      2                 4                 8               16         64            M = 1, 2, 4, 16 (AVX2)
//   0.50      1.99 / 1.88 / 4.7    5.1 / 2.1 / 5.2   5.1 / 2.3 / 5.4   5.4 / 3.4 / 6.9  5.2 / 9.3  17.2 / 25.7   2.8 / 2.1, 5.2 / 2.2, 5.1
//   / 2.6 0.30      1.12 / 1.28 / 3.6    3.3 / 1.4 / 3.9   3.4 / 1.9 / 4.3   3.5 / 3.2 / 5.6  3.5 / 8.2  10.6 / 24.3   1.5 / 1.4, 3.2
//   / 1.5, 3.2 / 2.0 0.20      0.76 / 1.14 / 3.1    2.6 / 1.3 / 3.5   2.5 / 1.9 / 3.8   2.5 / 3.2 / 5.0  2.6 / 7.6   7.4 / 23.8   1.0
//   / 1.3, 2.5 / 1.4, 2.4 / 1.8 0.10      0.53 / 1.18 / 3.0    1.7 / 1.6 / 3.6   1.7 / 2.1 / 3.6   1.7 / 3.5 / 4.8  1.7 / 7.0   5.1 / 22.9
//   0.6 / 1.3, 1.4 / 1.3, 1.4 / 1.9
//
// (2 rows have become twice one row since.) Skipping wins wherever the bitmask would be expanded, up to the density where a dense lane does
// 16 rows as fast. Against few rows multiplied as they are read it wins at 0.1, and at 0.2 for one row and for more than five; one row is
// what decoding asks for, so it decides.
int64_t min_rows(const SparseWeight& weight, Isa isa) {
    const double density = static_cast<double>(weight.nnz) / (static_cast<double>(weight.spec.N) * static_cast<double>(weight.spec.K));
    if (density > 0.75) return std::numeric_limits<int64_t>::max();
    const int64_t few_rows = select_kernels(sparse_float_list(), isa).max_rows;
    return density <= 0.25 ? 1 : few_rows + 1;
}

void product(const ProductCall& call, const SparseWeight& weight) {
    if (call.M == 0) return;
    const Part part{weight.spmm};
    const double stored = static_cast<double>(part.header().quads * kSliceRows);
    const int threads = useful_threads({5 * stored, stored * static_cast<double>(call.M), 20e3}, call.threads);
    const Product product_of(call, part);
    SpmmWalk<Product>(call, product_of).run(threads);
}

}  // namespace gossamer::spmm_f32
