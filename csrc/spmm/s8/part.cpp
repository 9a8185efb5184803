// Packing, checking and unpacking. Layout: part_layout.h.
#include "part.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "gossamer/parallel.h"
#include "part_layout.h"

namespace gossamer::spmm_s8 {
namespace {

// The mask of 16 groups of row n, from group `first` on, a multiple of 16: four bits each, zeros beyond K.
uint64_t mask_of_groups(const SparseRows& rows, int64_t n, int64_t first) {
    uint64_t mask = 0;
    const int64_t at = first / 2, bytes = std::min<int64_t>(8, rows.mask_stride() - at);
    for (int64_t i = 0; i < bytes; ++i) mask |= uint64_t{rows.tensors.mask[n * rows.mask_stride() + at + i]} << 8 * i;
    return mask;
}

// The lowest bit of each four of which one is set.
uint64_t any_of_four(uint64_t mask) { return (mask | mask >> 1 | mask >> 2 | mask >> 3) & 0x1111111111111111; }

// Stored groups of row n from group `first`, a multiple of 16, to `last`.
int64_t count_groups(const SparseRows& rows, int64_t n, int64_t first, int64_t last) {
    int64_t stored = 0;
    for (int64_t group = first; group < last; group += 16) stored += std::popcount(any_of_four(mask_of_groups(rows, n, group)));
    return stored;
}

struct Plan {
    int64_t groups, stored_groups, block_groups, blocks;
    std::vector<int64_t> offsets;  // [strips + 1]

    int64_t count(const SparseRows& rows, int64_t n, int64_t block) const {
        return count_groups(rows, n, block * block_groups, std::min((block + 1) * block_groups, groups));
    }
};

Plan make_plan(const SparseRows& rows) {
    const int64_t N = rows.spec.N;
    Plan plan{};
    plan.groups = count_of(rows.spec.K, kGroup);
    for (int64_t n = 0; n < N; ++n) plan.stored_groups += count_groups(rows, n, 0, plan.groups);
    plan.block_groups = plan.stored_groups < N * plan.groups / 8 ? kLongBlock : kShortBlock;
    plan.blocks = count_of(plan.groups, plan.block_groups);
    const int64_t strips = count_of(N, kStripColumns);
    plan.offsets.push_back(first_offset(strips));
    for (int64_t s = 0; s < strips; ++s) {
        int64_t bytes = 0;
        for (int64_t block = 0; block < plan.blocks; ++block) {
            int64_t stored = 0;
            for (int64_t n = s * kStripColumns; n < std::min(N, (s + 1) * kStripColumns); ++n) {
                stored += plan.count(rows, n, block);
            }
            bytes += segment_bytes(stored);
        }
        plan.offsets.push_back(plan.offsets.back() + bytes);
    }
    return plan;
}

// One row of the weight on its way into a segment.
struct PackedRow {
    const int8_t* next_value;
    int8_t* words;
    uint8_t* indices;

