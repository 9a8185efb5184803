// Every u4 kernel that this machine runs: sums of groups in int64, scaled and added with std::fma in the order of the groups, bit for bit.
#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "check.h"
#include "dispatch/lists.h"
#include "values.h"

namespace gossamer::test {
namespace {

constexpr int64_t kGroupSizes[] = {16, 32, 64, 128, 256, 0};  // 0: all of K
constexpr ScaleType kScaleTypes[] = {ScaleType::f32, ScaleType::bf16, ScaleType::f16};
constexpr DType kScaleDTypes[] = {DType::f32, DType::bf16, DType::f16};  // by ScaleType

struct U4Shape {
    int64_t M, K, n_panels, group_k;
    int64_t spare = 0;  // bytes between panels that are not the block's

    int64_t N() const { return n_panels * kPanelColumns; }
    int64_t groups() const { return (K + group_k - 1) / group_k; }
    int64_t panel_rows() const { return std::min(M, kPanelRows); }
    int64_t row_panels() const { return (M + panel_rows() - 1) / panel_rows(); }
    int64_t a_stride() const { return panel_rows() * K + spare; }
    int64_t b_stride() const { return K / 2 * kPanelColumns + spare; }
    std::string text() const {
        return "M = " + std::to_string(M) + ", K = " + std::to_string(K) + ", N = " + std::to_string(N()) +
               ", G = " + std::to_string(group_k);
    }
};

struct U4Options {
    int largest = 15;  // of the codebook; 15: the code itself
    bool zero_points = false;
    int offset = 8;  // where there are none
    ScaleType scale_type = ScaleType::f32;
    bool row_scales = false;  // groups of A have scales
};

// Logical matrices, and the same as u4.h wants them.
struct U4Problem {
    U4Shape shape;
    U4Options options;
    std::vector<int> q, codes;  // [M, K], [N, K]
    Guarded<int8_t> a;
    Guarded<uint8_t> b, t, zero_points;
    Guarded<int32_t> a_sums;
    Guarded<float> a_scales;
    Values scales;

    U4Problem(const U4Shape& s, const U4Options& o, Random& random)
        : shape(s),
          options(o),
          q(static_cast<size_t>(s.M * s.K)),
          codes(static_cast<size_t>(s.N() * s.K)),
          a(s.row_panels() * s.a_stride() - s.spare),
          b(s.n_panels * s.b_stride() - s.spare),
          t(16),
          zero_points(s.N() * s.groups()),
          a_sums(s.M * s.groups()),
          a_scales(s.M * s.groups()),
          scales(kScaleDTypes[static_cast<int>(o.scale_type)], s.N() * s.groups()) {
        for (int& x : q) x = static_cast<int>(random.integer(-127, 127));
        for (int& x : codes) x = static_cast<int>(random.integer(0, 15));
        for (uint8_t& x : t) x = static_cast<uint8_t>(random.integer(0, o.largest));
        t[random.integer(0, 15)] = static_cast<uint8_t>(o.largest);
        for (uint8_t& x : zero_points) x = static_cast<uint8_t>(random.integer(0, 15));
        for (int64_t i = 0; i < scales.count; ++i) scales.set(i, random.uniform());
        for (float& x : a_scales) x = static_cast<float>(random.uniform());
        place();
    }
    bool coded() const { return options.largest != 15; }
    int value(int64_t n, int64_t k) const {
        const int code = codes[static_cast<size_t>(n * shape.K + k)];
        return coded() ? t[code] : code;
    }
    // Of the scale and the zero point of group g of column n.
    int64_t constant_index(int64_t n, int64_t g) const {
        return (n / kPanelColumns * shape.groups() + g) * kPanelColumns + n % kPanelColumns;
    }

    // The panels and sums, from q and codes.
    void place() {
        const int64_t R = shape.panel_rows(), K = shape.K, chunk = U4Block::chunk;
        std::fill(b.begin(), b.end(), uint8_t{0});
        std::fill(a_sums.begin(), a_sums.end(), 0);
        for (int64_t m = 0; m < shape.M; ++m) {
            for (int64_t k = 0; k < K; ++k) {
                const int x = q[static_cast<size_t>(m * K + k)];
                a[m / R * shape.a_stride() + (k / chunk * R + m % R) * chunk + k % chunk] = static_cast<int8_t>(x);
                a_sums[m * shape.groups() + k / shape.group_k] -= x * (options.zero_points ? 1 : options.offset);
            }
        }
        for (int64_t n = 0; n < shape.N(); ++n) {
            for (int64_t k = 0; k < K; ++k) {
                uint8_t& byte = b[n / kPanelColumns * shape.b_stride() + k / 8 * 64 + n % kPanelColumns * 4 + k % 4];
                byte = static_cast<uint8_t>(byte | codes[static_cast<size_t>(n * K + k)] << (k % 8 < 4 ? 0 : 4));
            }
        }
    }

