// Sparse int8 and int4 on AVX512-VBMI2. Contract: sparse_s8.h.
//
// A line of 64 weights:  KMOVQ of its mask, a plain load of 64 bytes wherever its values begin (the packed buffer ends in 64 bytes of
// padding), VPEXPANDB from register to register; the values of the next line begin POPCNT(mask) further on, one addition a line. Codes of 4
// bits are unpacked before they are expanded, three instructions more.
//
// What binds:  Zen 4: KMOVQ, VPEXPANDB and VPDPBUSD share two of the four vector pipes and take 1 + 1.5 + 1 cycles of both, 3.4 cycles a
//              line for one row (0.93 ns at 3.7 GHz, 69 GB/s of dense weights), 2.4 + M for M rows.
//              Intel (by reasoning, not measured): KMOVQ (1) and VPEXPANDB (2) all go to port 5, 3 cycles a line, with VPDPBUSD beside
//              them on port 0.
//
// Up to a panel of 16 rows, 8 at a time: for 16, expanding a strip and running the dense kernel takes 1.0 to 1.3 times as long, for one row
// twice; codes expanded for the u4 kernels 0.97 to 1.2 times.
//
// Where whole columns of a line are there or not (1x4, 1x16), VPEXPANDD by 16 bits, 0.83 ns a line in L1. The bits of 4x1 and 16x1 are
// spread to 64 first.
//
// Four lines at a time: all masks, then all loads, then all expansions, then all products. One line after the other, as g++ orders it, took
// 1.2 to 1.4 ns a line. Tried, no gain (Zen 4): VPEXPANDB from memory, the same by fours and 1.7 ns one by one. Lost: words of A by VPERMD
// from a register instead of broadcasts from memory (1.1 ns); eight lines at a time with masks through general registers (1.1 ns).
// Expanding into a buffer takes 1.4 to 1.5 ns a line, stored one after the other or four at a time; codes unpacked by VPMULTISHIFTQB take
// as long as by shifts.
#include <immintrin.h>

#include <cstdint>

#include "../scales_512.h"
#include "chunk_masks.h"
#include "row_parts.h"

namespace gossamer {
namespace {

constexpr int kLines = 4;  // at a time
constexpr int kMostRows = 8;

inline __m512i load(const void* p) { return _mm512_loadu_si512(p); }

// From memory (300 MB of layers, one row) 1.2 to 1.4 times as fast as without; in cache no slower. The hardware does not run far enough
// ahead of two streams, of which that of the values is slow and uneven. 1 KiB ahead gained less.
constexpr int64_t kAhead = 2048;  // bytes
inline void prefetch(const uint8_t* p) { _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T0); }

// Keeps g++ from moving a load into the instruction that uses it, and from mixing up the four lines.
inline void pin(__m512i& x) { asm("" : "+v"(x)); }

inline __m512i broadcast_word(const void* a) { return _mm512_set1_epi32(load_bits<int32_t>(static_cast<const uint8_t*>(a))); }

// `count` lines of int8; values: where the first begins, then where the line after them does.
template <int count>
inline void read_bytes(const uint8_t* masks, const uint8_t*& values, __m512i (&lines)[count]) {
#pragma GCC unroll 8
    for (int i = 0; i < count; ++i) {
        lines[i] = load(values);
        pin(lines[i]);
        values += _mm_popcnt_u64(load_bits<uint64_t>(masks + i * 8));
    }
#pragma GCC unroll 8
    for (int i = 0; i < count; ++i) {
        lines[i] = _mm512_maskz_expand_epi8(load_bits<uint64_t>(masks + i * 8), lines[i]);
        pin(lines[i]);
    }
}

// The same for codes: 64 from 32 bytes, each byte in a word of its own, beside itself shifted by 4.
template <int count>
inline void read_codes(const uint8_t* masks, const uint8_t*& values, __m512i (&lines)[count]) {
#pragma GCC unroll 8
    for (int i = 0; i < count; ++i) {
        const __m512i words = _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(values)));
        lines[i] = _mm512_and_si512(_mm512_or_si512(words, _mm512_slli_epi16(words, 4)), _mm512_set1_epi8(0x0f));
        pin(lines[i]);
        values += (_mm_popcnt_u64(load_bits<uint64_t>(masks + i * 8)) + 1) / 2;
    }
#pragma GCC unroll 8
    for (int i = 0; i < count; ++i) {
        lines[i] = _mm512_mask_expand_epi8(_mm512_set1_epi8(8), load_bits<uint64_t>(masks + i * 8), lines[i]);
        pin(lines[i]);
    }
}

