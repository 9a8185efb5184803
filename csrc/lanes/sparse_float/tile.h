// Expanding lines and the register tile for few rows, written once over the vector type. An ISA's file defines, then includes this:
//
//   struct Line                                            64 bytes: 16 dwords or 32 words
//   Line expand_dwords(const uint8_t*& values, uint32_t mask), expand_words(...)    the values of the set bits, zeros elsewhere; `values`
//                                                          moves on; up to 64 bytes are read behind the last of them
//   void store_line(uint8_t*, Line)
//   Line even_words(Line), odd_words(Line)                 the bf16 of k and of k + 1, widened to fp32
//   struct Sums; Sums broadcast(float), add(Sums, Sums); void store(float*, Sums)     of 16 columns
//   Sums dot(Sums sum, const float* a, Line line)          sum += *a * line
//   Sums dot(Sums sum, const uint16_t* a, Line line)       where it has products of bf16: sum += a[0] * even + a[1] * odd
//   Sums add_zero_times(Sums sum, const float* a)          sum += 0 * 64 bytes of A; likewise for bf16
//   constexpr int kMaxRows, kSums                          rows of a tile, sums that it keeps in registers
//
// A tile is rows x chains: `chains` splits K so that few rows still have enough independent sums to hide the latency. Several lines are
// expanded before the first is multiplied: one by one, Zen 4 distributed the two kinds of work over its ports so badly that 3 rows took
// half as long again. All M rows share one expansion.
//
// What binds (Zen 4, 4096 x 4096 fp32, one row, one thread): bytes up to about three quarters zeros; above, a line of 16 weights takes 3
// cycles however few are left. Pattern 16x1 alone goes on, since it skips the lines that are not there.
//
// The only chain of the expansion is the address of the values, one addition a line: the masks are known long before, so their counts wait
// for nobody, and a prefix sum over several masks would gain nothing.
//
// Tried and lost: expanding into L1 for the kernels of the dense lane, slower for every number of rows up to kMaxRows (twice as slow for
// one, a quarter for 8); unrolling the loop of `expand`; skipping 16x1 where more than a quarter of the lines are there.
#pragma once
#include <cstdint>

#include "masks.h"

