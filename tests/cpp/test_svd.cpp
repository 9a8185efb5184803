// The passes over W on every ISA and in every lane, against fp64.
#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "check.h"
#include "gossamer/cpu.h"
#include "gossamer/svd.h"
#include "values.h"

namespace gossamer::test {
namespace {

constexpr double kUnit = 0x1p-24;

struct Way {
    SvdLane lane;
    Isa isa;
    std::string text() const { return std::string(isa_name(isa)) + (lane == SvdLane::f32 ? ", f32" : ", bf16"); }
    // Of the two operands of a product.
    double rounding() const { return lane == SvdLane::f32 ? 0 : 0x1p-7 + 0x1p-16; }
    bool best() const { return lane == SvdLane::bf16 || isa == Isa::avx512 || isa == Isa::scalar; }
};

// A bf16 lane of Isa::scalar is an emulated one (CMakeLists.txt): slow, and all that is to be tested.
bool emulated() { return svd_has_lane(SvdLane::bf16, Isa::scalar); }

std::vector<Way> all_ways() {
    if (emulated()) return {{SvdLane::bf16, Isa::scalar}};
    std::vector<Way> ways;
    for (const Isa isa : {Isa::scalar, Isa::avx2, Isa::avx512, Isa::avx512bf16, Isa::amx}) {
        if (!isa_available(isa)) continue;
        if (isa <= Isa::avx512) ways.push_back({SvdLane::f32, isa});
        if (svd_has_lane(SvdLane::bf16, isa)) ways.push_back({SvdLane::bf16, isa});
    }
    return ways;
}

// An fp32 matrix; between its rows lies what nobody may touch.
struct Thin {
    int64_t rows, columns, stride;
    Guarded<float> data;
    Thin(int64_t r, int64_t c, int64_t gap) : rows(r), columns(c), stride(c + gap), data((r - 1) * stride + c) {}
    float& at(int64_t i, int64_t j) { return data[i * stride + j]; }
    const float& at(int64_t i, int64_t j) const { return data[i * stride + j]; }
    bool gaps_untouched() const {
        for (int64_t i = 0; i + 1 < rows; ++i) {
            for (int64_t j = columns; j < stride; ++j) {
                if (float_bits(at(i, j)) != 0xa5a5a5a5) return false;
            }
        }
        return true;
    }
};

// W starts one element past a multiple of 64 bytes, or wherever its end at a guard page puts it; its rows are n + gap apart.
struct Problem {
    int64_t m, n, l, stride;
    Values W;
    Thin X, Y;  // Y: for project

