// A random int8 weight: canonical tensors and the packed form.
#pragma once
#include <cmath>
#include <string>

#include "gossamer/format_int8.h"
#include "guarded.h"
#include "random.h"

namespace gossamer::test {

struct RandomWeight {
    int64_t N, K, G, groups;
    Guarded<int8_t> values;  // [N, K]
    Guarded<float> scales;   // [N, groups]
    Guarded<uint8_t> packed;

    RandomWeight(int64_t n, int64_t k, int64_t g, uint64_t seed)
        : N(n),
          K(k),
          G(g),
          groups(g == 0 ? 1 : (k + g - 1) / g),
          values(n * k),
          scales(n * groups),
          packed(int8_layout(n, k, g).size_bytes) {
        Random random(seed);
        for (int8_t& x : values) x = static_cast<int8_t>(random.integer(-128, 127));
        for (float& s : scales) s = static_cast<float>(std::fabs(random.uniform()) / 100 / std::sqrt(static_cast<double>(k)));
        int8_pack(values.data(), scales.data(), int8_layout(N, K, G), Activations::int8, packed.data(), 2);
    }
    Int8Weight view() const { return int8_view(packed.data(), packed.size()); }
    std::string text() const { return "N = " + std::to_string(N) + ", K = " + std::to_string(K) + ", G = " + std::to_string(G); }
};

}  // namespace gossamer::test
