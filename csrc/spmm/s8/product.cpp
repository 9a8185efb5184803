// The product: what the walk over tiles of x and strips of the weight (spmm/walk.h) asks of int8 weights.
//
// A strip reads its bytes once per tile, from L2 or beyond: 5 bytes for 4 * 64 products. A tile of 64 rows is 256 KiB at K = 4096, in L2;
// the lines of a block of K (part_layout.h) stay in L1 for the strip.
//
// Small M runs the same loop with a tile of 16 rows, of which the rest is zero. A gather form (16 groups of a row at a time, VPGATHERDD of
// words of x) was tried and not taken: its bare loop needs 1.4 cycles a stored group and row of x on Zen 4, without the ends of rows, where
// the tile needs 1.6 to 2.1 for up to 16 rows. So it could win for one row alone, and there the bitmask part, which streams 1/8 + d bytes
// a weight, has half of the bytes to read at 90 % of zeros (0.23 against 0.43) and no index to wait for.
//
// Segments of 64 rows, which would load the lines of x half as often, were 5 to 10 % faster by themselves on Zen 4, but leave the threads
// half as many pieces to share.
#include <algorithm>
#include <limits>

#include "dispatch/lists.h"
#include "linear/finish.h"
#include "part.h"
#include "part_layout.h"
#include "spmm/walk.h"

namespace gossamer::spmm_s8 {
namespace {

using Tile = SpmmTile<S8Block>;

constexpr int64_t kMaxTileSums = kStripColumns * 4 * kVectorRows;

// The values of a strip's columns, zeros where the weight has none.
template <class T>
struct StripValues {
    alignas(64) T values[kStripColumns];
    StripValues(const T* all, const Cell& cell) {
        for (int64_t n = 0; n < kStripColumns; ++n) values[n] = n < cell.columns ? all[cell.first_column() + n] : T{0};
    }
};

// What spmm/walk.h asks of a weight.
class Product {
public:
    using Block = S8Block;

    Product(const ProductCall& call, const SparseWeight& weight)
        : call_(call),
          weight_(weight),
          part_{weight.spmm},
          kernels_(select_kernels(spmm_s8_list(), call.isa)),
          epilogue_(select_kernels(epilogue_list(), call.isa)) {}

    int64_t tile_vectors() const { return kernels_.tile_vectors; }
    int64_t word_bytes() const { return kernels_.word_bytes; }
    int64_t untransposed_rows() const { return 0; }
    void after_fill(const Panels<S8Block>&, Range) const {}
    void transpose(const SpmmLines<uint8_t>& l) const { kernels_.transpose_lines(l.lines, l.rows, l.x, l.word_stride); }

    int64_t blocks() const { return part_.strips(); }
    int64_t work_before(int64_t strip) const {
        constexpr int64_t kBytesOfStrip = 2048;  // transposing and finishing its sums, as bytes of groups
        return part_.offsets()[strip] - part_.offsets()[0] + strip * kBytesOfStrip;
    }
    void multiply(const Tile& tile, int64_t strip) const {
        const Cell cell = tile.cell(strip * kStripColumns, weight_.spec.N);
        weight_.spec.K <= kMaxSumK ? multiply_short(tile, cell) : multiply_long(tile, cell);
    }

private:
    // sums [rows of the tile][32] of sum block `s` (s8.h), whose first segment is at `at`. Returns where the next begins.
    const uint8_t* run(const Tile& tile, const Cell& cell, int64_t s, const uint8_t* at, int32_t* sums) const {
        const int64_t block_groups = part_.header().block_groups, sum_blocks = kMaxSumK / kGroup / block_groups;
        const int64_t first = s * sum_blocks, last = std::min(first + sum_blocks, part_.blocks());
        const int64_t rows = tile.vectors * kVectorRows;
        const StripValues<int32_t> init(weight_.init + s * weight_.layout.N16, cell);
        alignas(64) int32_t c[kMaxTileSums];
        for (int64_t block = first; block < last; ++block) {
            const Segment segment = segment_at(at);
            kernels_.run({tile.x + block * block_groups * rows * word_bytes(), tile.vectors, segment.counts, segment.words, segment.indices,
                          segment.end, block == first ? init.values : nullptr, c});
            at = segment.end;
        }
        for (int64_t n = 0; n < kStripColumns; n += 16) {
            for (int64_t m = 0; m < rows; m += 16) {
                kernels_.transpose(c + n * rows + m, rows, 16, sums + m * kStripColumns + n, kStripColumns);
            }
        }
        return at;
    }

