// Packing and unpacking. Layout: part_layout.h.
#include "part.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <numeric>
#include <vector>

#include "gossamer/parallel.h"
#include "part_layout.h"

namespace gossamer::spmm_f32 {
namespace {

// The values of a row in [first_k, last_k); first_k is a multiple of 8, last_k one or K.
int64_t count_values(const SparseRows& rows, int64_t n, int64_t first_k, int64_t last_k) {
    const uint8_t* mask = rows.tensors.mask + n * rows.mask_stride();
    int64_t count = 0;
    for (int64_t i = first_k / 8; i < count_of(last_k, 8); ++i) count += std::popcount(mask[i]);
    return count;
}

// The rows of a tile in the order in which they are stored, and how many values each has.
struct TileRows {
    int64_t first_k, last_k;
    std::vector<int64_t> count;  // [block_rows], of row i of the block
    std::vector<uint8_t> order;  // [block_rows]

    TileRows(const SparseRows& rows, const PartHeader& header, int64_t row_block, int64_t k_block)
        : first_k(k_block * header.block_k),
          last_k(std::min(first_k + header.block_k, header.K)),
          count(static_cast<size_t>(header.block_rows)),
          order(static_cast<size_t>(header.block_rows)) {
        const int64_t first_row = row_block * header.block_rows, last_row = std::min(first_row + header.block_rows, header.N);
        for (int64_t n = first_row; n < last_row; ++n) count[static_cast<size_t>(n - first_row)] = count_values(rows, n, first_k, last_k);
        std::iota(order.begin(), order.end(), uint8_t{0});
        std::stable_sort(order.begin(), order.end(), [&](uint8_t a, uint8_t b) { return count[a] > count[b]; });
    }

