// The skip-compute product with sparse fp32 weights: outputs within the bounds of fp32, packing exact, damaged parts refused.
#include <bit>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "bounds.h"
#include "check.h"
#include "gossamer/cpu.h"
#include "gossamer/spmm.h"
#include "spmm/f32/part.h"
#include "values.h"

namespace gossamer::test {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN(), kInfinity = std::numeric_limits<float>::infinity();

std::vector<Isa> available_isas() {
    std::vector<Isa> isas;
    for (const Isa isa : {Isa::scalar, Isa::avx2, Isa::avx512}) {
        if (isa_available(isa)) isas.push_back(isa);
    }
    return isas;
}

// A weight as dense rows, as canonical tensors, and packed with no other part than "spmm".
struct SparseMatrix {
    int64_t N, K;
    std::string what;
    std::vector<float> dense;
    std::vector<uint8_t> mask;
    std::vector<float> values;
    Guarded<uint8_t> part;

    // density(n): the share of row n that is stored.
    template <class Density>
    SparseMatrix(int64_t rows, int64_t k, const std::string& name, uint64_t seed, const Density& density)
        : N(rows), K(k), what(name + " " + std::to_string(rows) + " x " + std::to_string(k)), dense(static_cast<size_t>(rows * k)), part(0) {
        Random random(seed);
        for (int64_t i = 0; i < N * K; ++i) {
            if (random.uniform() < 2 * density(i / K) - 1) dense[static_cast<size_t>(i)] = static_cast<float>(random.uniform()) + 0x1p-30f;
        }
        pack();
    }
    SparseMatrix(int64_t rows, int64_t k, const std::string& name, std::vector<float> elements)
        : N(rows), K(k), what(name), dense(std::move(elements)), part(0) {
        pack();
    }

    SparseSpec spec() const {
        return {FormatId::sparse_f32, N, K, 0, ScaleType::f32, Activations::exact, SparsePattern::any, kPartSpmm};
    }
    SparseRows rows() const { return sparse_rows(spec(), {mask.data(), values.data(), nullptr}, static_cast<int64_t>(values.size())); }

    SparseWeight weight() const {
        SparseWeight w{};
        w.spec = spec();
        w.layout = sparse_layout(w.spec);
        w.spmm = part.data();
        w.spmm_bytes = w.size_bytes = part.size();
        w.nnz = spmm_f32::nnz(w.spec, part.data());
        return w;
    }

private:
    void pack() {
        const int64_t stride = (K + 7) / 8;
        mask.assign(static_cast<size_t>(N * stride), 0);
        values.clear();
        for (int64_t n = 0; n < N; ++n) {
            for (int64_t k = 0; k < K; ++k) {
                const float value = dense[static_cast<size_t>(n * K + k)];
                if (float_bits(value) << 1 == 0) continue;
                uint8_t& byte = mask[static_cast<size_t>(n * stride + k / 8)];
                byte = static_cast<uint8_t>(byte | 1u << k % 8);
                values.push_back(value);
            }
        }
        part = Guarded<uint8_t>(spmm_f32::bytes(rows()));
        spmm_f32::pack(rows(), part.data(), 2);
    }
};