    float expected(int64_t m, int64_t n) const {
        float total = 0;
        for (int64_t g = 0; g < shape.groups(); ++g) {
            const int zero = options.zero_points ? zero_points[constant_index(n, g)] : options.offset;
            int64_t sum = 0;
            for (int64_t k = g * shape.group_k; k < std::min(shape.K, (g + 1) * shape.group_k); ++k) {
                sum += q[static_cast<size_t>(m * shape.K + k)] * (value(n, k) - zero);
            }
            const float part = static_cast<float>(sum), scale = static_cast<float>(scales.get(constant_index(n, g)));
            total = options.row_scales ? std::fma(part * scale, a_scales[m * shape.groups() + g], total) : std::fma(part, scale, total);
        }
        return total;
    }

    U4Block block(float* sum) const {
        U4Block u{};
        u.a = a.data();
        u.panel_rows = shape.panel_rows();
        u.a_panel_stride = shape.a_stride();
        u.a_sums = a_sums.data();
        u.a_scales = options.row_scales ? a_scales.data() : nullptr;
        u.groups = shape.groups();
        u.b = b.data();
        u.b_panel_stride = shape.b_stride();
        u.n_panels = shape.n_panels;
        u.M = shape.M;
        u.K = shape.K;
        u.group_k = shape.group_k;
        u.t = coded() ? t.data() : nullptr;
        u.scales = scales.bytes();
        u.scale_type = options.scale_type;
        u.zero_points = options.zero_points ? zero_points.data() : nullptr;
        u.sum = sum;
        return u;
    }
    std::string text() const {
        return shape.text() + ", values up to " + std::to_string(options.largest) + (options.zero_points ? ", zero points" : "") +
               (options.row_scales ? ", scales of rows" : "") + ", " + name(options.scale_type);
    }
};

std::vector<const U4Kernels*> available_kernels() {
    std::vector<const U4Kernels*> kernels;
    for (const U4Kernels* kernel : u4_list()) {
        if (isa_available(kernel->isa)) kernels.push_back(kernel);
    }
    return kernels;
}

void check_problem(const U4Problem& problem) {
    const U4Shape& s = problem.shape;
    std::vector<uint32_t> wanted, got;
    for (int64_t i = 0; i < s.M * s.N(); ++i) wanted.push_back(float_bits(problem.expected(i / s.N(), i % s.N())));
    for (const U4Kernels* kernel : available_kernels()) {
        if (problem.options.largest > kernel->max_value) continue;
        Guarded<float> sum(s.M * kStripColumns);
        kernel->run(problem.block(sum.data()));
        got.clear();
        for (int64_t i = 0; i < s.M * s.N(); ++i) got.push_back(float_bits(sum[i / s.N() * kStripColumns + i % s.N()]));
        check_equal(got.data(), wanted.data(), s.M * s.N(), std::string(isa_name(kernel->isa)) + ": " + problem.text());
    }
}

// The codebooks' largest values: e2m1 in halves, the most that AVX2 takes, nf4, a byte.
U4Options some_options(Random& random) {
    constexpr int largest[] = {15, 15, 24, 31, 255}, offset[] = {8, 0, 12, 1, 128};
    const int64_t book = random.integer(0, 4);
    return {largest[book], random.integer(0, 2) == 0, offset[book], kScaleTypes[random.integer(0, 2)], random.integer(0, 2) == 0};
}

void test_shapes() {
    Random random(1);
    constexpr int64_t ks[] = {64, 192, 320, 576};
    std::vector<int64_t> row_counts = {33, 64, 70};
    for (int64_t M = 1; M <= 17; ++M) row_counts.push_back(M);
    for (const int64_t M : row_counts) {
        for (const int64_t n_panels : {1, 2}) {
            for (const int64_t group : kGroupSizes) {
                for (int repeat = 0; repeat < 3; ++repeat) {
                    const int64_t K = ks[random.integer(0, 3)];
                    const U4Shape shape{M, K, n_panels, group == 0 ? K : group, random.integer(0, 1) * 7 * 64};
                    check_problem({shape, some_options(random), random});
                }
            }
        }
    }
}

// Each kind of codes with each type of scales, with and without zero points, for few rows and many.
void test_every_option() {
    Random random(2);
    for (const int largest : {15, 24, 31, 255}) {
        for (const bool zero_points : {false, true}) {
            for (const ScaleType type : kScaleTypes) {
                for (const int64_t M : {1, 4, 7, 16}) {
                    for (const bool row_scales : {false, true}) {
                        check_problem({{M, 192, 2, 32}, {largest, zero_points, 12, type, row_scales}, random});
                    }
                }
            }
        }
    }
}

// The code itself, and the largest values that the kernels say they take.
std::vector<int> largest_values() {
    std::vector<int> values = {15};
    for (const U4Kernels* kernel : available_kernels()) values.push_back(kernel->max_value);
    return values;
}

// The largest products of one sign and of both, with the highest code everywhere.
void test_extremes() {
    Random random(3);
    for (const int largest : largest_values()) {
        for (const int64_t M : {1, 3, 8}) {
            for (int signs = 0; signs < 4; ++signs) {
                U4Problem problem({M, 320, 2, 256}, {largest, signs == 3, largest / 2, ScaleType::f32}, random);
                for (int& x : problem.q) x = signs == 0 ? 127 : signs == 1 ? -127 : random.integer(0, 1) == 0 ? 127 : -127;
                for (int& code : problem.codes) code = 15;
                problem.t[15] = static_cast<uint8_t>(largest);
                problem.place();
                check_problem(problem);
            }
        }
    }
}

// One group as long as int32 allows: 255 * 127 * 65,536 with no zero point to take away from it.
void test_longest_group() {
    Random random(4);
    for (const int largest : largest_values()) {
        for (const int64_t M : {1, 5}) {
            for (const int sign : {-127, 127}) {
                U4Problem problem({M, kMaxSumK, 2, kMaxSumK}, {largest, false, 0, ScaleType::f32}, random);
                for (int& x : problem.q) x = sign;
                for (int& code : problem.codes) code = 15;
                problem.t[15] = static_cast<uint8_t>(largest);
                problem.place();
                check_problem(problem);
            }
        }
    }
}

// center() on rows [first, last): q = u - 128 and minus offset times its sums; the other rows do not change.
void check_center(const U4Kernels& kernel, const U4Shape& s, int64_t first, int64_t last, int offset, Random& random) {
    const int64_t R = s.panel_rows(), chunk = U4Block::chunk, groups = s.groups();
    Guarded<uint8_t> panels(s.row_panels() * R * s.K);
    Guarded<int32_t> sums(s.M * groups);
    for (uint8_t& u : panels) u = static_cast<uint8_t>(random.integer(1, 255));
    std::vector<uint8_t> wanted(panels.begin(), panels.end());
    std::vector<int64_t> wanted_sums(sums.begin(), sums.end());
    for (int64_t m = first; m < last; ++m) {
        for (int64_t g = 0; g < groups; ++g) wanted_sums[static_cast<size_t>(m * groups + g)] = 0;
        for (int64_t k = 0; k < s.K; ++k) {
            uint8_t& byte = wanted[static_cast<size_t>(m / R * R * s.K + (k / chunk * R + m % R) * chunk + k % chunk)];
            wanted_sums[static_cast<size_t>(m * groups + k / s.group_k)] -= offset * (byte - 128);
            byte = static_cast<uint8_t>(byte - 128);
        }
    }
    kernel.center({panels.data(), R, first, last, s.K, s.group_k, groups, offset, sums.data()});
    const std::string what = std::string(isa_name(kernel.isa)) + ": center: " + s.text();
    check_equal(panels.data(), wanted.data(), panels.size(), what);
    check_equal(sums.data(), wanted_sums.data(), sums.size(), what + ": sums");
}

void test_center() {
    Random random(5);
    for (const U4Kernels* kernel : available_kernels()) {
        for (const int64_t M : {1, 2, 7, 16, 17, 33}) {
            for (const int64_t group : kGroupSizes) {
                for (const int64_t K : {64, 192, 320}) {
                    const U4Shape shape{M, K, 1, group == 0 ? K : group};
                    for (const int offset : {1, 8, 128}) check_center(*kernel, shape, 0, M, offset, random);
                    check_center(*kernel, shape, M / 3, M - M / 4, 12, random);
                }
            }
        }
    }
}

void test_contract() {
    for (const U4Kernels* kernel : u4_list()) {
        const std::string name = isa_name(kernel->isa);
        check(kernel->max_rows >= 1, name + ": max_rows");
        check(kernel->max_value >= 24 && kernel->max_value <= 255, name + ": takes e2m1");
    }
}

}  // namespace
}  // namespace gossamer::test

int main() {
    using namespace gossamer::test;
    if (available_kernels().empty()) return kSkipped;
    test_contract();
    test_shapes();
    test_every_option();
    test_extremes();
    test_longest_group();
    test_center();
    return finish();
}
