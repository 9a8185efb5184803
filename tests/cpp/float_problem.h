// One product of the bf16 or f32 lane: logical matrices of real values, the same in the panels of lane.h, the driver's loop over blocks,
// and the product in fp64.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "check.h"
#include "gossamer/cpu.h"
#include "gossamer/lane.h"
#include "guarded.h"
#include "random.h"
#include "reference/reference.h"

namespace gossamer::test {

inline void encode(double x, float& element) { element = static_cast<float>(x); }
inline void encode(double x, uint16_t& element) { element = reference::to_bf16(x); }
inline double decode(float element) { return static_cast<double>(element); }
inline double decode(uint16_t element) { return reference::load(&element, DType::bf16, 0); }

struct FloatShape {
    int64_t M, K, n_panels, panel_rows;
    int64_t first_k = 0;  // where the block starts in its panels, for groups shorter than a chunk
    int64_t spare = 0;    // elements between panels that are not the block's

    int64_t N() const { return n_panels * kPanelColumns; }
    int64_t row_panels() const { return (M + panel_rows - 1) / panel_rows; }
    std::string text() const {
        return "M = " + std::to_string(M) + ", K = " + std::to_string(K) + ", N = " + std::to_string(N()) +
               ", R = " + std::to_string(panel_rows) + ", first k = " + std::to_string(first_k);
    }
};

template <class Block>
struct FloatProblem {
    using Element = typename Block::A;

    FloatShape shape;
    Guarded<Element> a, b;
    Guarded<float> init, c;
    std::vector<float> start;  // [M, N] what c holds before

    int64_t stored_k() const { return (shape.first_k + shape.K + Block::chunk - 1) / Block::chunk * Block::chunk; }
    int64_t a_stride() const { return shape.panel_rows * stored_k() + shape.spare; }
    int64_t b_stride() const { return kPanelColumns * stored_k() + shape.spare; }

    // Uniform in [-1, 1); what is not the block's is NaN.
    FloatProblem(const FloatShape& s, Random& random)
        : shape(s),
          a(s.row_panels() * a_stride() - s.spare),
          b(s.n_panels * b_stride() - s.spare),
          init(s.N()),
          c(s.row_panels() * s.panel_rows * kStripColumns) {
        const double nan = std::numeric_limits<double>::quiet_NaN();
        for (Element& x : a) encode(nan, x);
        for (Element& x : b) encode(nan, x);
        for (int64_t i = 0; i < s.M * s.K; ++i) set_a(i / s.K, i % s.K, random.uniform());
        for (int64_t i = 0; i < s.N() * s.K; ++i) set_b(i / s.K, i % s.K, random.uniform());
        for (float& x : init) x = static_cast<float>(random.uniform());
        for (int64_t i = 0; i < s.M * s.N(); ++i) start.push_back(static_cast<float>(random.uniform()));
    }

    int64_t a_index(int64_t m, int64_t k) const {
        const int64_t R = shape.panel_rows, line = (shape.first_k + k) / Block::chunk, in_line = (shape.first_k + k) % Block::chunk;
        return m / R * a_stride() + (line * R + m % R) * Block::chunk + in_line;
    }
    int64_t b_index(int64_t n, int64_t k) const {
        const int64_t word = (shape.first_k + k) / Block::word, in_word = (shape.first_k + k) % Block::word;
        return n / kPanelColumns * b_stride() + (word * kPanelColumns + n % kPanelColumns) * Block::word + in_word;
    }
    void set_a(int64_t m, int64_t k, double x) { encode(x, a[a_index(m, k)]); }
    void set_b(int64_t n, int64_t k, double x) { encode(x, b[b_index(n, k)]); }

