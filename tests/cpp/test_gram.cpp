// Gram matrices on every ISA and in every lane, against fp64.
#include <stdexcept>
#include <string>
#include <vector>

#include "check.h"
#include "gossamer/cpu.h"
#include "gossamer/gram.h"
#include "values.h"

namespace gossamer::test {
namespace {

struct Way {
    SvdLane lane;
    Isa isa;
    double rounding() const { return lane == SvdLane::f32 ? 0 : 0x1p-7 + 0x1p-16; }
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

struct Problem {
    int64_t T, K, stride;
    Values x;
    Problem(DType dtype, int64_t rows, int64_t columns, int64_t gap, Random& random)
        : T(rows), K(columns), stride(columns + gap), x(dtype, (rows - 1) * stride + columns) {
        fill(x, random);
    }
    void run(const Way& way, Guarded<float>& G, int threads) const {
        gram({x.bytes(), x.dtype, T, K, stride, G.data(), way.lane, way.isa, threads});
    }
};

void check_gram(const Problem& p, const Way& way) {
    const std::string what =
        std::string(isa_name(way.isa)) + ", " + dtype_name(p.x.dtype) + ", T = " + std::to_string(p.T) + ", K = " + std::to_string(p.K);
    Guarded<float> G(p.K * p.K), other(p.K * p.K);
    p.run(way, G, 1);
    const double relative = 2 * 0x1p-24 * static_cast<double>(p.T) + way.rounding();
    for (int64_t i = 0; i < p.K; ++i) {
        for (int64_t j = i; j < p.K; ++j) {
            double sum = 0, magnitude = 0;
            for (int64_t t = 0; t < p.T; ++t) {
                const double product = p.x.get(t * p.stride + i) * p.x.get(t * p.stride + j);
                sum += product;
                magnitude += std::fabs(product);
            }
            check_near(static_cast<double>(G[i * p.K + j]), sum, relative * magnitude + 1e-30, what);
            check(float_bits(G[i * p.K + j]) == float_bits(G[j * p.K + i]), what + ": symmetric");
        }
    }
    for (const int threads : {2, 3, 5}) {
        p.run(way, other, threads);
        check(std::memcmp(G.data(), other.data(), static_cast<size_t>(p.K * p.K) * 4) == 0, what + ": other threads");
    }
}

void test_tails() {
    Random random(1);
    const int64_t sizes[] = {1, 15, 16, 17, 31, 32, 33, 67, 129};
    for (const Way& way : all_ways()) {
        for (const DType dtype : kDTypes) {
            for (size_t i = 0; i < std::size(sizes); ++i) check_gram(Problem(dtype, sizes[(i * 5 + 2) % 9], sizes[i], i % 3, random), way);
        }
    }
}

// More than a slab of rows, more than a block of columns.
void test_blocks() {
    Random random(2);
    for (const Way& way : all_ways()) {
        check_gram(Problem(DType::f32, 1031, 37, 3, random), way);
        check_gram(Problem(DType::f32, 2100, 5, 0, random), way);
        if (!emulated()) check_gram(Problem(DType::f32, 40, 300, 0, random), way);
    }
}

void test_missing_lane() {
    if (emulated()) return;
    Random random(3);
    const Problem p(DType::f32, 2, 2, 0, random);
    Guarded<float> G(4);
    check_throws<std::invalid_argument>([&] { p.run({SvdLane::bf16, Isa::scalar}, G, 1); }, "'bf16' needs");
}

}  // namespace
}  // namespace gossamer::test

int main() {
    using namespace gossamer::test;
    test_tails();
    test_blocks();
    test_missing_lane();
    return finish();
}