    // Of the slice that begins at row `first` of the order.
    int64_t slice_count(size_t first) const { return first < order.size() ? count[order[first]] : 0; }
    Tile size() const {
        Tile tile{};
        for (size_t i = 0; slice_count(i) > 0; i += kSliceRows) ++tile.slice, tile.quad += slice_count(i);
        return tile;
    }
};

struct Plan {
    PartHeader header;
    std::vector<Tile> tiles;  // [row blocks * k blocks + 1]
};

Plan make_plan(const SparseRows& rows) {
    const int64_t N = rows.spec.N, K = rows.spec.K, nnz = rows.first_value.back();
    Plan plan{{N, K, rows_of_block(N), nnz < N * K / 16 ? kLongBlock : kShortBlock, 0, 0, nnz, 0}, {}};
    const Part part{reinterpret_cast<const uint8_t*>(&plan.header)};
    Tile end{};
    for (int64_t r = 0; r < part.row_blocks(); ++r) {
        for (int64_t k = 0; k < part.k_blocks(); ++k) {
            plan.tiles.push_back(end);
            const Tile size = TileRows(rows, plan.header, r, k).size();
            end = {end.slice + size.slice, end.quad + size.quad};
        }
    }
    plan.tiles.push_back(end);
    plan.header.slices = end.slice;
    plan.header.quads = end.quad;
    return plan;
}

// Where the next slice goes.
struct Cursor {
    SpmmF32Slice* slice;
    uint8_t* indices;
    float* values;
};

// Writes the values of one row of a tile, every fourth place. Returns where the row goes on.
const float* pack_row(const SparseRows& rows, int64_t n, const TileRows& tile, const float* from, const Cursor& to, int64_t place) {
    for (int64_t k = tile.first_k; k < tile.last_k; ++k) {
        if (!rows.stored(n, k)) continue;
        to.indices[place] = static_cast<uint8_t>(k - tile.first_k);
        to.values[place] = *from++;
        place += kSliceRows;
    }
    return from;
}

void pack_row_block(const SparseRows& rows, const Plan& plan, int64_t row_block, Cursor to) {
    const int64_t first_row = row_block * plan.header.block_rows, k_blocks = count_of(plan.header.K, plan.header.block_k);
    std::vector<const float*> next(static_cast<size_t>(plan.header.block_rows));
    for (int64_t n = first_row; n < std::min(first_row + plan.header.block_rows, plan.header.N); ++n) {
        next[static_cast<size_t>(n - first_row)] =
            static_cast<const float*>(rows.tensors.values) + rows.first_value[static_cast<size_t>(n)];
    }
    for (int64_t k_block = 0; k_block < k_blocks; ++k_block) {
        const TileRows tile(rows, plan.header, row_block, k_block);
        for (size_t first = 0; tile.slice_count(first) > 0; first += kSliceRows) {
            const int64_t count = tile.slice_count(first), places = count * kSliceRows;
            to.slice->count = static_cast<uint16_t>(count);
            std::memset(to.indices, 0, static_cast<size_t>(places));
            std::fill_n(to.values, places, 0.0f);
            for (size_t i = 0; i < kSliceRows; ++i) {
                const uint8_t row = tile.order[first + i];
                to.slice->rows[i] = row;
                if (tile.count[row] > 0) next[row] = pack_row(rows, first_row + row, tile, next[row], to, static_cast<int64_t>(i));
            }
            to = {to.slice + 1, to.indices + places, to.values + places};
        }
    }
}

bool is_zero(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits << 1 == 0;
}

// Calls visit(row of the block, k, value) for the values of a row block, by ascending k for each row.
template <class Visit>
void for_each_value(const Part& part, int64_t row_block, const Visit& visit) {
    for (int64_t k_block = 0; k_block < part.k_blocks(); ++k_block) {
        const Tile* tile = part.tiles() + row_block * part.k_blocks() + k_block;
        const uint8_t* index = part.indices() + tile->quad * kSliceRows;
        const float* value = part.values() + tile->quad * kSliceRows;
        for (int64_t s = tile[0].slice; s < tile[1].slice; ++s) {
            const SpmmF32Slice& slice = part.slices()[s];
            for (int64_t i = 0; i < slice.count * kSliceRows; ++i, ++index, ++value) {
                if (!is_zero(*value)) visit(slice.rows[i % kSliceRows], k_block * part.header().block_k + *index, *value);
            }
        }
    }
}

}  // namespace

int64_t bytes(const SparseRows& rows) {
    const Plan plan = make_plan(rows);
    return Part{reinterpret_cast<const uint8_t*>(&plan.header)}.size_bytes();
}

void pack(const SparseRows& rows, uint8_t* bytes, int threads) {
    const Plan plan = make_plan(rows);
    const Part part{reinterpret_cast<const uint8_t*>(&plan.header)};
    std::memset(bytes, 0, static_cast<size_t>(part.indices_offset()));
    std::memset(bytes + part.values_offset() - 64, 0, 64);
    std::memset(bytes + part.size_bytes() - 64, 0, 64);
    std::memcpy(bytes, &plan.header, sizeof plan.header);
    std::memcpy(bytes + part.tiles_offset(), plan.tiles.data(), plan.tiles.size() * sizeof(Tile));
    parallel(std::max(threads, 1), [&](Team team) {
        const Range share = split_range(part.row_blocks(), team.rank, team.size);
        for (int64_t r = share.begin; r < share.end; ++r) {
            const Tile first = plan.tiles[static_cast<size_t>(r * part.k_blocks())];
            pack_row_block(rows, plan, r,
                           {reinterpret_cast<SpmmF32Slice*>(bytes + part.slices_offset()) + first.slice,
                            bytes + part.indices_offset() + first.quad * kSliceRows,
                            reinterpret_cast<float*>(bytes + part.values_offset()) + first.quad * kSliceRows});
        }
    });
}

int64_t nnz(const SparseSpec&, const uint8_t* part) { return Part{part}.header().nnz; }

void unpack(const SparseSpec& spec, const uint8_t* bytes, uint8_t* mask, void* values) {
    const Part part{bytes};
    float* next = static_cast<float*>(values);
    std::vector<float*> next_value(static_cast<size_t>(part.header().block_rows));
    for (int64_t r = 0; r < part.row_blocks(); ++r) {
        // The blocks of K of all rows take turns, so where the values of a row begin is counted first.
        std::vector<int64_t> count(next_value.size());
        for_each_value(part, r, [&](uint8_t row, int64_t, float) { ++count[row]; });
        for (size_t i = 0; i < count.size(); next += count[i++]) next_value[i] = next;
        for_each_value(part, r, [&](uint8_t row, int64_t k, float value) {
            uint8_t& bits = mask[(r * part.header().block_rows + row) * count_of(spec.K, 8) + k / 8];
            bits = static_cast<uint8_t>(bits | 1u << k % 8);
            std::memcpy(next_value[row]++, &value, sizeof value);
        });
    }
}

void values(const SparseSpec& spec, const uint8_t* bytes, int64_t first_row, int64_t last_row, float* out) {
    const Part part{bytes};
    const int64_t block_rows = part.header().block_rows;
    for (int64_t r = first_row / block_rows; r * block_rows < last_row; ++r) {
        for_each_value(part, r, [&](uint8_t row, int64_t k, float value) {
            const int64_t n = r * block_rows + row;
            if (n >= first_row && n < last_row) out[(n - first_row) * spec.K + k] = value;
        });
    }
}

}  // namespace gossamer::spmm_f32
