// A random 4-bit weight: canonical tensors, the packed form, and the integers that the s8 lane multiplies.
#pragma once
#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "gossamer/format_four_bit.h"
#include "values.h"

namespace gossamer::test {

struct FourBitKind {
    FormatId format;
    ScaleType scale_type;
    bool zero_points = false;
};

struct RandomFourBitWeight {
    FourBitKind kind;
    FourBitLayout layout;
    const Codebook& book;
    std::vector<int> codes, zero_points;  // [N, K], [N, groups]
    std::vector<double> scales;           // [N, groups], as they are stored
    Guarded<uint8_t> packed;

    // Scales within 2^0.2 of each other (e8m0: 2^1), so that strips are re-quantized.
    RandomFourBitWeight(const FourBitKind& k, int64_t N, int64_t K, int64_t G, uint64_t seed, Activations activations = Activations::int8)
        : kind(k),
          layout(four_bit_layout(k.format, N, K, G, k.scale_type, k.zero_points)),
          book(codebook(k.format)),
          codes(static_cast<size_t>(N * K)),
          zero_points(static_cast<size_t>(N * layout.groups)),
          scales(static_cast<size_t>(N * layout.groups)),
          packed(layout.size_bytes),
          activations_(activations) {
        Random random(seed);
        for (int& code : codes) code = static_cast<int>(random.integer(0, 15));
        for (int& zero : zero_points) zero = static_cast<int>(random.integer(0, 15));
        for (double& scale : scales) scale = std::exp2(random.uniform() * 0.1 - 6);
        pack();
    }
    // Writes `packed`, and rounds the scales to their type.
    void pack() {
        const int64_t row_bytes = (layout.K + 1) / 2;
        std::vector<uint8_t> bytes(static_cast<size_t>(layout.N * row_bytes), uint8_t{0});
        for (int64_t i = 0; i < layout.N * layout.K; ++i) {
            uint8_t& byte = bytes[static_cast<size_t>(i / layout.K * row_bytes + i % layout.K / 2)];
            byte = static_cast<uint8_t>(byte | codes[static_cast<size_t>(i)] << (i % layout.K % 2 * 4));
        }
        const std::vector<uint8_t> zeros(zero_points.begin(), zero_points.end());
        const bool e8m0 = kind.scale_type == ScaleType::e8m0;
        Values values(e8m0 ? DType::f32 : std::vector{DType::f32, DType::bf16, DType::f16}[static_cast<size_t>(kind.scale_type)],
                      static_cast<int64_t>(scales.size()));
        std::vector<uint8_t> exponents(scales.size());
        for (size_t i = 0; i < scales.size(); ++i) {
            exponents[i] = static_cast<uint8_t>(std::isnan(scales[i]) ? 255 : 127 + std::lround(std::log2(scales[i])));
            values.set(static_cast<int64_t>(i), scales[i]);
            scales[i] = !e8m0 ? values.get(static_cast<int64_t>(i)) : exponents[i] == 255 ? scales[i] : std::ldexp(1.0, exponents[i] - 127);
        }
        const void* stored = e8m0 ? static_cast<const void*>(exponents.data()) : values.bytes();
        four_bit_pack(kind.format, {bytes.data(), stored, kind.zero_points ? zeros.data() : nullptr}, layout, kind.scale_type, activations_,
                      packed.data(), 1);
    }
    // One group so much above the others that a strip of at least 12 groups keeps its exact groups.
    void dominate(int64_t n, int64_t g, double factor = 64) {
        scales[static_cast<size_t>(n * layout.groups + g)] *= factor;
        pack();
    }

    FourBitWeight view() const { return four_bit_view(packed.data(), packed.size()); }
    double scale(int64_t n, int64_t g) const {
        return n < layout.N && g < layout.groups ? scales[static_cast<size_t>(n * layout.groups + g)] : 0;
    }
    // What the s8 lane multiplies for W[n,k], in units of the codebook; padding has code 0 and zero point 0.
    int integer(int64_t n, int64_t k) const {
        const bool inside = n < layout.N && k < layout.K, in_group = n < layout.N && k / layout.group_k < layout.groups;
        const int code = inside ? codes[static_cast<size_t>(n * layout.K + k)] : 0;
        if (kind.zero_points) return code - (in_group ? zero_points[static_cast<size_t>(n * layout.groups + k / layout.group_k)] : 0);
        return static_cast<int>(std::lround(static_cast<double>(book.value[code]) / unit()));
    }
    double unit() const { return static_cast<double>(book.unit); }
    // How far a value of this group may be from 0, in units of the codebook.
    double reach(int64_t n, int64_t g) const {
        if (!kind.zero_points) return std::round(static_cast<double>(book.largest) / unit());
        const int zero = n < layout.N && g < layout.groups ? zero_points[static_cast<size_t>(n * layout.groups + g)] : 0;
        return std::max(zero, 15 - zero);
    }
    // Of column n where it is re-quantized to one scale.
    double step(int64_t n) const {
        double largest = 0;
        for (int64_t g = 0; g < layout.groups; ++g) largest = std::max(largest, std::fabs(scale(n, g)) * reach(n, g));
        return largest / 127 * unit();
    }
    std::string text() const {
        return std::string(name(kind.format)) + ", " + name(kind.scale_type) + (kind.zero_points ? ", zero points" : "") +
               ", N = " + std::to_string(layout.N) + ", K = " + std::to_string(layout.K) + ", G = " + std::to_string(layout.G);
    }

private:
    Activations activations_;
};

}  // namespace gossamer::test
