// A sparse int8 weight with the part "spmm" alone.
#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "gossamer/format_sparse.h"
#include "guarded.h"
#include "random.h"
#include "spmm/s8/part.h"

namespace gossamer::test {

// A sparse int8 weight: dense values, the canonical tensors, the part, and a view of it.
struct SparseCase {
    int64_t N, K;
    std::string what;
    std::vector<int8_t> dense;  // [N, K]
    std::vector<uint8_t> mask;
    std::vector<int8_t> values;
    Guarded<float> scales;  // [N16]
    Guarded<int32_t> init;  // [sum_blocks][N16]
    SparseRows rows;
    Guarded<uint8_t> part;

    SparseCase(int64_t n, int64_t k, std::string name, const std::function<int8_t(int64_t, int64_t)>& value)
        : N(n),
          K(k),
          what(name + ", N = " + std::to_string(n) + ", K = " + std::to_string(k)),
          scales(round_up(n, 16)),
          init(round_up(n, 16) * sum_blocks()),
          rows(make_rows(value)),
          part(make_part()) {}
    SparseCase(const SparseCase&) = delete;
    SparseCase& operator=(const SparseCase&) = delete;

    int64_t sum_blocks() const { return (K + kMaxSumK - 1) / kMaxSumK; }
    SparseRows make_rows(const std::function<int8_t(int64_t, int64_t)>& value) {
        std::vector<int64_t> first{0};
        mask.assign(static_cast<size_t>(N * ((K + 7) / 8)), 0);
        for (float& s : scales) s = 0;
        for (int32_t& s : init) s = 0;
        for (int64_t n = 0; n < N; ++n) {
            for (int64_t k = 0; k < K; ++k) {
                const int8_t v = value(n, k);
                dense.push_back(v);
                init[k / kMaxSumK * round_up(N, 16) + n] -= 128 * v;
                if (v == 0) continue;
                uint8_t& bits = mask[static_cast<size_t>(n * ((K + 7) / 8) + k / 8)];
                bits = static_cast<uint8_t>(bits | 1u << k % 8);
                values.push_back(v);
            }
            scales[n] = 1;
            first.push_back(static_cast<int64_t>(values.size()));
        }
        SparseSpec spec{FormatId::sparse_int8, N, K, 0, ScaleType::f32, Activations::int8, SparsePattern::any, kPartSpmm};
        return {spec, {mask.data(), values.data(), scales.data()}, first};
    }
    Guarded<uint8_t> make_part() {
        Guarded<uint8_t> packed(spmm_s8::bytes(rows));
        spmm_s8::pack(rows, packed.data(), 2);
        return packed;
    }
    SparseWeight view() const {
        SparseWeight w{};
        w.spec = rows.spec;
        w.layout.N = N;
        w.layout.K = K;
        w.layout.N16 = round_up(N, 16);
        w.layout.K64 = round_up(K, 64);
        w.scales = scales.data();
        w.init = init.data();
        w.spmm = part.data();
        w.spmm_bytes = part.size();
        w.nnz = static_cast<int64_t>(values.size());
        return w;
    }
};

inline int8_t any_value(Random& random) {
    const int64_t v = random.integer(-128, 126);
    return static_cast<int8_t>(v >= 0 ? v + 1 : v);
}

// Values at `density`, in blocks of `block` k.
inline SparseCase random_case(int64_t N, int64_t K, double density, uint64_t seed, int64_t block = 1) {
    Random random(seed);
    bool stored = false;
    return SparseCase(N, K, "density " + std::to_string(density), [&random, &stored, density, block](int64_t, int64_t k) {
        if (k % block == 0) stored = random.uniform() < 2 * density - 1;
        return stored ? any_value(random) : int8_t{0};
    });
}

}  // namespace gossamer::test
