// fp8 to bf16 by looking up both bytes of each magnitude among 128 (VPERMI2B).
//
// Two lookups and two interleaves for 64 codes are four cycles of the shuffle ports of Zen 4, more than the two products of one row. Tried
// and lost there: shifts and masks in place of the interleaves (lines from even and odd bytes), 30 % slower.
#include <cstring>

#include "../../simd/avx512.h"
#include "expand_lines.h"
#include "values.h"

namespace gossamer {
namespace {

// One byte of 128 table entries.
struct Bytes {
    __m512i first, last;
};

// The byte of each 16-bit entry that `shift` brings down.
inline Bytes bytes_of(const uint16_t* entries, unsigned shift) {
    __m256i part[4];
    for (int i = 0; i < 4; ++i) part[i] = _mm512_cvtepi16_epi8(_mm512_srli_epi16(_mm512_load_si512(entries + 32 * i), shift));
    return {_mm512_inserti64x4(_mm512_castsi256_si512(part[0]), part[1], 1),
            _mm512_inserti64x4(_mm512_castsi256_si512(part[2]), part[3], 1)};
}

// The bf16 values of the codes without their sign.
struct Table {
    Bytes low, high;

    explicit Table(const uint16_t* magnitudes) : low(bytes_of(magnitudes, 0)), high(bytes_of(magnitudes, 8)) {}
};

// Two lines of a bf16 panel.
struct Lines {
    __m512i first, second;
};

inline Lines look_up(const Table& table, const uint8_t* line) {
    const __m512i codes = _mm512_loadu_si512(line);  // the lookups ignore the sign bit
    const __m512i low = _mm512_permutex2var_epi8(table.low.first, codes, table.low.last);
    const __m512i high = _mm512_permutex2var_epi8(table.high.first, codes, table.high.last);
    const __m512i signed_high = _mm512_ternarylogic_epi64(high, codes, _mm512_set1_epi8(-128), 0x78);  // high ^ (codes & sign)
    return {_mm512_unpacklo_epi8(low, signed_high), _mm512_unpackhi_epi8(low, signed_high)};
}

void expand_by_table(const Fp8Expand& run, uint16_t* out) {
    alignas(64) uint16_t scaled[128];
    const uint16_t* magnitudes = fp8_magnitudes(run.format);
    const Vec scale = broadcast(run.scale);
    for (int64_t i = 0; i < 128; i += Vec::width) store_bf16(scaled + i, load_bf16(magnitudes + i) * scale);
    const Table table(scaled);
    for (int64_t line = 0; line < run.lines; ++line, out += kLine) {
        const Lines lines = look_up(table, run.codes + line * kLine);
        _mm512_storeu_si512(out, lines.first);
        _mm512_storeu_si512(out + 32, lines.second);
    }
}

inline __m512 dot(__m512 sum, const uint16_t* pair, __m512i line) {
    int32_t word;
    std::memcpy(&word, pair, sizeof word);
    return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_epi32(word), (__m512bh)line);
}

// Four chains of sums to a row, two for each line of codes.
template <int rows>
void multiply_rows(const Fp8FewRows& p) {
    constexpr int64_t chunk = 32, lines = chunk / 4;
    const Table table(fp8_magnitudes(p.format));
    const uint8_t* codes = p.codes;
    const uint16_t* a = p.a;
    const float* scale = p.scales;
    __m512 totals[rows];
    for (int r = 0; r < rows; ++r) totals[r] = _mm512_setzero_ps();
    for (int64_t k = 0; k < p.K; ++scale) {
        __m512 sums[rows][4];
        for (int r = 0; r < rows; ++r) {
            for (int chain = 0; chain < 4; ++chain) sums[r][chain] = _mm512_setzero_ps();
        }
        const int64_t last_k = k + p.block_k < p.K ? k + p.block_k : p.K;
        for (; k < last_k; k += chunk, codes += lines * kLine, a += p.panel_rows * chunk) {
#pragma GCC unroll 8
            for (int i = 0; i < lines; ++i) {
                const Lines pairs = look_up(table, codes + i * kLine);
#pragma GCC unroll 4
                for (int r = 0; r < rows; ++r) {
                    sums[r][i % 2 * 2] = dot(sums[r][i % 2 * 2], a + r * chunk + 4 * i, pairs.first);
                    sums[r][i % 2 * 2 + 1] = dot(sums[r][i % 2 * 2 + 1], a + r * chunk + 4 * i + 2, pairs.second);
                }
            }
        }
        for (int r = 0; r < rows; ++r) {
            const __m512 sum = _mm512_add_ps(_mm512_add_ps(sums[r][0], sums[r][1]), _mm512_add_ps(sums[r][2], sums[r][3]));
            totals[r] = _mm512_fmadd_ps(sum, _mm512_set1_ps(*scale), totals[r]);
        }
    }
    for (int r = 0; r < rows; ++r) _mm512_storeu_ps(p.sums + r * kStripColumns, totals[r]);
}

void multiply_few(const Fp8FewRows& p) {
    switch (p.rows) {
        case 1: return multiply_rows<1>(p);
        case 2: return multiply_rows<2>(p);
        case 3: return multiply_rows<3>(p);
        default: return multiply_rows<4>(p);
    }
}

}  // namespace

extern const Fp8ExpandKernels fp8_expand_avx512bf16;
const Fp8ExpandKernels fp8_expand_avx512bf16 = {Isa::avx512bf16, expand_lines_to_f32, expand_by_table, multiply_few};
}  // namespace gossamer