    // Calls the kernel as the driver does, in blocks that it allows, and returns c [M, N].
    std::vector<float> run(const LaneKernels<Block>& kernel, bool from_init) {
        const int64_t R = shape.panel_rows, N = shape.N(), block_rows = kernel.block_rows / R * R;
        for (int64_t i = 0; i < shape.M * N; ++i) c[i / N * kStripColumns + i % N] = start[static_cast<size_t>(i)];
        if (kernel.begin != nullptr) kernel.begin(R);
        for (int64_t m = 0; m < shape.M; m += block_rows) {
            Block block{};
            block.panel_rows = R;
            block.a_panel_stride = a_stride();
            block.b_panel_stride = b_stride();
            block.n_panels = shape.n_panels;
            block.M = std::min(block_rows, shape.M - m);
            block.c = c.data() + m * kStripColumns;
            for (int64_t k = 0; k < shape.K; k += block.K) {
                block.K = std::min(kernel.block_k, shape.K - k);
                block.a = a.data() + a_index(m, k);
                block.b = b.data() + b_index(0, k);
                block.init = k == 0 && from_init ? init.data() : nullptr;
                kernel.run(block);
            }
        }
        if (kernel.end != nullptr) kernel.end();
        std::vector<float> out;
        for (int64_t i = 0; i < shape.M * N; ++i) out.push_back(c[i / N * kStripColumns + i % N]);
        return out;
    }