    // The sums go straight to the output.
    void multiply_short(const Tile& tile, const Cell& cell) const {
        alignas(64) int32_t sums[kMaxTileSums];
        run(tile, cell, 0, part_.strip(cell.strip), sums);
        const StripValues<float> scales(static_cast<const float*>(weight_.scales), cell);
        const Additions added(call_, tile.panels, tile.slab, cell);
        epilogue_.finish_s32(finish_tile(call_.epilogue, tile.slab, cell, {tile.row_scales(), scales.values}, added), sums);
    }

    // K beyond what int32 holds: sum blocks add up in int64 and are converted once, as the dense product does it.
    void multiply_long(const Tile& tile, const Cell& cell) const {
        alignas(64) int32_t sums[kMaxTileSums];
        alignas(64) float converted[kMaxTileSums];
        int64_t total[kMaxTileSums] = {};
        const int64_t count = cell.rows * kStripColumns;
        const uint8_t* at = part_.strip(cell.strip);
        for (int64_t s = 0; s < ceil_div(weight_.spec.K, kMaxSumK); ++s) {
            at = run(tile, cell, s, at, sums);
            for (int64_t i = 0; i < count; ++i) total[i] += sums[i];
        }
        for (int64_t i = 0; i < count; ++i) converted[i] = static_cast<float>(total[i]);
        const StripValues<float> scales(static_cast<const float*>(weight_.scales), cell);
        const Additions added(call_, tile.panels, tile.slab, cell);
        epilogue_.finish_f32(finish_tile(call_.epilogue, tile.slab, cell, {tile.row_scales(), scales.values}, added), converted);
    }

    const ProductCall& call_;
    const SparseWeight& weight_;
    Part part_;
    const SpmmS8Kernels& kernels_;
    const EpilogueKernels& epilogue_;
};

}  // namespace

// Where skipping beats expanding, by the share of groups that are stored. Measured on Zen 4, N = K = 4096, one thread, against the dense
// int8 product (so without what expanding costs; sharing the machine with others, so that only the ratios of a run count), skip to dense:
//
//   share   zeros           AVX512-VNNI: M = 8    16    32    64    256      AVX2: M = 8    16    64
//   0.10    90 %, 1x4                    1.8   2.8   3.6   4.0   4.4               4.2   7.3   5.5
//   0.19    95 %                         0.9   1.5   2.2   2.6   2.7
//   0.34    90 %                         0.6   1.1   1.6   1.8   1.9               1.6   2.5   1.9
//   0.48    85 %                         0.7   1.0   1.2   1.5   1.5               1.0   1.8   1.4
//   0.59    80 %                         0.5   1.0   1.0   1.2   1.25              0.9   1.6   1.2
//   0.68    75 %                         0.4   0.7   0.8   0.9   1.1
//
// Below 8 rows the bitmask part is multiplied as it is read, which has no such competition here. AMX, by reasoning: it multiplies 8 times
// as fast as VPDPBUSD at best and some 4 times with its overheads, so that skipping pays below a share of 0.19, 95 % of zeros.
int64_t min_rows(const SparseWeight& weight, Isa isa) {
    constexpr int64_t kNever = std::numeric_limits<int64_t>::max();
    const double share = Part{weight.spmm}.stored_share();
    const Isa kernel = select_kernels(spmm_s8_list(), isa).isa;
    if (share > (isa >= Isa::amx ? 0.19 : 0.65)) return kNever;
    if (share <= 0.125) return 8;
    if (kernel == Isa::avx2) return share <= 0.35 ? 8 : 16;
    return share <= 0.35 ? 16 : share <= 0.5 ? 32 : 64;
}

void product(const ProductCall& call, const SparseWeight& weight) {
    if (call.M == 0) return;
    const double groups = static_cast<double>(Part{weight.spmm}.header().stored_groups);
    const double products = groups * static_cast<double>(kGroup * round_up(call.M, kVectorRows));
    const int threads = useful_threads({static_cast<double>(weight.spmm_bytes), products, 150e3}, call.threads);
    const Product product_of(call, weight);
    SpmmWalk<Product>(call, product_of).run(threads);
}

}  // namespace gossamer::spmm_s8
