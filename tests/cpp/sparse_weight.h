// A random sparse weight: canonical tensors, the packed form, and the dense numbers it stands for.
#pragma once
#include <cstring>
#include <string>
#include <vector>

#include "gossamer/format_sparse.h"
#include "guarded.h"
#include "random.h"

namespace gossamer::test {

// Which weights are stored.
struct SparseShape {
    int64_t N, K;
    double density = 0.5;
    SparsePattern blocks = SparsePattern::any;  // whole blocks are drawn, cut off at N and K
    bool uneven = false;                        // every fifth row is dense, every third empty
};

class RandomSparseWeight {
public:
    SparseSpec spec;
    std::vector<uint8_t> mask, values, scales;
    std::vector<double> dense;   // [N, K]: values times scales
    std::vector<uint32_t> bits;  // [N, K]: of the values, those of zero where nothing is stored
    int64_t nnz = 0;

    RandomSparseWeight(const SparseSpec& s, const SparseShape& shape, uint64_t seed) : spec(s), random_(seed) {
        const int64_t N = spec.N, K = spec.K, stride = (K + 7) / 8;
        mask.assign(static_cast<size_t>(N * stride), 0);
        dense.assign(static_cast<size_t>(N * K), 0.0);
        bits.assign(static_cast<size_t>(N * K), spec.format == FormatId::sparse_int4 ? 8u : 0u);
        draw_scales();
        const std::vector<bool> stored = draw_blocks(shape);
        for (int64_t n = 0; n < N; ++n) {
            const bool full = shape.uneven && n % 5 == 0, empty = shape.uneven && !full && n % 3 == 0;
            for (int64_t k = 0; k < K; ++k) {
                if (!full && (empty || !stored[static_cast<size_t>(n * K + k)])) continue;
                uint8_t& byte = mask[static_cast<size_t>(n * stride + k / 8)];
                byte = static_cast<uint8_t>(byte | 1 << k % 8);
                add_value(n, k);
            }
        }
    }

    SparseRows rows() const { return sparse_rows(spec, {mask.data(), values.data(), scales.data()}, nnz); }
    Guarded<uint8_t> packed(int threads = 1) const {
        const SparseRows canonical = rows();
        Guarded<uint8_t> bytes(sparse_packed_bytes(canonical));
        sparse_pack(canonical, bytes.data(), bytes.size(), threads);
        return bytes;
    }
    std::string text() const {
        return std::string(name(spec.format)) + ", N = " + std::to_string(spec.N) + ", K = " + std::to_string(spec.K) +
               ", G = " + std::to_string(spec.G) + ", pattern " + name(spec.pattern) + ", parts " + std::to_string(spec.parts) + ", nnz " +
               std::to_string(nnz);
    }

private:
    static int64_t width(SparsePattern p) { return p == SparsePattern::b1x4 ? 4 : p == SparsePattern::b1x16 ? 16 : 1; }
    static int64_t height(SparsePattern p) { return p == SparsePattern::b4x1 ? 4 : p == SparsePattern::b16x1 ? 16 : 1; }

    std::vector<bool> draw_blocks(const SparseShape& shape) {
        std::vector<bool> stored(static_cast<size_t>(spec.N * spec.K));
        const int64_t h = height(shape.blocks), w = width(shape.blocks);
        for (int64_t n = 0; n < spec.N; n += h) {
            for (int64_t k = 0; k < spec.K; k += w) {
                if ((random_.uniform() + 1) / 2 >= shape.density) continue;
                for (int64_t i = n; i < std::min(n + h, spec.N); ++i) {
                    for (int64_t j = k; j < std::min(k + w, spec.K); ++j) stored[static_cast<size_t>(i * spec.K + j)] = true;
                }
            }
        }
        return stored;
    }

    int64_t groups() const { return spec.G == 0 ? 1 : (spec.K + spec.G - 1) / spec.G; }
    // Powers of two: exact in every scale type.
    void draw_scales() {
        if (spec.format != FormatId::sparse_int8 && spec.format != FormatId::sparse_int4) return;
        for (int64_t i = 0; i < spec.N * groups(); ++i) {
            const float scale = std::exp2(static_cast<float>(random_.integer(-8, -4)));
            scale_values_.push_back(scale);
            uint32_t word;
            std::memcpy(&word, &scale, 4);
            const int64_t exponent = static_cast<int64_t>(word >> 23) - 127;
            const auto half = static_cast<uint32_t>((exponent + 15) << 10);
            const ScaleType type = spec.scale_type;
            const uint32_t out = type == ScaleType::f32 ? word : type == ScaleType::bf16 ? word >> 16 : half;
            append(scales, out, type == ScaleType::f32 ? 4 : 2);
        }
    }

    static void append(std::vector<uint8_t>& to, uint32_t word, int bytes) {
        for (int i = 0; i < bytes; ++i) to.push_back(static_cast<uint8_t>(word >> 8 * i));
    }

    void add_value(int64_t n, int64_t k) {
        const size_t at = static_cast<size_t>(n * spec.K + k);
        const double scale = scale_values_.empty()
                                 ? 1.0
                                 : static_cast<double>(scale_values_[static_cast<size_t>(n * groups() + (spec.G == 0 ? 0 : k / spec.G))]);
        if (spec.format == FormatId::sparse_int8 || spec.format == FormatId::sparse_int4) {
            const bool int8 = spec.format == FormatId::sparse_int8;
            int64_t value = 0;
            while (value == 0) value = int8 ? random_.integer(-128, 127) : random_.integer(-8, 7);
            dense[at] = static_cast<double>(value) * scale;
            bits[at] = int8 ? static_cast<uint8_t>(value) : static_cast<uint32_t>(value + 8);
            if (int8) {
                values.push_back(static_cast<uint8_t>(bits[at]));
            } else if (nnz % 2 == 0) {
                values.push_back(static_cast<uint8_t>(bits[at]));
            } else {
                values.back() = static_cast<uint8_t>(values.back() | bits[at] << 4);
            }
        } else {
            const float value = static_cast<float>(random_.uniform() + 1.5) * (random_.integer(0, 1) == 0 ? 0.125f : -0.125f);
            std::memcpy(&bits[at], &value, 4);
            const bool bf16 = spec.format == FormatId::sparse_bf16;
            if (bf16) bits[at] &= 0xffff0000;
            float rounded;
            std::memcpy(&rounded, &bits[at], 4);
            dense[at] = static_cast<double>(rounded);
            if (bf16) bits[at] >>= 16;
            append(values, bits[at], bf16 ? 2 : 4);
        }
        ++nnz;
    }

    Random random_;
    std::vector<float> scale_values_;
};

}  // namespace gossamer::test