    struct Exact {
        double value, magnitude;  // the sum, and the sum of the absolute values
    };
    Exact exact(int64_t m, int64_t n, bool from_init) const {
        const double before = static_cast<double>(from_init ? init[n] : start[static_cast<size_t>(m * shape.N() + n)]);
        Exact sum{before, std::fabs(before)};
        for (int64_t k = 0; k < shape.K; ++k) {
            const double product = decode(a[a_index(m, k)]) * decode(b[b_index(n, k)]);
            sum.value += product;
            sum.magnitude += std::fabs(product);
        }
        return sum;
    }
};

template <class Block>
void check_float_shape(const FloatShape& shape, std::span<const LaneKernels<Block>* const> list, Random& random) {
    FloatProblem<Block> problem(shape, random);
    for (const bool from_init : {true, false}) {
        std::vector<typename FloatProblem<Block>::Exact> wanted;
        for (int64_t i = 0; i < shape.M * shape.N(); ++i) wanted.push_back(problem.exact(i / shape.N(), i % shape.N(), from_init));
        for (const LaneKernels<Block>* kernel : list) {
            if (!isa_available(kernel->isa)) continue;
            const std::vector<float> got = problem.run(*kernel, from_init);
            const std::string what = std::string(isa_name(kernel->isa)) + (from_init ? " from init: " : " from c: ") + shape.text();
            for (size_t i = 0; i < wanted.size(); ++i) {
                check_near(got[i], wanted[i].value, static_cast<double>(shape.K) * 0x1p-23 * wanted[i].magnitude, what);
            }
        }
    }
}

// Every row count, panel count and length of K that takes a path of its own.
template <class Block>
void test_shapes(std::span<const LaneKernels<Block>* const> list) {
    Random random(1);
    constexpr int64_t chunk = Block::chunk;
    for (const int64_t n_panels : {1, 2}) {
        for (int64_t M = 1; M <= 17; ++M) {
            for (const int64_t K : {chunk, 2 * chunk, 5 * chunk}) {
                check_float_shape<Block>({M, K, n_panels, std::min(M, kPanelRows)}, list, random);
            }
        }
        for (const int64_t M : {31, 33, 128, 145}) check_float_shape<Block>({M, 3 * chunk, n_panels, kPanelRows}, list, random);
        for (const int64_t M : {1, 2, 5, 33}) {
            check_float_shape<Block>({M, 3 * chunk, n_panels, std::min(M, kPanelRows), 0, 7 * chunk}, list, random);
        }
        // Several blocks of every kernel, the last one short.
        for (const int64_t M : {1, 3, 17}) check_float_shape<Block>({M, 1024 + chunk, n_panels, std::min(M, kPanelRows)}, list, random);
    }
}

// Panels of fewer than 16 rows, and more than one of them.
template <class Block>
void test_short_panels(std::span<const LaneKernels<Block>* const> list) {
    Random random(2);
    for (const int64_t R : {1, 2, 3, 4, 5, 7, 8, 13, 15}) {
        for (const int64_t M : {R, 2 * R, 3 * R - 1}) check_float_shape<Block>({M, 2 * Block::chunk, 2, R}, list, random);
    }
}

// Groups shorter than a chunk, first and second in their chunk.
template <class Block>
void test_short_groups(std::span<const LaneKernels<Block>* const> list) {
    Random random(3);
    for (const int64_t M : {1, 2, 3, 4, 5, 8, 16, 33}) {
        for (const int64_t K : {4 * Block::word, 8 * Block::word}) {
            for (const int64_t first_k : {int64_t{0}, 8 * Block::word}) {
                for (const int64_t n_panels : {1, 2}) {
                    check_float_shape<Block>({M, K, n_panels, std::min(M, kPanelRows), first_k}, list, random);
                }
            }
        }
    }
}

// A NaN or an infinity in a row of A, or a column of B, reaches every sum it is part of and no other.
template <class Block>
void test_special_values(std::span<const LaneKernels<Block>* const> list) {
    constexpr double infinity = std::numeric_limits<double>::infinity(), nan = std::numeric_limits<double>::quiet_NaN();
    for (const int64_t M : {1, 4, 6, 20}) {
        Random random(4);
        FloatProblem<Block> problem({M, 2 * Block::chunk, 2, std::min(M, kPanelRows)}, random);
        const int64_t N = problem.shape.N(), nan_row = 0, infinite_row = M - 1, nan_column = 3, infinite_column = 30;
        problem.set_a(nan_row, 5, nan);
        if (infinite_row != nan_row) problem.set_a(infinite_row, 2 * Block::chunk - 1, infinity);
        problem.set_b(nan_column, 1, nan);
        problem.set_b(infinite_column, 7, -infinity);
        for (const LaneKernels<Block>* kernel : list) {
            if (!isa_available(kernel->isa)) continue;
            const std::vector<float> got = problem.run(*kernel, true);
            for (int64_t i = 0; i < M * N; ++i) {
                const double wanted = problem.exact(i / N, i % N, true).value, x = static_cast<double>(got[static_cast<size_t>(i)]);
                const std::string what =
                    std::string(isa_name(kernel->isa)) + ": M = " + std::to_string(M) + ", [" + std::to_string(i) + "]";
                if (std::isnan(wanted)) {
                    check(std::isnan(x), what + ": NaN");
                } else if (std::isinf(wanted)) {
                    check(x == wanted, what + ": infinity");
                } else {
                    check(std::isfinite(x), what + ": finite");
                }
            }
        }
    }
}

template <class Block>
void test_contract(std::span<const LaneKernels<Block>* const> list) {
    for (const LaneKernels<Block>* kernel : list) {
        const std::string name = isa_name(kernel->isa);
        check(kernel->block_rows >= kPanelRows && kernel->block_rows % kPanelRows == 0, name + ": block_rows");
        check(kernel->block_k >= Block::chunk && kernel->block_k % Block::chunk == 0, name + ": block_k");
        check(kernel->block_k <= 512, name + ": test_shapes goes through two blocks");
        check((kernel->begin == nullptr) == (kernel->end == nullptr), name + ": begin and end");
    }
}

// a = the smallest denormal of bf16, 2^-133, times 1: what the sum is.
template <class Block>
float denormal_product(const LaneKernels<Block>& kernel) {
    Random random(5);
    FloatProblem<Block> problem({1, Block::chunk, 1, 1}, random);
    for (int64_t k = 0; k < Block::chunk; ++k) problem.set_a(0, k, k == 3 ? 0x1p-133 : 0);
    for (int64_t n = 0; n < problem.shape.N(); ++n) problem.set_b(n, 3, 1);
    for (float& x : problem.init) x = 0;
    return problem.run(kernel, true)[9];
}

}  // namespace gossamer::test
