// Weights made of two packed weights. Contract: format_low_rank.h.
#include <cstring>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>

#include "formats/rows.h"
#include "gossamer/format_low_rank.h"
#include "gossamer/linear.h"

namespace gossamer {
namespace {

constexpr int64_t kFirstOffset = static_cast<int64_t>(sizeof(PackedHeader) + sizeof(PackedParts));
constexpr int64_t kMaxPartBytes = int64_t{1} << 60;

[[noreturn]] void fail(const char* format, const std::string& what) { throw std::invalid_argument(std::string(format) + ": " + what); }

std::string shape_of(const Weight& w) { return std::to_string(w.N) + " x " + std::to_string(w.K); }

bool is_factor(const Weight& w) {
    const auto* int8 = std::get_if<Int8Weight>(&w.form);
    return (int8 != nullptr && int8->layout.G == 0) || std::holds_alternative<Bf16Weight>(w.form) ||
           std::holds_alternative<F32Weight>(w.form);
}

bool is_base(const Weight& w) {
    return !std::holds_alternative<Bf16Weight>(w.form) && !std::holds_alternative<F32Weight>(w.form) &&
           !std::holds_alternative<LowRankWeight>(w.form) && !std::holds_alternative<SumWeight>(w.form);
}

LowRankWeight low_rank_of(const Weight& V, const Weight& U) {
    if (!is_factor(V) || !is_factor(U)) fail("low-rank", "factors: wanted fp32, bf16 or int8 with one scale per channel");
    if (V.activations == Activations::int8_group || V.activations != U.activations) {
        fail("low-rank", "factors: got activations " + std::string(name(V.activations)) + " and " + name(U.activations) +
                             ", wanted both int8 or both exact");
    }
    if (V.N > std::numeric_limits<int32_t>::max()) fail("low-rank", "rank: got " + std::to_string(V.N) + ", wanted at most 2^31 - 1");
    if (V.input_scale > 0 || U.input_scale > 0) fail("low-rank", "factors: got an input scale, wanted none");
    if (V.N != U.K)
        fail("low-rank", "factors: got U " + shape_of(U) + " and V " + shape_of(V) + ", wanted the columns of U to be the rows of V");
    return {U.N, V.K, V.N, std::make_shared<const Weight>(V), std::make_shared<const Weight>(U)};
}

SumWeight sum_of(const Weight& base, const Weight& low_rank) {
    if (!is_base(base)) fail("sum", "base: wanted int8, 4 bits, fp8 or sparse");
    if (!std::holds_alternative<LowRankWeight>(low_rank.form)) fail("sum", "second part: wanted low-rank");
    if (base.N != low_rank.N || base.K != low_rank.K) {
        fail("sum", "parts: got " + shape_of(base) + " and " + shape_of(low_rank) + ", wanted the same shape");
    }
    if (low_rank.activations == Activations::int8 && base.activations == Activations::exact) {
        fail("sum", "parts: got activations exact and int8, wanted exact for both, or a base that rounds x");
    }
    return {base.N, base.K, std::make_shared<const Weight>(base), std::make_shared<const Weight>(low_rank)};
}

const void* at(const void* packed, const PackedPart& part) { return static_cast<const char*>(packed) + part.offset; }

// Which formats may nest is checked before their bytes are read, so that no file can nest endlessly.
FormatId format_at(const void* packed, const PackedPart& part) { return read_header(at(packed, part), part.size_bytes).format; }

Weight part_view(const void* packed, const PackedPart& part, bool low_rank) {
    const FormatId format = format_at(packed, part);
    if ((format == FormatId::low_rank) != low_rank || format == FormatId::sum) {
        fail("packed weight",
             std::string("got a part of format ") + name(format) + (low_rank ? ", wanted low-rank" : ", wanted no such nesting"));
    }
    return weight_view(at(packed, part), part.size_bytes);
}

PackedHeader header_of(const LowRankWeight& w) {
    PackedHeader header = make_header(FormatId::low_rank, w.N, w.K, 0, w.V->activations);
    header.rank = static_cast<int32_t>(w.R);
    return header;
}

PackedHeader header_of(const SumWeight& w, const PackedHeader& base) {
    PackedHeader header = make_header(FormatId::sum, w.N, w.K, base.G, base.activations);
    header.rank = static_cast<int32_t>(std::get<LowRankWeight>(w.low_rank->form).R);
    header.input_scale = base.input_scale;
    return header;
}

std::string text_of(const PackedHeader& h) {
    return "N = " + std::to_string(h.N) + ", K = " + std::to_string(h.K) + ", G = " + std::to_string(h.G) +
           ", rank = " + std::to_string(h.rank) + ", activations " + name(h.activations) +
           ", input_scale = " + std::to_string(h.input_scale);
}

void check_header(const PackedHeader& found, const PackedHeader& wanted) {
    if (std::memcmp(&found, &wanted, sizeof found) == 0) return;
    fail("packed weight",
         std::string(name(found.format)) + ": got a header of " + text_of(found) + ", wanted that of the parts: " + text_of(wanted));
}

void pack(const PackedHeader& header, const PartBytes& first, const PartBytes& second, void* packed, int64_t packed_bytes) {
    const TwoParts parts = two_parts(first.size_bytes, second.size_bytes);
    check_packed_bytes(header, packed_bytes, parts.size_bytes);
    char* bytes = begin_packed(header, packed, packed_bytes);
    const PackedParts sizes{first.size_bytes, second.size_bytes, {}};
    std::memcpy(bytes + sizeof(PackedHeader), &sizes, sizeof sizes);
    std::memcpy(bytes + parts.first.offset, first.data, static_cast<size_t>(first.size_bytes));
    std::memcpy(bytes + parts.second.offset, second.data, static_cast<size_t>(second.size_bytes));
}

}  // namespace

TwoParts two_parts(int64_t first_bytes, int64_t second_bytes) {
    if (first_bytes < 0 || second_bytes < 0 || first_bytes > kMaxPartBytes || second_bytes > kMaxPartBytes) {
        fail("packed weight", "parts: got " + std::to_string(first_bytes) + " and " + std::to_string(second_bytes) + " bytes");
    }
    const int64_t second = round_up(kFirstOffset + first_bytes, 64);
    return {{kFirstOffset, first_bytes}, {second, second_bytes}, second + second_bytes};
}

TwoParts read_parts(const void* packed, int64_t packed_bytes) {
    const PackedHeader header = read_header(packed, packed_bytes);
    check_format(header, header.format == FormatId::low_rank || header.format == FormatId::sum, "low-rank or sum");
    if (packed_bytes < kFirstOffset) check_packed_bytes(header, packed_bytes, kFirstOffset);
    PackedParts sizes;
    std::memcpy(&sizes, static_cast<const char*>(packed) + sizeof header, sizeof sizes);
    const TwoParts parts = two_parts(sizes.first_bytes, sizes.second_bytes);
    check_packed_bytes(header, packed_bytes, parts.size_bytes);
    return parts;
}

LowRankWeight low_rank_view(const void* packed, int64_t packed_bytes) {
    const TwoParts parts = read_parts(packed, packed_bytes);
    const Weight V = part_view(packed, parts.first, false);
    const LowRankWeight weight = low_rank_of(V, part_view(packed, parts.second, false));
    check_header(read_header(packed, packed_bytes), header_of(weight));
    return weight;
}

SumWeight sum_view(const void* packed, int64_t packed_bytes) {
    const TwoParts parts = read_parts(packed, packed_bytes);
    const Weight base = part_view(packed, parts.first, false);
    const SumWeight weight = sum_of(base, part_view(packed, parts.second, true));
    check_header(read_header(packed, packed_bytes), header_of(weight, read_header(at(packed, parts.first), parts.first.size_bytes)));
    return weight;
}

void low_rank_pack(const PartBytes& V, const PartBytes& U, void* packed, int64_t packed_bytes) {
    const LowRankWeight weight = low_rank_of(weight_view(V.data, V.size_bytes), weight_view(U.data, U.size_bytes));
    pack(header_of(weight), V, U, packed, packed_bytes);
}

void sum_pack(const PartBytes& base, const PartBytes& low_rank, void* packed, int64_t packed_bytes) {
    const SumWeight weight = sum_of(weight_view(base.data, base.size_bytes), weight_view(low_rank.data, low_rank.size_bytes));
    pack(header_of(weight, read_header(base.data, base.size_bytes)), base, low_rank, packed, packed_bytes);
}

namespace {

void dequantize_part(const Weight& weight, int64_t first_row, int64_t last_row, float* out, int threads) {
    std::visit([&](const auto& form) { dequantize(form, first_row, last_row, out, threads); }, weight.form);
}

// out[n, K] += U[n, R] V[R, K], or = with `first`. fp32 sums in the order of r.
void add_product(const LowRankWeight& w, int64_t first_row, int64_t last_row, bool first, float* out, int threads) {
    const auto V = std::make_unique<float[]>(static_cast<size_t>(w.R * w.K));
    const auto U = std::make_unique<float[]>(static_cast<size_t>((last_row - first_row) * w.R));
    dequantize_part(*w.V, 0, w.R, V.get(), threads);
    dequantize_part(*w.U, first_row, last_row, U.get(), threads);
    for_each_row(last_row - first_row, threads, [&](int64_t row) {
        float* to = out + row * w.K;
        if (first) std::fill(to, to + w.K, 0.0f);
        for (int64_t r = 0; r < w.R; ++r) {
            const float u = U[static_cast<size_t>(row * w.R + r)];
            const float* v = V.get() + r * w.K;
            for (int64_t k = 0; k < w.K; ++k) to[k] += u * v[k];
        }
    });
}

}  // namespace

void dequantize(const LowRankWeight& weight, int64_t first_row, int64_t last_row, float* out, int threads) {
    check_rows("low-rank dequantize", first_row, last_row, weight.N);
    add_product(weight, first_row, last_row, true, out, threads);
}

void dequantize(const SumWeight& weight, int64_t first_row, int64_t last_row, float* out, int threads) {
    check_rows("sum dequantize", first_row, last_row, weight.N);
    dequantize_part(*weight.base, first_row, last_row, out, threads);
    add_product(std::get<LowRankWeight>(weight.low_rank->form), first_row, last_row, false, out, threads);
}

}  // namespace gossamer
