// Random low-rank weights and sums, packed, and what their low-rank part adds to an output in fp64.
#pragma once
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "any_weight.h"
#include "bounds.h"

namespace gossamer::test {

struct FactorKind {
    FormatId V, U;
    Activations activations = Activations::exact;

    bool wide() const { return V == FormatId::f32 || U == FormatId::f32; }
    std::string text() const { return std::string("V ") + name(V) + ", U " + name(U) + ", " + name(activations); }
};

inline AnyKind factor_kind(FormatId format, Activations activations) {
    AnyKind kind{format};
    kind.activations = activations;
    return kind;
}

struct LowRankFactors {
    FactorKind kind;
    int64_t N, K, R;
    AnyWeight V, U;
    Guarded<uint8_t> packed;

    LowRankFactors(const FactorKind& k, int64_t n, int64_t columns, int64_t rank, uint64_t seed)
        : kind(k),
          N(n),
          K(columns),
          R(rank),
          V(factor_kind(k.V, k.activations), rank, columns, seed),
          U(factor_kind(k.U, k.activations), n, rank, seed + 1),
          packed(two_parts(V.bytes().size_bytes, U.bytes().size_bytes).size_bytes) {
        low_rank_pack(V.bytes(), U.bytes(), packed.data(), packed.size());
    }
    Weight view() const { return weight_view(packed.data(), packed.size()); }
    PartBytes bytes() const { return {packed.data(), packed.size()}; }
    std::string text() const {
        return "low-rank, " + kind.text() + ", N = " + std::to_string(N) + ", K = " + std::to_string(K) + ", R = " + std::to_string(R);
    }
};

struct SumOfWeights {
    int64_t N, K;
    AnyWeight base;
    LowRankFactors low_rank;
    Guarded<uint8_t> packed;

    SumOfWeights(const AnyKind& base_kind, const FactorKind& factors, int64_t n, int64_t columns, int64_t rank, uint64_t seed)
        : N(n),
          K(columns),
          base(base_kind, n, columns, seed),
          low_rank(factors, n, columns, rank, seed + 1),
          packed(two_parts(base.bytes().size_bytes, low_rank.packed.size()).size_bytes) {
        sum_pack(base.bytes(), low_rank.bytes(), packed.data(), packed.size());
    }
    Weight view() const { return weight_view(packed.data(), packed.size()); }
    std::string text() const { return base.text() + " + " + low_rank.text(); }
};

inline Weight packed_weight(const LowRankFactors& w) { return w.view(); }
inline Weight packed_weight(const SumOfWeights& w) { return w.view(); }

// What a low-rank part makes of one row of x, and how far fp32 may be from it.
struct BranchRow {
    std::vector<double> value, bound, magnitude;  // [N]
};

// int8 activations: T exactly as fp32 has it (its sums are integers, and two roundings follow), so that its own rounding to int8 is known.
inline BranchRow branch_row_int8(const LowRankFactors& w, const void* x, DType x_dtype) {
    const reference::QuantizedRow q = reference::quantize_row(x, x_dtype, w.K);
    const Int8Weight V = std::get<Int8Weight>(w.V.view().form), U = std::get<Int8Weight>(w.U.view().form);
    std::vector<int8_t> v(static_cast<size_t>(w.R * w.K)), u(static_cast<size_t>(w.N * w.R));
    std::vector<float> v_scales(static_cast<size_t>(w.R)), u_scales(static_cast<size_t>(w.N)), T;
    int8_unpack(V, v.data(), v_scales.data(), 1);
    int8_unpack(U, u.data(), u_scales.data(), 1);
    const std::vector<int64_t> down = reference::multiply(q.q.data(), v.data(), 1, w.R, w.K);
    for (size_t r = 0; r < down.size(); ++r) T.push_back(static_cast<float>(down[r]) * v_scales[r] * q.scale);
    const reference::QuantizedRow t = reference::quantize_row(T.data(), DType::f32, w.R);
    BranchRow row;
    for (int64_t n = 0; n < w.N; ++n) {
        const float scale = u_scales[static_cast<size_t>(n)];
        const reference::Preactivation z = reference::preactivation(t, u.data() + n * w.R, &scale, 0, 0, 0);
        row.value.push_back(z.value);
        row.magnitude.push_back(z.magnitude);
        row.bound.push_back(4 * kHalfUlp * std::fabs(z.value));
    }
    return row;
}

// Exact activations; with bf16 x and no fp32 factor, T may be rounded to bf16.
inline BranchRow branch_row_exact(const LowRankFactors& w, const void* x, DType x_dtype) {
    const double rounded = x_dtype == DType::bf16 && !w.kind.wide() ? 0x1p-8 : 0;
    const double roundings = static_cast<double>(2 * w.K + 2 * w.R + 6) * kHalfUlp;
    std::vector<double> T, size;  // and the sums of absolute values
    for (int64_t r = 0; r < w.R; ++r) {
        double sum = 0, absolute = 0;
        for (int64_t k = 0; k < w.K; ++k) {
            const double p = reference::load(x, x_dtype, k) * w.V.dense[static_cast<size_t>(r * w.K + k)];
            sum += p;
            absolute += std::fabs(p);
        }
        T.push_back(sum);
        size.push_back(absolute);
    }
    BranchRow row{std::vector<double>(static_cast<size_t>(w.N)), std::vector<double>(static_cast<size_t>(w.N)), {}};
    row.magnitude = row.value;
    for (size_t n = 0; n < row.value.size(); ++n) {
        for (size_t r = 0; r < T.size(); ++r) {
            const double u = w.U.dense[n * T.size() + r];
            row.value[n] += u * T[r];
            row.magnitude[n] += std::fabs(u) * size[r];
            row.bound[n] += std::fabs(u) * (rounded * std::fabs(T[r]) + roundings * size[r]);
        }
    }
    return row;
}

inline BranchRow branch_row(const LowRankFactors& w, const void* x, DType x_dtype) {
    return w.kind.activations == Activations::int8 ? branch_row_int8(w, x, x_dtype) : branch_row_exact(w, x, x_dtype);
}

}  // namespace gossamer::test
