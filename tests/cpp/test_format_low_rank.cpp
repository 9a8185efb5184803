// Formats low-rank and sum: the places of the parts, which parts fit together, and errors for bytes that are not a packed weight.
#include <cstddef>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "check.h"
#include "damaged.h"
#include "low_rank_weight.h"

namespace gossamer::test {
namespace {

constexpr FormatId int8 = FormatId::int8, bf16 = FormatId::bf16, f32 = FormatId::f32;
constexpr AnyKind kInt4{FormatId::int4, ScaleType::f16, false, 32, Activations::int8};

LowRankFactors some_factors() { return {{bf16, f32}, 20, 70, 9, 1}; }
SumOfWeights some_sum() { return {kInt4, {bf16, f32}, 20, 70, 9, 1}; }

void check_parts(const Guarded<uint8_t>& packed, const PartBytes& first, const PartBytes& second, const std::string& what) {
    const TwoParts parts = read_parts(packed.data(), packed.size());
    check(parts.first.offset == 128 && parts.first.size_bytes == first.size_bytes, what + ": first part");
    check(parts.second.offset % 64 == 0 && parts.second.size_bytes == second.size_bytes, what + ": second part");
    check(parts.size_bytes == packed.size() && parts.second.offset - 128 - first.size_bytes < 64, what + ": size");
    const auto same = [&](const PackedPart& part, const PartBytes& bytes) {
        return std::memcmp(packed.data() + part.offset, bytes.data, static_cast<size_t>(bytes.size_bytes)) == 0;
    };
    check(same(parts.first, first) && same(parts.second, second), what + ": the parts are copied as they are");
}

void test_places() {
    const LowRankFactors factors = some_factors();
    check_parts(factors.packed, factors.V.bytes(), factors.U.bytes(), "low-rank");
    const LowRankWeight w = low_rank_view(factors.packed.data(), factors.packed.size());
    check(w.N == 20 && w.K == 70 && w.R == 9 && w.V->N == 9 && w.U->K == 9, "low-rank: shapes");
    check(read_header(factors.packed.data(), factors.packed.size()).rank == 9, "low-rank: rank in the header");
    const SumOfWeights sum = some_sum();
    check_parts(sum.packed, sum.base.bytes(), sum.low_rank.bytes(), "sum");
    const PackedHeader header = read_header(sum.packed.data(), sum.packed.size());
    check(header.rank == 9 && header.G == 32 && header.activations == Activations::int8, "sum: header");
    const SumWeight s = sum_view(sum.packed.data(), sum.packed.size());
    check(s.N == 20 && s.K == 70 && std::holds_alternative<LowRankWeight>(s.low_rank->form), "sum: parts");
}

void test_what_fits() {
    const auto packs = [](const PartBytes& first, const PartBytes& second, auto pack) {
        Guarded<uint8_t> packed(two_parts(first.size_bytes, second.size_bytes).size_bytes);
        pack(first, second, packed.data(), packed.size());
    };
    const auto throws = [&](const PartBytes& first, const PartBytes& second, auto pack, const char* message) {
        check_throws<std::invalid_argument>([&] { packs(first, second, pack); }, message);
    };
    const AnyWeight V({f32}, 5, 30, 1), U({f32}, 12, 5, 2), wide({f32}, 12, 6, 3), groups({int8, ScaleType::f32, false, 32}, 5, 30, 4);
    const AnyWeight rounding(factor_kind(int8, Activations::int8), 12, 5, 5), base({FormatId::fp8_e4m3}, 12, 30, 6);
    const LowRankFactors factors({f32, f32}, 12, 30, 5, 7), other({f32, f32}, 12, 31, 5, 8),
        both({int8, int8, Activations::int8}, 12, 30, 5, 9);
    const AnyWeight dense({bf16}, 12, 30, 10);
    throws(V.bytes(), wide.bytes(), low_rank_pack, "wanted the columns of U to be the rows of V");
    throws(groups.bytes(), U.bytes(), low_rank_pack, "wanted fp32, bf16 or int8 with one scale per channel");
    throws(V.bytes(), rounding.bytes(), low_rank_pack, "got activations exact and int8");
    throws(factors.bytes(), U.bytes(), low_rank_pack, "wanted fp32, bf16 or int8 with one scale per channel");
    throws(base.bytes(), other.bytes(), sum_pack, "wanted the same shape");
    throws(base.bytes(), U.bytes(), sum_pack, "second part: wanted low-rank");
    throws(dense.bytes(), factors.bytes(), sum_pack, "base: wanted int8, 4 bits, fp8 or sparse");
    throws(base.bytes(), both.bytes(), sum_pack, "got activations exact and int8");
    packs(V.bytes(), U.bytes(), low_rank_pack);
    packs(base.bytes(), factors.bytes(), sum_pack);
}

// The input scale of a sum is that of its base; factors have none.
void test_input_scale() {
    SumOfWeights sum = some_sum();
    set_input_scale(sum.packed.data(), sum.packed.size(), 0.5f);
    const SumWeight parts = sum_view(sum.packed.data(), sum.packed.size());
    check(sum.view().input_scale == 0.5f && parts.base->input_scale == 0.5f && parts.low_rank->input_scale == 0, "sum: input scale");
    AnyKind kind = kInt4;
    kind.input_scale = 0.5f;
    const SumOfWeights same(kind, {bf16, f32}, 20, 70, 9, 1);
    check_equal(sum.packed.data(), same.packed.data(), sum.packed.size(), "sum: of a base with an input scale");
    const auto view = [](const void* packed, int64_t bytes) { sum_view(packed, bytes); };
    check_field(sum.packed, offsetof(PackedHeader, input_scale), 0.25f, "wanted that of the parts", view);
    LowRankFactors factors({int8, int8, Activations::int8}, 12, 30, 5, 9);
    check_throws<std::invalid_argument>([&] { set_input_scale(factors.packed.data(), factors.packed.size(), 0.5f); },
                                        "low-rank: input_scale: got 0.500000, wanted none in this format");
    const TwoParts places = read_parts(factors.packed.data(), factors.packed.size());
    const auto view_factors = [](const void* packed, int64_t bytes) { low_rank_view(packed, bytes); };
    for (const PackedPart& part : {places.first, places.second}) {
        check_field(factors.packed, static_cast<size_t>(part.offset) + offsetof(PackedHeader, input_scale), 0.5f,
                    "factors: got an input scale", view_factors);
    }
}

// Sizes, ranks and nesting that do not fit.
template <class View>
void check_damaged_parts(const Guarded<uint8_t>& packed, const View& view) {
    check_damaged(packed, FormatId::int8, view);
    const TwoParts parts = read_parts(packed.data(), packed.size());
    for (const int64_t size : {int64_t{0}, int64_t{-64}, parts.first.size_bytes + 64, std::numeric_limits<int64_t>::max()}) {
        check_field(packed, 64, size, "bytes", view);
        check_field(packed, 72, size, "bytes", view);
    }
    for (const int64_t rank : {int64_t{0}, int64_t{-1}, int64_t{8}, std::numeric_limits<int64_t>::max()}) {
        check_field(packed, offsetof(PackedHeader, rank), rank, "wanted that of the parts", view);
    }
    for (const PackedPart& part : {parts.first, parts.second}) {
        for (const FormatId format : {FormatId::sum, FormatId::low_rank, FormatId::fp8_e4m3}) {
            const FormatId found = read_header(packed.data() + part.offset, part.size_bytes).format;
            if (format == found) continue;
            check_field(packed, static_cast<size_t>(part.offset) + offsetof(PackedHeader, format), format, "", view);
        }
        check_field(packed, static_cast<size_t>(part.offset), 'g', "do not start with the mark", view);
        check_field(packed, static_cast<size_t>(part.offset) + offsetof(PackedHeader, K), int64_t{33}, "", view);
    }
}

// Any byte of the headers: an error, or a weight that can be read to its end.
void check_any_damage(const Guarded<uint8_t>& packed) {
    Random random(3);
    const TwoParts parts = read_parts(packed.data(), packed.size());
    for (int i = 0; i < 3000; ++i) {
        Guarded<uint8_t> damaged(packed.size());
        std::memcpy(damaged.data(), packed.data(), static_cast<size_t>(packed.size()));
        const int64_t header = random.integer(0, 2) == 0
                                   ? random.integer(0, 127)
                                   : (random.integer(0, 1) == 0 ? parts.first : parts.second).offset + random.integer(0, 191);
        damaged[header] = static_cast<uint8_t>(random.bits());
        try {
            const Weight w = weight_view(damaged.data(), damaged.size());
            std::vector<float> dense(static_cast<size_t>(w.N * w.K));
            std::visit([&](const auto& form) { dequantize(form, 0, w.N, dense.data(), 1); }, w.form);
        } catch (const std::invalid_argument&) {
        }
    }
    check(true, "damaged bytes were read within their bounds");
}

}  // namespace
}  // namespace gossamer::test

int main() {
    using namespace gossamer::test;
    test_places();
    test_what_fits();
    test_input_scale();
    const LowRankFactors factors = some_factors();
    const SumOfWeights sum = some_sum();
    check_damaged_parts(factors.packed, [](const void* packed, int64_t bytes) { gossamer::low_rank_view(packed, bytes); });
    check_damaged_parts(sum.packed, [](const void* packed, int64_t bytes) { gossamer::sum_view(packed, bytes); });
    check_any_damage(factors.packed);
    check_any_damage(sum.packed);
    return finish();
}
