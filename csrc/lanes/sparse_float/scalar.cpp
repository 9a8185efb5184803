// Sparse bf16 and fp32 lines in portable C++.
#include "../sparse_line.h"
#include "gossamer/sparse_float.h"

namespace gossamer {
namespace {

template <int word, class T>
void expand(const SparseLines& b, T* out) {
    constexpr int weights = 16 * word;
    const uint8_t* values = b.values;
    for (int64_t line = 0; line < b.lines; ++line, out += weights) {
        const uint64_t mask = bits_of_line<word>(b.pattern, b.masks, line);
        for (int i = 0; i < weights; ++i) {
            out[i] = T{};
            if ((mask >> i & 1) == 0) continue;
            std::memcpy(out + i, values, sizeof(T));
            values += sizeof(T);
        }
    }
}

}  // namespace

extern const SparseFloatKernels sparse_float_scalar;
const SparseFloatKernels sparse_float_scalar = {Isa::scalar, expand<2, uint16_t>, expand<1, float>, 0, nullptr, nullptr, nullptr};
}  // namespace gossamer
