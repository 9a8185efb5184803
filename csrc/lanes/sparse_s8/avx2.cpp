// Sparse int8 and int4 where there is no VPEXPANDB: AVX2, and AVX-512 up to VNNI. Contract: sparse_s8.h.
//
// Eight weights at a time: a byte of the mask picks eight VPSHUFB controls out of 2 KiB, which put the next values where bits are set and
// zeros where not; POPCNT of the byte says where the values after them begin. Eight instructions for eight weights, 14 cycles a line on
// Zen 4 (3.7 ns), three to seven times what reading a dense line from L1 takes: this gains where memory binds, as with all cores of a
// machine at work. Where bits stand for words of 4 (1x4, 1x16) the same controls, widened, are the indices of VPERMD, 32 weights at a time.
//
// No kernels for few rows. Tried and lost (Zen 4, one row): expanding 16 lines into L1 and multiplying all rows from there, by VPMADDWD
// 5.2 ns a line and by 256-bit VPDPBUSD 4.5, where expanding a strip and running the dense kernel takes 4.7; codes 6.7 ns against 6.2.
// Considered: two bytes of the mask for one VPSHUFB, as many instructions, since both operands are put together first; VPGATHERQQ, slow
// where the microcode guards gathers; on AVX-512 values widened to words for VPEXPANDD and narrowed again, 24 cycles a line on Intel's
// port 5.
#include <immintrin.h>

#include <cstdint>

#include "chunk_masks.h"

namespace gossamer {
namespace {

constexpr int64_t kLineBytes = 64;

struct Controls {
    uint8_t of[256][8];
};

constexpr Controls make_controls() {
    Controls controls{};
    for (int mask = 0; mask < 256; ++mask) {
        uint8_t next = 0;
        for (int i = 0; i < 8; ++i) controls.of[mask][i] = (mask >> i & 1) != 0 ? next++ : uint8_t{0x80};
    }
    return controls;
}
alignas(64) constexpr Controls kControls = make_controls();

inline __m128i load_eight(const uint8_t* p) { return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)); }
inline __m256i load(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline void store(void* p, __m256i x) { _mm256_storeu_si256(static_cast<__m256i*>(p), x); }

// One line; returns where the values of the next one begin.
inline const uint8_t* expand_line(uint64_t mask, const uint8_t* values, uint8_t* out) {
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i, mask >>= 8) {
        const __m128i eight = _mm_shuffle_epi8(load_eight(values), load_eight(kControls.of[mask & 0xff]));
        _mm_storel_epi64(reinterpret_cast<__m128i*>(out + i * 8), eight);
        values += _mm_popcnt_u32(static_cast<uint32_t>(mask & 0xff));
    }
    return values;
}

// One line of 16 words by a mask of 16 bits.
inline const uint8_t* expand_words(uint32_t mask, const uint8_t* values, uint8_t* out) {
    for (int i = 0; i < 2; ++i, mask >>= 8) {
        const __m256i words = _mm256_cvtepi8_epi32(load_eight(kControls.of[mask & 0xff]));  // negative: none
        const __m256i expanded = _mm256_permutevar8x32_epi32(load(values), words);
        store(out + i * 32, _mm256_andnot_si256(_mm256_srai_epi32(words, 31), expanded));
        values += 4 * _mm_popcnt_u32(mask & 0xff);
    }
    return values;
}

void expand_bytes(const SparseLines& b, int8_t* to) {
    const uint8_t* values = b.values;
    uint8_t* out = reinterpret_cast<uint8_t*>(to);
    if (masks_words(b.pattern)) {
        for (int64_t line = 0; line < b.lines; ++line, out += kLineBytes) values = expand_words(word_mask(b, line), values, out);
        return;
    }
    for_each_chunk(b, [&](const uint8_t* masks, int64_t, int64_t count) {
        for (int64_t i = 0; i < count; ++i, out += kLineBytes) values = expand_line(load_bits<uint64_t>(masks + i * 8), values, out);
    });
}

// 64 codes from 32 bytes, each as code ^ 8.
inline void unpack_codes(const uint8_t* values, uint8_t* out) {
    const __m256i nibble = _mm256_set1_epi8(0x0f), flip = _mm256_set1_epi8(8);
    const __m256i pairs = _mm256_permute4x64_epi64(load(values), 0xd8);
    const __m256i low = _mm256_xor_si256(_mm256_and_si256(pairs, nibble), flip);
    const __m256i high = _mm256_xor_si256(_mm256_and_si256(_mm256_srli_epi16(pairs, 4), nibble), flip);
    store(out, _mm256_unpacklo_epi8(low, high));
    store(out + 32, _mm256_unpackhi_epi8(low, high));
}

// Codes are expanded as code ^ 8, so that nothing stored, 0, becomes code 8. Sixteen lines lie between writing the pieces of a line and
// reading it whole, which would wait for the stores.
void expand_codes(const SparseLines& b, uint8_t* out) {
    alignas(64) uint8_t lines[kChunkLines * kLineBytes];
    const uint8_t* values = b.values;
    const __m256i flip = _mm256_set1_epi8(static_cast<char>(0x88));
    for_each_chunk(b, [&](const uint8_t* masks, int64_t, int64_t count) {
        for (int64_t i = 0; i < count; ++i) {
            const uint64_t mask = load_bits<uint64_t>(masks + i * 8);
            uint8_t codes[kLineBytes + 8];  // the last load begins at 64 at most
            unpack_codes(values, codes);
            expand_line(mask, codes, lines + i * kLineBytes);
            values += (_mm_popcnt_u64(mask) + 1) / 2;
        }
        for (int64_t i = 0; i < count; i += 2, out += kLineBytes) {
            for (int64_t half = 0; half < kLineBytes; half += 32) {
                const uint8_t* low = lines + i * kLineBytes + half;
                const __m256i pairs = _mm256_or_si256(load(low), _mm256_slli_epi16(load(low + kLineBytes), 4));
                store(out + half, _mm256_xor_si256(pairs, flip));
            }
        }
    });
}

}  // namespace

extern const SparseS8Kernels sparse_s8_avx2;
const SparseS8Kernels sparse_s8_avx2 = {Isa::avx2, expand_bytes, expand_codes, 0, nullptr, nullptr};
}  // namespace gossamer
