// A random weight of any format, packed, beside the dense numbers that the lanes multiply.
#pragma once
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "four_bit_weight.h"
#include "gossamer/linear.h"
#include "int8_weight.h"
#include "sparse_weight.h"

namespace gossamer::test {

struct AnyKind {
    FormatId format;
    ScaleType scale_type = ScaleType::f32;
    bool zero_points = false;
    int64_t G = 0;
    Activations activations = Activations::exact;
    bool uneven = false;           // 4 bits only: scales that keep exact groups where there are at least 12
    uint8_t parts = kPartBitmask;  // sparse formats only
    SparsePattern pattern = SparsePattern::any;
    float input_scale = 0;

    bool four_bit() const { return format >= FormatId::int4 && format <= FormatId::mxfp4; }
    bool sparse() const { return format >= FormatId::sparse_int8 && format <= FormatId::sparse_f32; }
    std::string text() const {
        const std::string kept = sparse() ? std::string(", ") + name(pattern) + ", parts " + std::to_string(parts) : "";
        const std::string given = input_scale > 0 ? ", input scale " + std::to_string(input_scale) : "";
        return std::string(name(format)) + " " + name(scale_type) + (zero_points ? " with zero points" : "") +
               ", G = " + std::to_string(G) + ", " + name(activations) + (uneven ? ", uneven" : "") + kept + given;
    }
};

struct AnyWeight {
    AnyKind kind;
    int64_t N, K;
    std::vector<double> dense;  // [N, K], as the lane of these activations has it
    std::vector<double> step;   // [N]: of the int8 values where groups may be re-quantized; else zeros

    AnyWeight(const AnyKind& k, int64_t n, int64_t columns, uint64_t seed) : kind(k), N(n), K(columns), step(static_cast<size_t>(n)) {
        kind.four_bit() ? make_four_bit(seed) : kind.sparse() ? make_sparse(seed) : make_dense(seed);
        if (kind.input_scale > 0) set_input_scale(packed_->data(), packed_->size(), kind.input_scale);
    }
    Weight view() const { return weight_view(packed_->data(), packed_->size()); }
    PartBytes bytes() const { return {packed_->data(), packed_->size()}; }
    std::string text() const { return kind.text() + ", N = " + std::to_string(N) + ", K = " + std::to_string(K); }

private:
    // nf4 is rounded to 1/127 where activations are int8, so `dense` follows the integers there.
    void make_four_bit(uint64_t seed) {
        RandomFourBitWeight w({kind.format, kind.scale_type, kind.zero_points}, N, K, kind.G, seed, kind.activations);
        for (int64_t n = 0; n < N && kind.uneven; ++n) w.dominate(n, n % w.layout.groups);
        const bool keeps_groups = kind.uneven && w.layout.groups >= 12;
        for (int64_t n = 0; n < N; ++n) {
            for (int64_t k = 0; k < K; ++k) {
                const double stored =
                    kind.zero_points ? w.integer(n, k) : static_cast<double>(w.book.value[w.codes[static_cast<size_t>(n * K + k)]]);
                const double value = kind.activations != Activations::exact ? w.integer(n, k) * w.unit() : stored;
                dense.push_back(value * w.scale(n, k / w.layout.group_k));
            }
            if (w.layout.packed_groups > 1 && !keeps_groups) step[static_cast<size_t>(n)] = w.step(n);
        }
        packed_ = std::make_unique<Guarded<uint8_t>>(std::move(w.packed));
    }
    void make_sparse(uint64_t seed) {
        const SparseSpec spec{kind.format, N, K, kind.G, kind.scale_type, kind.activations, kind.pattern, kind.parts};
        RandomSparseWeight w(spec, {N, K, 0.3, kind.pattern, seed % 3 == 0}, seed);
        dense = w.dense;
        packed_ = std::make_unique<Guarded<uint8_t>>(w.packed());
        if (kind.format != FormatId::sparse_int4 || kind.G == 0) return;
        // Re-quantized, values are multiples of the largest |code - 8| * scale of the row, over 127; scales are at most 2^-4.
        for (double& s : step) s = 8 * 0x1p-4 / 127;
    }
    void make_dense(uint64_t seed) {
        pack_dense(seed);
        std::vector<float> values(static_cast<size_t>(N * K));
        std::visit([&](const auto& form) { dequantize(form, 0, N, values.data(), 1); }, view().form);
        dense.assign(values.begin(), values.end());
    }
    void pack_dense(uint64_t seed) {
        switch (kind.format) {
            case FormatId::int8: return make_int8(seed);
            case FormatId::bf16: return make_bf16(seed);
            case FormatId::f32: return make_f32(seed);
            default: return make_fp8(seed);
        }
    }
    void make_int8(uint64_t seed) {
        RandomWeight w(N, K, kind.G, seed);
        int8_pack(w.values.data(), w.scales.data(), w.view().layout, kind.activations, w.packed.data(), 1);
        packed_ = std::make_unique<Guarded<uint8_t>>(std::move(w.packed));
    }
    void make_bf16(uint64_t seed) {
        Random random(seed);
        Values values(DType::bf16, N * K);
        fill(values, random, 0.1);
        const Bf16Layout layout = bf16_layout(N, K);
        packed_ = std::make_unique<Guarded<uint8_t>>(layout.size_bytes);
        bf16_pack(reinterpret_cast<const uint16_t*>(values.data()), layout, packed_->data(), 1);
    }
    void make_f32(uint64_t seed) {
        Random random(seed);
        Values values(DType::f32, N * K);
        fill(values, random, 0.1);
        const F32Layout layout = f32_layout(N, K);
        packed_ = std::make_unique<Guarded<uint8_t>>(layout.size_bytes);
        f32_pack(reinterpret_cast<const float*>(values.data()), layout, packed_->data(), 1);
    }
    void make_fp8(uint64_t seed) {
        Random random(seed);
        const Fp8Layout layout = fp8_layout(N, K, kind.G);
        std::vector<uint8_t> codes(static_cast<size_t>(N * K));
        // No NaN and no infinity: the largest exponent of e5m2, the largest code of e4m3.
        const int last = kind.format == FormatId::fp8_e4m3 ? 0x7e : 0x7b;
        for (uint8_t& code : codes) code = static_cast<uint8_t>(random.integer(0, last) | random.integer(0, 1) << 7);
        std::vector<float> scales(static_cast<size_t>(layout.scale_rows * layout.scale_columns));
        for (float& scale : scales) scale = static_cast<float>(std::exp2(random.uniform() - 8));
        packed_ = std::make_unique<Guarded<uint8_t>>(layout.size_bytes);
        fp8_pack(kind.format, codes.data(), scales.data(), layout, packed_->data(), 1);
    }

    std::unique_ptr<Guarded<uint8_t>> packed_;
};

}  // namespace gossamer::test