void expand_bytes(const SparseLines& b, int8_t* out) {
    const uint8_t* values = b.values;
    for_each_chunk(b, [&](const uint8_t* masks, int64_t, int64_t count) {
        for (int64_t i = 0; i < count; ++i, out += 64) {
            __m512i line[1];
            read_bytes(masks + i * 8, values, line);
            _mm512_storeu_si512(out, line[0]);
        }
    });
}

void expand_codes(const SparseLines& b, uint8_t* out) {
    const uint8_t* values = b.values;
    for_each_chunk(b, [&](const uint8_t* masks, int64_t, int64_t count) {
        for (int64_t i = 0; i < count; i += 2, out += 64) {
            __m512i lines[2];
            read_codes(masks + i * 8, values, lines);
            _mm512_storeu_si512(out, _mm512_or_si512(lines[0], _mm512_slli_epi16(lines[1], 4)));
        }
    });
}

// Sums of `rows` rows over 16 columns, a chain for each line of four where the rows are too few to hide the latency of VPDPBUSD.
template <int rows>
struct Sums {
    static constexpr int chains = rows == 1 ? 4 : rows == 2 ? 2 : 1;
    __m512i v[rows][chains];

    void start(int m, __m512i first) {
        v[m][0] = first;
#pragma GCC unroll 8
        for (int u = 1; u < chains; ++u) v[m][u] = _mm512_setzero_si512();
    }
    __m512i total(int m) const {
        __m512i sum = v[m][0];
#pragma GCC unroll 8
        for (int u = 1; u < chains; ++u) sum = _mm512_add_epi32(sum, v[m][u]);
        return sum;
    }
};

// Lines one after the other, four at a time, by masks of 64 bits.
class ByteReader {
public:
    explicit ByteReader(const SparseLines& b) : b_(b), values_(b.values) {}
    void read(int64_t line, __m512i (&lines)[kLines]) {
        if (line % kChunkLines == 0) masks_ = chunk_masks(b_, line, kChunkLines, room_);
        const uint8_t* masks = masks_ + line % kChunkLines * 8;
        prefetch(masks + kAhead);
        prefetch(values_ + kAhead);
        prefetch(values_ + kAhead + 64);
        read_bytes(masks, values_, lines);
    }

private:
    const SparseLines& b_;
    const uint8_t *values_, *masks_ = nullptr;
    uint64_t room_[kChunkLines];
};

// The same where columns have all 4 k of a line or none: VPEXPANDD by 16 bits, which `sharing` lines have in common.
template <int sharing>
class WordReader {
public:
    explicit WordReader(const SparseLines& b) : masks_(b.masks), values_(b.values) {}
    void read(int64_t line, __m512i (&lines)[kLines]) {
        const uint8_t* masks = masks_ + line / sharing * 2;
        prefetch(masks + kAhead);
        prefetch(values_ + kAhead);
        prefetch(values_ + kAhead + 64);
#pragma GCC unroll 8
        for (int i = 0; i < kLines; ++i) {
            lines[i] = load(values_);
            pin(lines[i]);
            values_ += 4 * _mm_popcnt_u32(load_bits<uint16_t>(masks + i / sharing * 2));
        }
#pragma GCC unroll 8
        for (int i = 0; i < kLines; ++i) {
            lines[i] = _mm512_maskz_expand_epi32(load_bits<uint16_t>(masks + i / sharing * 2), lines[i]);
            pin(lines[i]);
        }
    }

private:
    const uint8_t *masks_, *values_;
};

template <int rows, class Reader>
void run_lines(const SparseS8Rows& r, Reader reader) {
    Sums<rows> sums;
#pragma GCC unroll 8
    for (int m = 0; m < rows; ++m) sums.start(m, load(r.init));
    for (int64_t chunk = 0; chunk < r.b.lines; chunk += kChunkLines) {
        const uint8_t* a = r.a + chunk * 4 * r.panel_rows;
#pragma GCC unroll 4
        for (int i = 0; i < kChunkLines; i += kLines) {
            __m512i lines[kLines];
            reader.read(chunk + i, lines);
#pragma GCC unroll 8
            for (int m = 0; m < rows; ++m) {
#pragma GCC unroll 8
                for (int j = 0; j < kLines; ++j) {
                    __m512i& sum = sums.v[m][j % Sums<rows>::chains];
                    sum = _mm512_dpbusd_epi32(sum, broadcast_word(a + m * S8Block::chunk + (i + j) * 4), lines[j]);
                }
            }
        }
    }
#pragma GCC unroll 8
    for (int m = 0; m < rows; ++m) _mm512_storeu_si512(r.c + m * kStripColumns, sums.total(m));
}

