// Sparse bf16 and fp32 lines on AVX-512 without VBMI2. Contract: sparse_float.h.
//
// Words go through dwords: 16 of them are widened, expanded by VPEXPANDD, and two halves of a line joined by VPERMT2W.
#include "lines_512.h"

namespace gossamer {
namespace {

inline __m512i expand_half(const uint8_t*& values, uint32_t mask) {
    mask = in_register(mask);
    const __m512i packed = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(values)));
    values += 2 * _mm_popcnt_u64(mask);
    return _mm512_maskz_expand_epi32(static_cast<__mmask16>(mask), packed);
}

// The even words of both halves.
struct JoinControl {
    uint16_t index[32];
    constexpr JoinControl() : index() {
        for (uint16_t i = 0; i < 32; ++i) index[i] = static_cast<uint16_t>(i < 16 ? 2 * i : 32 + 2 * (i - 16));
    }
};
alignas(64) constexpr JoinControl kJoin;

inline Line expand_words(const uint8_t*& values, uint32_t mask) {
    const __m512i low = expand_half(values, mask & 0xffff), high = expand_half(values, mask >> 16);
    return {_mm512_permutex2var_epi16(low, _mm512_load_si512(kJoin.index), high)};
}

}  // namespace
}  // namespace gossamer

#include "tile.h"

namespace gossamer {
extern const SparseFloatKernels sparse_float_avx512;
const SparseFloatKernels sparse_float_avx512 = {Isa::avx512,   expand<2, uint16_t>, expand<1, float>, kMaxRows,
                                                run<F32Lines>, run<Bf16LinesF32>,   nullptr};
}  // namespace gossamer
