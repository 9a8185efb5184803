// Column statistics on every ISA, against fp64.
#include <cmath>
#include <limits>
#include <string>

#include "check.h"
#include "gossamer/column_stats.h"
#include "gossamer/cpu.h"
#include "values.h"

namespace gossamer::test {
namespace {

constexpr double kUnit = 0x1p-24;

struct Sums {
    Guarded<double> sum, squares;
    Guarded<float> low, high;
    explicit Sums(int64_t K) : sum(K), squares(K), low(K), high(K) {
        for (int64_t k = 0; k < K; ++k) {
            sum[k] = squares[k] = 0.5;  // of rows before
            low[k] = std::numeric_limits<float>::infinity();
            high[k] = -low[k];
        }
    }
    bool operator==(const Sums& other) const {
        const auto same = [](const auto& a, const auto& b) {
            return std::memcmp(a.data(), b.data(), static_cast<size_t>(a.size()) * sizeof(a[0])) == 0;
        };
        return same(sum, other.sum) && same(squares, other.squares) && same(low, other.low) && same(high, other.high);
    }
};

struct Problem {
    int64_t M, K, stride;
    Values x;
    Problem(DType dtype, int64_t rows, int64_t columns, int64_t gap, Random& random)
        : M(rows), K(columns), stride(columns + gap), x(dtype, (rows - 1) * stride + columns) {
        fill(x, random, 3);
    }
    void run(Isa isa, int threads, Sums& sums) const {
        add_column_stats({x.bytes(), x.dtype, M, K, stride, sums.sum.data(), sums.squares.data(), sums.low.data(), sums.high.data()}, isa,
                         threads);
    }
};

void check_stats(const Problem& p, Isa isa) {
    const std::string what =
        std::string(isa_name(isa)) + ", " + dtype_name(p.x.dtype) + ", M = " + std::to_string(p.M) + ", K = " + std::to_string(p.K);
    Sums sums(p.K);
    p.run(isa, 1, sums);
    for (int64_t k = 0; k < p.K; ++k) {
        double sum = 0, magnitude = 0, squares = 0, low = INFINITY, high = -INFINITY;
        for (int64_t m = 0; m < p.M; ++m) {
            const double x = p.x.get(m * p.stride + k);
            sum += x;
            magnitude += std::fabs(x);
            squares += x * x;
            low = std::fmin(low, x);
            high = std::fmax(high, x);
        }
        check_near(sums.sum[k] - 0.5, sum, kStatsRows * kUnit * magnitude, what + ": sum");
        check_near(sums.squares[k] - 0.5, squares, (kStatsRows + 1) * kUnit * squares, what + ": squares");
        check(static_cast<double>(sums.low[k]) == low && static_cast<double>(sums.high[k]) == high, what + ": extremes");
    }
    for (const int threads : {2, 3, 5}) {
        Sums other(p.K);
        p.run(isa, threads, other);
        check(sums == other, what + ": other threads");
    }
}

template <class Body>
void on_every_isa(const Body& body) {
    for (const Isa isa : {Isa::scalar, Isa::avx2, Isa::avx512}) {
        if (isa_available(isa)) body(isa);
    }
}

void test_tails() {
    Random random(1);
    const int64_t sizes[] = {1, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 129, 333};
    on_every_isa([&](Isa isa) {
        for (const DType dtype : kDTypes) {
            for (size_t i = 0; i < std::size(sizes); ++i)
                check_stats(Problem(dtype, sizes[(i * 5 + 2) % 14], sizes[i], i % 3, random), isa);
        }
        check_stats(Problem(DType::f32, 1500, 700, 0, random), isa);  // enough for several threads
    });
}

void test_nothing() {
    on_every_isa([](Isa isa) {
        Sums none(0), columns(3), before(3);
        add_column_stats({nullptr, DType::f32, 5, 0, 0, none.sum.data(), none.squares.data(), none.low.data(), none.high.data()}, isa, 2);
        add_column_stats(
            {nullptr, DType::f32, 0, 3, 3, columns.sum.data(), columns.squares.data(), columns.low.data(), columns.high.data()}, isa, 2);
        check(columns == before, std::string(isa_name(isa)) + ": no rows");
    });
}

// NaN and infinities show in the sums of their columns alone; low and high leave NaN out.
void test_not_finite() {
    constexpr float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
    on_every_isa([&](Isa isa) {
        const std::string what = isa_name(isa);
        for (const int64_t at : {0, 20, 70}) {  // of a wide strip, and of narrow ones
            Values x(DType::f32, 3 * 75);
            for (int64_t i = 0; i < x.count; ++i) x.set(i, 1);
            x.set(at, static_cast<double>(nan));
            x.set(75 + at + 1, static_cast<double>(-inf));
            x.set(75 + at + 2, 1e30);
            Sums sums(75);
            add_column_stats({x.bytes(), x.dtype, 3, 75, 75, sums.sum.data(), sums.squares.data(), sums.low.data(), sums.high.data()}, isa,
                             1);
            check(std::isnan(sums.sum[at]) && std::isnan(sums.squares[at]), what + ": NaN in the sums");
            check(sums.low[at] == 1 && sums.high[at] == 1, what + ": NaN is no extreme");
            check(sums.sum[at + 1] < -1e300 && sums.squares[at + 1] > 1e300 && sums.low[at + 1] == -inf, what + ": infinity");
            check(std::isfinite(sums.sum[at + 2]) && std::isinf(sums.squares[at + 2]), what + ": a square beyond fp32");
            check(std::isfinite(sums.squares[at + 3]), what + ": the column beside");
        }
    });
}

}  // namespace
}  // namespace gossamer::test

int main() {
    using namespace gossamer::test;
    test_tails();
    test_nothing();
    test_not_finite();
    return finish();
}