    Problem(DType dtype, int64_t rows, int64_t columns, int64_t width, int64_t gap, Random& random, bool integers = false)
        : m(rows), n(columns), l(width), stride(columns + gap), W(dtype, (rows - 1) * stride + columns), X(n, l, gap), Y(m, l, gap) {
        const auto next = [&] { return integers ? static_cast<double>(random.integer(-2, 2)) : random.uniform(); };
        for (int64_t i = 0; i < W.count; ++i) W.set(i, next());
        fill_thin(X, next);
        fill_thin(Y, next);
    }
    static void fill_thin(Thin& thin, const auto& next) {
        for (int64_t i = 0; i < thin.rows; ++i) {
            for (int64_t j = 0; j < thin.columns; ++j) thin.at(i, j) = static_cast<float>(next());
        }
    }
    SvdPass pass(const Way& way, Thin& y, Thin& z, int threads) const {
        return {W.bytes(), W.dtype,       m,        n,        stride,  l,      X.data.data(), X.stride, y.data.data(),
                y.stride,  z.data.data(), z.stride, way.lane, way.isa, threads};
    }
    std::string text(const Way& way) const {
        return way.text() + ", " + dtype_name(W.dtype) + ", m = " + std::to_string(m) + ", n = " + std::to_string(n) +
               ", l = " + std::to_string(l);
    }
    double w(int64_t i, int64_t k) const { return W.get(i * stride + k); }
};

// Every entry of the product [rows, l] of A [rows, terms] and B within `relative` of sum |a||b|, and the rounding of the result.
void check_product(const Thin& got, int64_t terms, const auto& a, const Thin& B, double relative, const std::string& what) {
    double worst = 0;  // of the error over its bound
    std::vector<double> sum(static_cast<size_t>(B.columns)), magnitude(sum.size());
    for (int64_t i = 0; i < got.rows; ++i) {
        std::fill(sum.begin(), sum.end(), 0.0);
        std::fill(magnitude.begin(), magnitude.end(), 0.0);
        for (int64_t k = 0; k < terms; ++k) {
            const double value = a(i, k);
            for (size_t j = 0; j < sum.size(); ++j) {
                const double product = value * static_cast<double>(B.at(k, static_cast<int64_t>(j)));
                sum[j] += product;
                magnitude[j] += std::fabs(product);
            }
        }
        for (size_t j = 0; j < sum.size(); ++j) {
            const double error = std::fabs(static_cast<double>(got.at(i, static_cast<int64_t>(j))) - sum[j]);
            const double bound = relative * magnitude[j] + kUnit * std::fabs(sum[j]) + 1e-30;
            worst = error <= bound ? std::max(worst, error / bound) : INFINITY;
        }
    }
    check(worst <= 1, what);
    check(got.gaps_untouched(), what + ": written between the rows");
}

void check_sketch(const Problem& p, const Way& way, const Thin& Y) {
    const double relative = 2 * kUnit * static_cast<double>(p.n) + way.rounding();
    check_product(Y, p.n, [&](int64_t i, int64_t k) { return p.w(i, k); }, p.X, relative, "sketch: " + p.text(way));
}

void check_transposed(const char* name, const Problem& p, const Way& way, const Thin& Y, const Thin& Z, int64_t summed) {
    const double relative = 2 * kUnit * static_cast<double>(std::min(p.m, summed)) + way.rounding();
    check_product(Z, p.m, [&](int64_t k, int64_t i) { return p.w(i, k); }, Y, relative, std::string(name) + ": " + p.text(way));
}

bool same(const Thin& a, const Thin& b) {
    for (int64_t i = 0; i < a.rows; ++i) {
        if (std::memcmp(&a.at(i, 0), &b.at(i, 0), static_cast<size_t>(a.columns) * 4) != 0) return false;
    }
    return true;
}

void check_passes(Problem& p, const Way& way) {
    Thin Y(p.m, p.l, 3), Z(p.n, p.l, 5), none(1, 1, 0);
    sketch(p.pass(way, Y, none, 1));
    check_sketch(p, way, Y);
    project(p.pass(way, p.Y, Z, 1));
    check_transposed("project", p, way, p.Y, Z, kProjectRows);
    Thin fused_Y(p.m, p.l, 1), fused_Z(p.n, p.l, 0);
    power_step(p.pass(way, fused_Y, fused_Z, 1));
    check(same(fused_Y, Y), "Y of power_step: " + p.text(way));
    check_transposed("power_step", p, way, fused_Y, fused_Z, p.m);
    for (const int threads : {2, 3, 5}) {
        Thin y(p.m, p.l, 0), z(p.n, p.l, 2);
        sketch(p.pass(way, y, none, threads));
        check(same(y, Y), "sketch with other threads: " + p.text(way));
        project(p.pass(way, p.Y, z, threads));
        check(same(z, Z), "project with other threads: " + p.text(way));
        power_step(p.pass(way, y, z, threads));
        check(same(y, Y) && same(z, fused_Z), "power_step with other threads: " + p.text(way));
    }
}

void test_tails() {
    Random random(1);
    const int64_t sizes[] = {1, 15, 16, 17, 31, 32, 33, 67};
    for (const Way& way : all_ways()) {
        for (const DType dtype : kDTypes) {
            for (size_t i = 0; i < std::size(sizes); ++i) {
                for (const int64_t l : {sizes[i], sizes[(i + 3) % 8]}) {
                    Problem p(dtype, sizes[(i * 5 + 2) % 8], sizes[(i * 3 + 1) % 8], l, l % 2 == 0 ? 0 : 7, random);
                    check_passes(p, way);
                }
            }
        }
    }
}

// More than a block of each kind: rows and columns of a sketch, rows and groups of a projection, columns of Y at a time.
void test_blocks() {
    Random random(2);
    const int64_t shapes[][3] = {{300, 131, 3}, {131, 2500, 2}, {257, 1100, 17}, {1031, 37, 33}, {40, 61, 600}, {523, 90, 131}};
    for (const Way& way : all_ways()) {
        for (const auto& shape : shapes) {
            Problem p(way.lane == SvdLane::bf16 ? DType::bf16 : DType::f32, shape[0], shape[1], shape[2], 1, random);
            check_passes(p, way);
        }
    }
}

// Large enough that a step reads W once: rows that do not fill the last chunk, step or panel.
void test_fused_step() {
    Random random(3);
    const int64_t shapes[][3] = {{2053, 1031, 1}, {2600, 837, 33}, {2048, 1056, 16}, {3100, 680, 47}};
    for (const auto& shape : shapes) {
        if (emulated() && shape[2] != 1) continue;
        Problem p(DType::f32, shape[0], shape[1], shape[2], 5, random);
        for (const Way& way : all_ways()) {
            if (shape[2] < 30 || way.best()) check_passes(p, way);
        }
    }
    if (emulated()) return;
    Problem half(DType::f16, 2111, 2003, 9, 0, random);
    for (const Way& way : all_ways()) {
        if (way.best()) check_passes(half, way);
    }
}

// Small whole numbers: nothing is rounded, so every entry is exact, in the bf16 lane too.
void test_exact() {
    Random random(4);
    for (const Way& way : all_ways()) {
        for (const DType dtype : kDTypes) {
            Problem p(dtype, 277, 143, 49, 2, random, true);
            Thin Y(p.m, p.l, 0), Z(p.n, p.l, 0);
            sketch(p.pass(way, Y, Z, 2));
            check_product(Y, p.n, [&](int64_t i, int64_t k) { return p.w(i, k); }, p.X, 0, "sketch, exact: " + p.text(way));
            project(p.pass(way, p.Y, Z, 2));
            check_product(Z, p.m, [&](int64_t k, int64_t i) { return p.w(i, k); }, p.Y, 0, "project, exact: " + p.text(way));
        }
    }
}

// One NaN and one infinity reach their row of Y and all of Z's columns, and nothing else of Y.
void test_not_finite() {
    Random random(5);
    for (const Way& way : all_ways()) {
        Problem p(DType::f32, 70, 45, 19, 0, random);
        p.W.set(3 * p.stride + 44, NAN);
        p.W.set(69 * p.stride + 7, INFINITY);
        Thin Y(p.m, p.l, 0), Z(p.n, p.l, 0);
        power_step(p.pass(way, Y, Z, 2));
        for (int64_t i = 0; i < p.m; ++i) {
            const bool spoilt = i == 3 || i == 69;
            for (int64_t j = 0; j < p.l; ++j) check(std::isfinite(Y.at(i, j)) != spoilt, "Y, not finite: " + p.text(way));
        }
        for (int64_t j = 0; j < p.l; ++j) check(std::isnan(Z.at(0, j)) && std::isnan(Z.at(44, j)), "Z, not finite: " + p.text(way));
    }
}

void test_missing_lane() {
    if (emulated()) return;
    Random random(6);
    Problem p(DType::f32, 4, 4, 1, 0, random);
    Thin Y(4, 1, 0), Z(4, 1, 0);
    const Way way{SvdLane::bf16, Isa::scalar};
    check_throws<std::invalid_argument>([&] { sketch(p.pass(way, Y, Z, 1)); }, "'bf16' needs");
    check_throws<std::invalid_argument>([&] { project(p.pass(way, Y, Z, 1)); }, "'bf16' needs");
    check_throws<std::invalid_argument>([&] { power_step(p.pass(way, Y, Z, 1)); }, "'bf16' needs");
}

}  // namespace
}  // namespace gossamer::test

int main() {
    using namespace gossamer::test;
    test_tails();
    test_blocks();
    test_fused_step();
    test_exact();
    test_not_finite();
    test_missing_lane();
    return finish();
}