    void pack(const SparseRows& rows, const Plan& plan, int64_t n, int64_t block) {
        const int64_t first = block * plan.block_groups, last = std::min(first + plan.block_groups, plan.groups);
        for (int64_t group = first; group < last; group += 16) {
            const uint64_t mask = mask_of_groups(rows, n, group);
            for (uint64_t left = any_of_four(mask); left != 0; left &= left - 1) {
                const int bit = std::countr_zero(left);
                for (int j = 0; j < kGroup; ++j) *words++ = (mask >> (bit + j) & 1) != 0 ? *next_value++ : int8_t{0};
                *indices++ = static_cast<uint8_t>(group - first + bit / 4);
            }
        }
    }
};

void pack_strip(const SparseRows& rows, const Plan& plan, int64_t strip, uint8_t* to) {
    const int64_t first_row = strip * kStripColumns, height = std::min(kStripColumns, rows.spec.N - first_row);
    const int8_t* values = static_cast<const int8_t*>(rows.tensors.values);
    const int8_t* next_value[kStripColumns];
    for (int64_t n = 0; n < height; ++n) next_value[n] = values + rows.first_value[static_cast<size_t>(first_row + n)];
    for (int64_t block = 0; block < plan.blocks; ++block) {
        uint16_t counts[kStripColumns] = {};
        for (int64_t n = 0; n < height; ++n) counts[n] = static_cast<uint16_t>(plan.count(rows, first_row + n, block));
        const int64_t stored = stored_in(counts), bytes = segment_bytes(stored);
        std::memset(to + bytes - 16, 0, 16);
        std::memcpy(to, counts, sizeof counts);
        uint8_t* words = to + sizeof counts;
        PackedRow row{nullptr, reinterpret_cast<int8_t*>(words), words + stored * kGroup};
        for (int64_t n = 0; n < height; ++n) {
            row.next_value = next_value[n];
            row.pack(rows, plan, first_row + n, block);
            next_value[n] = row.next_value;
        }
        to += bytes;
    }
}

// Calls visit(n, group, bytes of the word) for the stored groups of a strip, row by row within each block.
template <class Visit>
void for_each_group(const Part& part, int64_t strip, const Visit& visit) {
    const uint8_t* at = part.strip(strip);
    for (int64_t block = 0; block < part.blocks(); ++block) {
        const Segment segment = segment_at(at);
        const int8_t* word = reinterpret_cast<const int8_t*>(segment.words);
        const uint8_t* index = segment.indices;
        for (int64_t n = 0; n < kStripColumns; ++n) {
            for (int64_t i = 0; i < segment.counts[n]; ++i, word += kGroup, ++index) {
                visit(strip * kStripColumns + n, block * part.header().block_groups + *index, word);
            }
        }
        at = segment.end;
    }
}

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument("sparse-int8: part spmm: " + what); }

void check_header(const SparseSpec& spec, const Part& part, int64_t part_bytes) {
    if (part_bytes < static_cast<int64_t>(sizeof(PartHeader)))
        refuse("got " + std::to_string(part_bytes) + " bytes, wanted a header of 64");
    const PartHeader& h = part.header();
    if (h.N != spec.N || h.K != spec.K) {
        refuse("got N = " + std::to_string(h.N) + ", K = " + std::to_string(h.K) + ", wanted those of the weight");
    }
    if (h.block_groups != kShortBlock && h.block_groups != kLongBlock) {
        refuse("got blocks of " + std::to_string(h.block_groups) + " groups, wanted 128 or 256");
    }
    const int64_t first = first_offset(part.strips());
    if (part_bytes < first) refuse("got " + std::to_string(part_bytes) + " bytes, wanted " + std::to_string(first) + " or more");
    const int64_t* offsets = part.offsets();
    const int64_t end = offsets[part.strips()];
    if (offsets[0] != first || end < first || end > part_bytes || round_up(end, 64) != part_bytes) {
        refuse("got strips from byte " + std::to_string(offsets[0]) + " to " + std::to_string(end) + " of " + std::to_string(part_bytes));
    }
    for (int64_t s = 0; s < part.strips(); ++s) {
        if (offsets[s] > offsets[s + 1] || offsets[s] % 16 != 0) refuse("the offset of strip " + std::to_string(s) + " is wrong");
    }
}

// That the segments fill their strip, and neither counts nor indices leave their block. Returns the stored groups.
int64_t check_segments(const Part& part, int64_t strip) {
    const int64_t rows = std::min(kStripColumns, part.header().N - strip * kStripColumns), block_groups = part.header().block_groups;
    const uint8_t* at = part.strip(strip);
    const uint8_t* const end = part.strip(strip + 1);
    int64_t stored = 0;
    for (int64_t block = 0; block < part.blocks(); ++block) {
        bool right = end - at >= segment_bytes(0);
        const uint16_t* counts = reinterpret_cast<const uint16_t*>(at);
        for (int64_t n = 0; right && n < kStripColumns; ++n) right = counts[n] <= (n < rows ? block_groups : 0);
        right = right && end - at >= segment_bytes(stored_in(counts));
        if (!right) refuse("a row of strip " + std::to_string(strip) + " has too many groups");
        const Segment segment = segment_at(at);
        const int64_t groups = stored_in(counts);
        for (int64_t i = 0; i < groups; ++i) right = right && segment.indices[i] < block_groups;
        if (!right) refuse("strip " + std::to_string(strip) + " has a group out of its block");
        stored += groups;
        at = segment.end;
    }
    if (at != end) refuse("strip " + std::to_string(strip) + " has " + std::to_string(end - at) + " bytes too many");
    return stored;
}

// Ascending groups within K, each with a value, none beyond K. Returns how many values.
int64_t check_groups(const Part& part, int64_t strip) {
    const int64_t last_group = part.groups() - 1;
    const uint32_t within_k = ~uint32_t{0} >> 8 * (part.groups() * kGroup - part.header().K);
    int64_t nnz = 0, row = -1, before = -1;
    bool wrong = false;
    for_each_group(part, strip, [&](int64_t n, int64_t group, const int8_t* word) {
        uint32_t bits;
        std::memcpy(&bits, word, sizeof bits);
        before = n == row ? before : -1;  // the next row, or the same one in a later block
        wrong |= (group <= before) | (group > last_group) | (bits == 0) | ((group == last_group) & ((bits & ~within_k) != 0));
        nnz += std::popcount((bits | ((bits & 0x7f7f7f7f) + 0x7f7f7f7f)) & 0x80808080);
        row = n;
        before = group;
    });
    if (wrong) refuse("strip " + std::to_string(strip) + " has a group out of order, out of K, or empty");
    return nnz;
}

}  // namespace