template <int rows>
void run_bytes(const SparseS8Rows& r) {
    switch (r.b.pattern) {
        case SparsePattern::b1x4: return run_lines<rows>(r, WordReader<1>(r.b));
        case SparsePattern::b1x16: return run_lines<rows>(r, WordReader<4>(r.b));
        default: return run_lines<rows>(r, ByteReader(r.b));
    }
}

// Four lines of codes, at `masks`, times rows of A at a.
template <int rows>
inline void multiply_codes(Sums<rows>& sums, const uint8_t* masks, const uint8_t*& values, const int8_t* a) {
    prefetch(masks + kAhead);
    prefetch(values + kAhead);
    __m512i lines[kLines];
    read_codes(masks, values, lines);
#pragma GCC unroll 8
    for (int m = 0; m < rows; ++m) {
#pragma GCC unroll 8
        for (int j = 0; j < kLines; ++j) {
            __m512i& sum = sums.v[m][j % Sums<rows>::chains];
            sum = _mm512_dpbusd_epi32(sum, lines[j], broadcast_word(a + m * S8Block::chunk + j * 4));
        }
    }
}

template <int rows>
void run_codes(const SparseU4Rows& r) {
    const uint8_t *values = r.b.values, *masks = nullptr;
    uint64_t room[kChunkLines];
    __m512 totals[rows];
#pragma GCC unroll 8
    for (int m = 0; m < rows; ++m) totals[m] = _mm512_setzero_ps();
    const int64_t group_lines = r.group_k / 4;
    for (int64_t line = 0, g = 0; line < r.b.lines; ++g) {
        const int64_t last = line + group_lines < r.b.lines ? line + group_lines : r.b.lines;
        Sums<rows> sums;
#pragma GCC unroll 8
        for (int m = 0; m < rows; ++m) sums.start(m, _mm512_set1_epi32(r.a_sums[m * r.groups + g]));
        for (; line < last; line += kLines) {
            const int64_t in_chunk = line % kChunkLines;
            if (in_chunk == 0) masks = chunk_masks(r.b, line, kChunkLines, room);
            multiply_codes(sums, masks + in_chunk * 8, values, r.a + (line - in_chunk) * 4 * r.panel_rows + in_chunk * 4);
        }
        const __m512 scales = load_scales(r.scales, g * kPanelColumns, r.scale_type);
#pragma GCC unroll 8
        for (int m = 0; m < rows; ++m) {
            const __m512 total = _mm512_cvtepi32_ps(sums.total(m));
            if (r.a_scales == nullptr) {
                totals[m] = _mm512_fmadd_ps(total, scales, totals[m]);
            } else {
                totals[m] = _mm512_fmadd_ps(_mm512_mul_ps(total, scales), _mm512_set1_ps(r.a_scales[m * r.groups + g]), totals[m]);
            }
        }
    }
#pragma GCC unroll 8
    for (int m = 0; m < rows; ++m) _mm512_storeu_ps(r.sum + m * kStripColumns, totals[m]);
}

void run_few_int8(const SparseS8Rows& r) {
    switch (r.M) {
        case 1: return run_bytes<1>(r);
        case 2: return run_bytes<2>(r);
        case 3: return run_bytes<3>(r);
        case 4: return run_bytes<4>(r);
        case 5: return run_bytes<5>(r);
        case 6: return run_bytes<6>(r);
        case 7: return run_bytes<7>(r);
        default: return run_bytes<8>(r);
    }
}

void run_few_int4(const SparseU4Rows& r) {
    switch (r.M) {
        case 1: return run_codes<1>(r);
        case 2: return run_codes<2>(r);
        case 3: return run_codes<3>(r);
        case 4: return run_codes<4>(r);
        case 5: return run_codes<5>(r);
        case 6: return run_codes<6>(r);
        case 7: return run_codes<7>(r);
        default: return run_codes<8>(r);
    }
}

void run_int8(const SparseS8Rows& rows) { for_each_part<kMostRows>(rows, run_few_int8); }
void run_int4(const SparseU4Rows& rows) { for_each_part<kMostRows>(rows, run_few_int4); }

}  // namespace

extern const SparseS8Kernels sparse_s8_avx512vbmi2;
const SparseS8Kernels sparse_s8_avx512vbmi2 = {Isa::avx512vbmi2, expand_bytes, expand_codes, 16, run_int8, run_int4};
}  // namespace gossamer
