// Every s8 kernel that this machine runs, bit for bit against the reference.
#include "check.h"
#include "dispatch/lists.h"
#include "s8_problem.h"

namespace gossamer::test {
namespace {

void check_problem(S8Problem& problem) {
    const std::vector<int64_t> product = problem.product();
    for (const S8Kernels* kernel : s8_list()) {
        if (!isa_available(kernel->isa)) continue;
        for (const bool from_init : {true, false}) {
            const std::vector<int32_t> got = problem.run(*kernel, from_init);
            const std::vector<int64_t> wanted = problem.expected(product, from_init);
            const std::string what = std::string(isa_name(kernel->isa)) + (from_init ? " from init: " : " from c: ") + problem.shape.text();
            check_equal(got.data(), wanted.data(), static_cast<int64_t>(wanted.size()), what);
        }
    }
}

void check_shape(const S8Shape& shape, Random& random) {
    S8Problem problem = random_problem(shape, random);
    check_problem(problem);
}

std::vector<int64_t> row_counts() {
    std::vector<int64_t> rows = {31, 32, 33, 64, 65, 128, 129, 256, 257};
    for (int64_t m = 1; m <= 17; ++m) rows.push_back(m);
    return rows;
}

void test_tails() {
    Random random(1);
    for (const int64_t M : row_counts()) {
        for (const int64_t K : {64, 128, 192, 256, 320, 512 + 64}) {
            for (const int64_t n_panels : {1, 2}) check_shape({M, K, n_panels, std::min(M, kPanelRows)}, random);
        }
    }
}

// Groups shorter than a line of A, from anywhere in it.
void test_short_groups() {
    Random random(2);
    for (const int64_t M : row_counts()) {
        for (const int64_t n_panels : {1, 2}) {
            for (const int64_t first_k : {0, 32}) check_shape({M, 32, n_panels, std::min(M, kPanelRows), first_k}, random);
            for (const int64_t first_k : {0, 16, 32, 48}) check_shape({M, 16, n_panels, std::min(M, kPanelRows), first_k}, random);
        }
    }
}

// A short group and a longer block in turn, between one begin and end: what the first changes must not last.
void check_after_short_group(int64_t group_k) {
    Random random(8);
    S8Problem part = random_problem({20, group_k, 2, kPanelRows}, random), whole = random_problem({20, 128, 2, kPanelRows}, random);
    const std::vector<int64_t> wanted = whole.expected(whole.product(), true);
    for (const S8Kernels* kernel : s8_list()) {
        if (!isa_available(kernel->isa)) continue;
        if (kernel->begin != nullptr) kernel->begin(kPanelRows);
        part.run_blocks(*kernel, true);
        const std::vector<int32_t> got = whole.run_blocks(*kernel, true);
        if (kernel->end != nullptr) kernel->end();
        check_equal(got.data(), wanted.data(), static_cast<int64_t>(wanted.size()),
                    std::string(isa_name(kernel->isa)) + ": after a group of " + std::to_string(group_k));
    }
}

// Panels of fewer than 16 rows, and more than one of them.
void test_short_panels() {
    Random random(3);
    for (const int64_t R : {1, 2, 3, 4, 5, 7, 8, 13, 15}) {
        for (const int64_t M : {R, 2 * R, 3 * R - 1}) {
            for (const int64_t K : {32, 64, 256 + 64}) check_shape({M, K, 2, R}, random);
        }
    }
}

void test_strides() {
    Random random(4);
    for (const int64_t M : {1, 2, 5, 16, 37}) {
        for (const int64_t n_panels : {1, 2}) check_shape({M, 192, n_panels, std::min(M, kPanelRows), 0, 7 * 64}, random);
    }
}

// All groups of a strip in one call.
void check_grouped(const S8Shape& shape, int64_t group_k, Random& random) {
    const S8Problem problem = random_problem(shape, random);
    const int64_t groups = (shape.K + group_k - 1) / group_k, N = shape.N();
    Guarded<int32_t> init(groups * N);
    Guarded<float> scales(groups * N), sum(shape.M * kStripColumns);
    for (int32_t& x : init) x = static_cast<int32_t>(random.integer(-500000, 500000));
    for (float& x : scales) x = static_cast<float>(random.uniform());
    for (const S8Kernels* kernel : s8_list()) {
        if (!isa_available(kernel->isa) || kernel->run_grouped == nullptr) continue;
        kernel->run_grouped({problem.a.data(), shape.panel_rows, problem.a_stride(), problem.b.data(), problem.b_stride(), shape.n_panels,
                             shape.M, shape.K, group_k, init.data(), scales.data(), N, sum.data()});
        const std::string what = std::string(isa_name(kernel->isa)) + " grouped by " + std::to_string(group_k) + ": " + shape.text();
        for (int64_t i = 0; i < shape.M * N; ++i) {
            const int64_t m = i / N, n = i % N;
            double wanted = 0, magnitude = 0;
            for (int64_t g = 0; g < groups; ++g) {
                int64_t acc = init[g * N + n];
                for (int64_t k = g * group_k; k < std::min(shape.K, (g + 1) * group_k); ++k) {
                    acc += problem.u[static_cast<size_t>(m * shape.K + k)] * problem.w[static_cast<size_t>(n * shape.K + k)];
                }
                const double part = static_cast<double>(acc) * scales[g * N + n];
                wanted += part;
                magnitude += std::fabs(part);
            }
            check_near(sum[m * kStripColumns + n], wanted, static_cast<double>(groups + 2) * 0x1p-24 * magnitude, what);
        }
    }
}

void test_grouped() {
    Random random(7);
    for (const int64_t M : {1, 2, 3, 4, 5, 8, 15, 16, 17, 37}) {
        for (const int64_t n_panels : {1, 2}) {
            for (const int64_t group_k : {16, 32, 64, 128}) {
                for (const int64_t K : {64, 192, 512}) check_grouped({M, K, n_panels, std::min(M, kPanelRows)}, group_k, random);
            }
            for (const int64_t group_k : {16, 32}) check_grouped({M, group_k, n_panels, std::min(M, kPanelRows)}, group_k, random);
        }
    }
}

// The largest sums there are: every u the same, every w the same, K as long as int32 allows.
void test_extremes() {
    Random random(5);
    for (const int64_t M : {1, 2, 4, 17}) {
        const S8Shape shape{M, kMaxSumK, 2, std::min(M, kPanelRows)};
        for (const int u : {0, 255}) {
            for (const int w : {-128, 127}) {
                S8Problem problem(shape, std::vector<uint8_t>(static_cast<size_t>(M * shape.K), static_cast<uint8_t>(u)),
                                  std::vector<int8_t>(static_cast<size_t>(shape.N() * shape.K), static_cast<int8_t>(w)), random);
                for (int32_t& x : problem.init) x = static_cast<int32_t>(-128 * w * shape.K);
                check_problem(problem);
            }
        }
    }
}

// Neighbouring products of the largest size and of both signs, which overflow where pairs are added in int16.
void test_extreme_pairs() {
    Random random(6);
    for (const int64_t M : {1, 3, 16, 33}) {
        const S8Shape shape{M, 256, 2, std::min(M, kPanelRows)};
        std::vector<uint8_t> u(static_cast<size_t>(M * shape.K));
        std::vector<int8_t> w(static_cast<size_t>(shape.N() * shape.K));
        for (uint8_t& x : u) x = random.integer(0, 1) == 0 ? uint8_t{0} : uint8_t{255};
        for (int8_t& x : w) x = random.integer(0, 1) == 0 ? int8_t{-128} : int8_t{127};
        S8Problem problem(shape, u, w, random);
        check_problem(problem);
    }
}

void test_contract() {
    for (const S8Kernels* kernel : s8_list()) {
        const std::string name = isa_name(kernel->isa);
        check(kernel->block_rows >= kPanelRows && kernel->block_rows % kPanelRows == 0, name + ": block_rows");
        check(kernel->block_k >= kChunk && kernel->block_k % kChunk == 0 && kernel->block_k <= kMaxSumK, name + ": block_k");
        check((kernel->begin == nullptr) == (kernel->end == nullptr), name + ": begin and end");
    }
}

}  // namespace
}  // namespace gossamer::test

int main() {
    using namespace gossamer::test;
    if (!gossamer::isa_available(gossamer::s8_list().back()->isa)) return kSkipped;
    test_contract();
    test_tails();
    test_short_groups();
    for (const int64_t group_k : {16, 32}) check_after_short_group(group_k);
    test_short_panels();
    test_strides();
    test_extremes();
    test_extreme_pairs();
    test_grouped();
    return finish();
}