int64_t bytes(const SparseRows& rows) { return round_up(make_plan(rows).offsets.back(), 64); }

void pack(const SparseRows& rows, uint8_t* part, int threads) {
    const Plan plan = make_plan(rows);
    const int64_t strips = count_of(rows.spec.N, kStripColumns);
    std::memset(part, 0, static_cast<size_t>(plan.offsets[0]));
    const PartHeader header{rows.spec.N, rows.spec.K, plan.block_groups, plan.stored_groups, rows.first_value.back(), {}};
    std::memcpy(part, &header, sizeof header);
    std::memcpy(part + sizeof header, plan.offsets.data(), plan.offsets.size() * sizeof(int64_t));
    parallel(std::max(threads, 1), [&](Team team) {
        const Range range = split_range(strips, team.rank, team.size);
        for (int64_t s = range.begin; s < range.end; ++s) pack_strip(rows, plan, s, part + plan.offsets[static_cast<size_t>(s)]);
    });
    const int64_t end = plan.offsets.back();
    std::memset(part + end, 0, static_cast<size_t>(round_up(end, 64) - end));
}

void check(const SparseSpec& spec, const uint8_t* bytes, int64_t part_bytes) {
    const Part part{bytes};
    check_header(spec, part, part_bytes);
    int64_t stored = 0, nnz = 0;
    for (int64_t s = 0; s < part.strips(); ++s) {
        stored += check_segments(part, s);
        nnz += check_groups(part, s);
    }
    if (nnz != part.header().nnz || stored != part.header().stored_groups) {
        refuse("found " + std::to_string(nnz) + " values in " + std::to_string(stored) + " groups, wanted as many as its header says");
    }
}

int64_t nnz(const SparseSpec&, const uint8_t* part) { return Part{part}.header().nnz; }

void unpack(const SparseSpec& spec, const uint8_t* bytes, uint8_t* mask, void* values) {
    const Part part{bytes};
    int8_t* next = static_cast<int8_t*>(values);
    for (int64_t s = 0; s < part.strips(); ++s) {
        // Blocks of all 32 rows take turns, so where the values of a row begin is counted first.
        int64_t count[kStripColumns] = {};
        for_each_group(part, s, [&](int64_t n, int64_t, const int8_t* word) {
            for (int64_t j = 0; j < kGroup; ++j) count[n % kStripColumns] += word[j] != 0;
        });
        int8_t* next_value[kStripColumns];
        for (int64_t n = 0; n < kStripColumns; next += count[n++]) next_value[n] = next;
        for_each_group(part, s, [&](int64_t n, int64_t group, const int8_t* word) {
            uint8_t* bits = mask + n * count_of(spec.K, 8) + group / 2;
            for (int64_t j = 0; j < kGroup; ++j) {
                if (word[j] == 0) continue;
                *bits = static_cast<uint8_t>(*bits | 1u << (group % 2 * 4 + j));
                *next_value[n % kStripColumns]++ = word[j];
            }
        });
    }
}

void values(const SparseSpec& spec, const uint8_t* bytes, int64_t first_row, int64_t last_row, float* out) {
    const Part part{bytes};
    for (int64_t s = first_row / kStripColumns; s * kStripColumns < last_row; ++s) {
        for_each_group(part, s, [&](int64_t n, int64_t group, const int8_t* word) {
            if (n < first_row || n >= last_row) return;
            const int64_t first_k = group * kGroup, last_k = std::min(first_k + kGroup, spec.K);
            for (int64_t k = first_k; k < last_k; ++k) out[(n - first_row) * spec.K + k] = word[k - first_k];
        });
    }
}

}  // namespace gossamer::spmm_s8