namespace gossamer {
namespace {

template <SparsePattern pattern, int word>
inline Line next_line(const uint8_t*& values, const uint8_t* masks, int64_t line) {
    const uint32_t mask = mask_of_line<pattern, word>(masks, line);
    // Two words of a column that come together are a dword.
    if constexpr (word == 1 || has_column_bits(pattern)) {
        return expand_dwords(values, mask);
    } else {
        return expand_words(values, mask);
    }
}

// Calls f<pattern>().
template <class F>
inline void for_pattern(SparsePattern pattern, const F& f) {
    switch (pattern) {
        case SparsePattern::any: return f.template operator()<SparsePattern::any>();
        case SparsePattern::b1x4: return f.template operator()<SparsePattern::b1x4>();
        case SparsePattern::b1x16: return f.template operator()<SparsePattern::b1x16>();
        case SparsePattern::b4x1: return f.template operator()<SparsePattern::b4x1>();
        case SparsePattern::b16x1: return f.template operator()<SparsePattern::b16x1>();
    }
}

template <int word, class T>
void expand(const SparseLines& b, T* out) {
    for_pattern(b.pattern, [&]<SparsePattern pattern>() {
        const uint8_t* values = b.values;
        for (int64_t line = 0; line < b.lines; ++line) {
            store_line(reinterpret_cast<uint8_t*>(out) + line * 64, next_line<pattern, word>(values, b.masks, line));
        }
    });
}

// What a line gives the sums: `products` vectors of B, each with `word / products` elements of A.
struct F32Lines {
    using A = float;
    static constexpr int word = 1, products = 1;
    static Line product(Line line, int) { return line; }
};
struct Bf16LinesF32 {
    using A = float;
    static constexpr int word = 2, products = 2;
    static Line product(Line line, int p) { return p == 0 ? even_words(line) : odd_words(line); }
};
struct Bf16Lines {
    using A = uint16_t;
    static constexpr int word = 2, products = 1;
    static Line product(Line line, int) { return line; }
};

// Where the values are fetched in advance, once for two lines: the hardware's prefetch alone left a sixth of the time on the table.
constexpr int64_t kPrefetchBytes = 2048;

constexpr int chains_of(int rows) { return rows * 4 <= kSums ? 4 : rows * 2 <= kSums ? 2 : 1; }

template <class Lines, SparsePattern pattern, int rows>
void run_tile(const SparseFloatRows<typename Lines::A>& block) {
    constexpr int64_t chunk = 64 / sizeof(typename Lines::A), chunk_lines = chunk / Lines::word;
    constexpr int chains = chains_of(rows), together = rows > 1 ? 2 : 4;
    Sums sums[chains][rows];
#pragma GCC unroll 8
    for (int u = 0; u < chains; ++u) {
#pragma GCC unroll 8
        for (int r = 0; r < rows; ++r) sums[u][r] = broadcast(0.0f);
    }
    const typename Lines::A* a = block.a;
    const uint8_t* values = block.b.values;
    for (int64_t first = 0; first < block.b.lines; first += chunk_lines, a += block.panel_rows * chunk) {
        for (int64_t i = 0; i < chunk_lines; i += together) {
            Line lines[together];
#pragma GCC unroll 2
            for (int u = 0; u < (together + 1) / 2; ++u) __builtin_prefetch(values + kPrefetchBytes + 64 * u);
#pragma GCC unroll 4
            for (int u = 0; u < together; ++u) lines[u] = next_line<pattern, Lines::word>(values, block.b.masks, first + i + u);
#pragma GCC unroll 8
            for (int p = 0; p < together * Lines::products; ++p) {
                const Line product = Lines::product(lines[p / Lines::products], p % Lines::products);
                const typename Lines::A* words = a + i * Lines::word + p * (Lines::word / Lines::products);
#pragma GCC unroll 8
                for (int r = 0; r < rows; ++r) sums[p % chains][r] = dot(sums[p % chains][r], words + r * chunk, product);
            }
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
        Sums sum = sums[0][r];
#pragma GCC unroll 8
        for (int u = 1; u < chains; ++u) sum = add(sum, sums[u][r]);
        store(block.c + r * kStripColumns, sum);
    }
}

// Pattern 16x1: a bit for each of up to 64 k, of a line that holds something the lowest.
template <int word>
inline uint64_t present_lines(const SparseLines& b, int64_t first_k) {
    const int64_t count = b.lines * word - first_k < 64 ? b.lines * word - first_k : 64;
    uint64_t bits = 0;
    std::memcpy(&bits, b.masks + first_k / 8, static_cast<size_t>(count / 8));
    return word == 2 ? (bits | bits >> 1) & 0x5555555555555555 : bits;
}

// Whether skipping costs less than multiplying zeros: a branch that is not foreseen costs as much as a few lines.
template <int word>
bool mostly_absent(const SparseLines& b) {
    int64_t present = 0;
    for (int64_t k = 0; k < b.lines * word; k += 64) present += __builtin_popcountll(present_lines<word>(b, k));
    return present * 4 <= b.lines;
}

// Whether zero times x is zero in all rows.
template <class A>
bool all_finite(const SparseFloatRows<A>& block, int64_t K) {
    constexpr int64_t chunk = 64 / sizeof(A);
    Sums sums = broadcast(0.0f);
    for (int64_t k = 0; k < K; k += chunk) {
        for (int64_t m = 0; m < block.M; ++m) sums = add_zero_times(sums, block.a + k * block.panel_rows + m * chunk);
    }
    float columns[kPanelColumns], total = 0;
    store(columns, sums);
    for (const float x : columns) total += x;
    return total == 0;
}

// The lines of pattern 16x1 that hold something, for rows that are finite.
template <class Lines, int rows>
void run_present(const SparseFloatRows<typename Lines::A>& block) {
    constexpr int64_t word = Lines::word, chunk = 64 / sizeof(typename Lines::A);
    Sums sums[Lines::products][rows];
#pragma GCC unroll 2
    for (int p = 0; p < Lines::products; ++p) {
#pragma GCC unroll 8
        for (int r = 0; r < rows; ++r) sums[p][r] = broadcast(0.0f);
    }
    const uint8_t* values = block.b.values;
    for (int64_t first = 0; first < block.b.lines * word; first += 64) {
        for (uint64_t present = present_lines<word>(block.b, first); present != 0; present &= present - 1) {
            const int64_t k = first + __builtin_ctzll(present);
            const Line line = next_line<SparsePattern::b16x1, word>(values, block.b.masks, k / word);
            const typename Lines::A* words = block.a + k / chunk * chunk * block.panel_rows + k % chunk;
#pragma GCC unroll 2
            for (int p = 0; p < Lines::products; ++p) {
                const Line product = Lines::product(line, p);
#pragma GCC unroll 8
                for (int r = 0; r < rows; ++r) sums[p][r] = dot(sums[p][r], words + r * chunk + p, product);
            }
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
        const Sums sum = Lines::products == 2 ? add(sums[0][r], sums[Lines::products - 1][r]) : sums[0][r];
        store(block.c + r * kStripColumns, sum);
    }
}

template <class Lines, SparsePattern pattern, int rows = kMaxRows>
void run_rows(const SparseFloatRows<typename Lines::A>& block) {
    if constexpr (rows > 1) {
        if (block.M < rows) return run_rows<Lines, pattern, rows - 1>(block);
    }
    if constexpr (pattern == SparsePattern::b16x1) {
        const bool skip = mostly_absent<Lines::word>(block.b) && all_finite(block, block.b.lines * Lines::word);
        if (skip) return run_present<Lines, rows>(block);
    }
    run_tile<Lines, pattern, rows>(block);
}

template <class Lines>
void run(const SparseFloatRows<typename Lines::A>& block) {
    for_pattern(block.b.pattern, [&]<SparsePattern pattern>() { run_rows<Lines, pattern>(block); });
}

}  // namespace
}  // namespace gossamer
