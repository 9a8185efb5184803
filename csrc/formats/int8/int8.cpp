// Packing, unpacking and expanding format int8. Contract: format_int8.h.
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>

#include "gossamer/format_int8.h"
#include "gossamer/parallel.h"

namespace gossamer {
namespace {

constexpr int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

// Ask for 2 MiB pages where the buffer spans some: a weight of 16 MiB then needs 8 entries of the TLB instead of 4096. Only a hint, and
// only before the bytes are first written.
void prefer_huge_pages(void* buffer, int64_t size) {
#if defined(__linux__)
    constexpr uintptr_t kHugePage = uintptr_t{2} << 20;
    const uintptr_t first = (reinterpret_cast<uintptr_t>(buffer) + kHugePage - 1) / kHugePage * kHugePage;
    const uintptr_t last = (reinterpret_cast<uintptr_t>(buffer) + static_cast<uintptr_t>(size)) / kHugePage * kHugePage;
    if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

// Where W[n,k] lies in the panels.
int64_t panel_index(const Int8Layout& l, int64_t n, int64_t k) {
    return n / kPanelColumns * kPanelColumns * l.K64 + k / 4 * (kPanelColumns * 4) + n % kPanelColumns * 4 + k % 4;
}

void pack_row(const Int8Layout& l, const int8_t* values, int64_t n, int8_t* panels, int32_t* init) {
    for (int64_t s = 0; s < l.sum_blocks; ++s) {
        const int64_t last = std::min(l.K, (s + 1) * l.sum_k);
        int32_t sum = 0;
        for (int64_t k = s * l.sum_k; k < last; ++k) {
            panels[panel_index(l, n, k)] = values[k];
            sum += values[k];
        }
        init[s * l.N16 + n] = -128 * sum;
    }
}

// Body over rows, shared out in multiples of a panel.
template <class Body>
void for_each_row(int64_t N, int threads, const Body& body) {
    parallel(threads, [&](Team team) {
        const Range panels = split_range((N + kPanelColumns - 1) / kPanelColumns, team.rank, team.size);
        const int64_t end = std::min(N, panels.end * kPanelColumns);
        for (int64_t n = panels.begin * kPanelColumns; n < end; ++n) body(n);
    });
}

}  // namespace

Int8Layout int8_layout(int64_t N, int64_t K, int64_t G) {
    if (N < 1 || K < 1) {
        throw std::invalid_argument("int8: shape: got N = " + std::to_string(N) + ", K = " + std::to_string(K) +
                                    ", wanted both at least 1");
    }
    if (G != 0 && G != 32 && G != 64 && G != 128) {
        throw std::invalid_argument("int8: group_size: got " + std::to_string(G) + ", wanted 32, 64, 128, or 0 for per channel");
    }
    // N16 is up to 16 N, and scales and init take up to a quarter of the panels.
    constexpr int64_t kMaxElements = std::numeric_limits<int64_t>::max() / 64;
    if (K > kMaxElements - kChunk || N > kMaxElements / round_up(K, kChunk)) throw std::invalid_argument("int8: shape: N * K overflows");
    Int8Layout l{};
    l.N = N;
    l.K = K;
    l.G = G;
    l.N16 = round_up(N, kPanelColumns);
    l.K64 = padded_k(K);
    l.groups = G == 0 ? 1 : (K + G - 1) / G;
    l.sum_k = G == 0 ? kMaxSumK : G;
    l.sum_blocks = G == 0 ? (l.K64 + kMaxSumK - 1) / kMaxSumK : l.groups;
    l.scales_offset = static_cast<int64_t>(sizeof(PackedHeader));
    l.init_offset = l.scales_offset + l.groups * l.N16 * 4;
    l.panels_offset = l.init_offset + l.sum_blocks * l.N16 * 4;
    l.size_bytes = l.panels_offset + l.N16 * l.K64;
    return l;
}

Int8Weight int8_view(const void* packed, int64_t packed_bytes) {
    PackedHeader header;
    if (packed_bytes < static_cast<int64_t>(sizeof header)) {
        throw std::invalid_argument("packed weight: got " + std::to_string(packed_bytes) + " bytes, wanted at least a header of 64");
    }
    std::memcpy(&header, packed, sizeof header);
    if (std::memcmp(header.magic, kPackedMagic, sizeof kPackedMagic) != 0) {
        throw std::invalid_argument("packed weight: the bytes do not start with the mark of a packed weight");
    }
    if (header.layout != kPackedLayout || header.format != FormatId::int8) {
        throw std::invalid_argument("packed weight: got layout " + std::to_string(header.layout) + ", format " +
                                    std::to_string(static_cast<uint32_t>(header.format)) + ", wanted layout " +
                                    std::to_string(kPackedLayout) + ", format 1 (int8): pack it again with this version");
    }
    const Int8Layout l = int8_layout(header.N, header.K, header.G);
    if (packed_bytes != l.size_bytes) {
        throw std::invalid_argument("packed weight: got " + std::to_string(packed_bytes) + " bytes, wanted " +
                                    std::to_string(l.size_bytes) + " for N = " + std::to_string(l.N) + ", K = " + std::to_string(l.K));
    }
    if (reinterpret_cast<uintptr_t>(packed) % alignof(PackedHeader) != 0) {
        throw std::invalid_argument("packed weight: the bytes start at an address that is not a multiple of 8; copy them");
    }
    const char* bytes = static_cast<const char*>(packed);
    return {l, reinterpret_cast<const float*>(bytes + l.scales_offset), reinterpret_cast<const int32_t*>(bytes + l.init_offset),
            reinterpret_cast<const int8_t*>(bytes + l.panels_offset)};
}

void int8_pack(const int8_t* values, const float* scales, int64_t N, int64_t K, int64_t G, void* packed, int threads) {
    const Int8Layout l = int8_layout(N, K, G);
    prefer_huge_pages(packed, l.size_bytes);
    char* bytes = static_cast<char*>(packed);
    std::memset(bytes, 0, static_cast<size_t>(l.size_bytes));
    PackedHeader header{};
    std::memcpy(header.magic, kPackedMagic, sizeof kPackedMagic);
    header.layout = kPackedLayout;
    header.format = FormatId::int8;
    header.N = N;
    header.K = K;
    header.G = G;
    std::memcpy(bytes, &header, sizeof header);
    float* packed_scales = reinterpret_cast<float*>(bytes + l.scales_offset);
    int32_t* init = reinterpret_cast<int32_t*>(bytes + l.init_offset);
    int8_t* panels = reinterpret_cast<int8_t*>(bytes + l.panels_offset);
    for_each_row(N, threads, [&](int64_t n) {
        pack_row(l, values + n * K, n, panels, init);
        for (int64_t g = 0; g < l.groups; ++g) packed_scales[g * l.N16 + n] = scales[n * l.groups + g];
    });
}

void int8_unpack(const Int8Weight& weight, int8_t* values, float* scales, int threads) {
    const Int8Layout& l = weight.layout;
    for_each_row(l.N, threads, [&](int64_t n) {
        for (int64_t k = 0; k < l.K; ++k) values[n * l.K + k] = weight.panels[panel_index(l, n, k)];
        for (int64_t g = 0; g < l.groups; ++g) scales[n * l.groups + g] = weight.scales[g * l.N16 + n];
    });
}

void int8_dequantize(const Int8Weight& weight, int64_t first_row, int64_t last_row, float* out, int threads) {
    const Int8Layout& l = weight.layout;
    if (first_row < 0 || last_row > l.N || first_row > last_row) {
        throw std::invalid_argument("int8 dequantize: rows: got [" + std::to_string(first_row) + ", " + std::to_string(last_row) +
                                    "), wanted a range in [0, " + std::to_string(l.N) + ")");
    }
    const int64_t group = l.G == 0 ? l.K : l.G;
    for_each_row(last_row - first_row, threads, [&](int64_t row) {
        const int64_t n = first_row + row;
        for (int64_t k = 0; k < l.K; ++k) {
            out[row * l.K + k] = static_cast<float>(weight.panels[panel_index(l, n, k)]) * weight.scales[k / group * l.N16 + n];
        }
    });
}

}  // namespace gossamer
