// Few rows of sparse int8 and int4 weights, bit for bit as the dense weight of the same numbers; and how threads share the strips.
#include <string>
#include <vector>

#include "check.h"
#include "dispatch/lists.h"
#include "linear/product.h"
#include "linear/sparse_strips.h"
#include "sparse_weight.h"

namespace gossamer::test {
namespace {

constexpr int64_t kMostRows = 70;

// Rows of x, quantized as linear() does it.
class TestRows final : public RowSource {
public:
    TestRows(int64_t K, Isa isa, Random& random) : K_(K), isa_(isa) {
        for (int64_t i = 0; i < kMostRows * K; ++i) x_.push_back(static_cast<float>(random.uniform()));
    }
    void fill(const Target& t) const override {
        select_kernels(quantize_list(), isa_)
            .run({x_.data() + t.first_row * K_, DType::f32, K_, t.begin, t.end, K_, t.panel_rows, static_cast<uint8_t*>(t.panels), t.scale,
                  t.group_k});
    }
    bool scales_groups() const override { return true; }

private:
    int64_t K_;
    Isa isa_;
    std::vector<float> x_;
};

// The dense weight of the same numbers.
Guarded<uint8_t> dense_twin(const RandomSparseWeight& w) {
    const SparseSpec& s = w.spec;
    if (s.format == FormatId::sparse_int8) {
        const std::vector<int8_t> values(w.bits.begin(), w.bits.end());
        std::vector<float> scales(w.scales.size() / 4);
        std::memcpy(scales.data(), w.scales.data(), w.scales.size());
        const Int8Layout layout = int8_layout(s.N, s.K, s.G);
        Guarded<uint8_t> packed(layout.size_bytes);
        int8_pack(values.data(), scales.data(), layout, s.activations, packed.data(), 1);
        return packed;
    }
    const int64_t stride = (s.K + 1) / 2;
    std::vector<uint8_t> codes(static_cast<size_t>(s.N * stride));
    for (int64_t i = 0; i < s.N * s.K; ++i) {
        uint8_t& byte = codes[static_cast<size_t>(i / s.K * stride + i % s.K / 2)];
        byte = static_cast<uint8_t>(byte | w.bits[static_cast<size_t>(i)] << i % s.K % 2 * 4);
    }
    const FourBitLayout layout = four_bit_layout(FormatId::int4, s.N, s.K, s.G, s.scale_type, false);
    Guarded<uint8_t> packed(layout.size_bytes);
    four_bit_pack(FormatId::int4, {codes.data(), w.scales.data(), nullptr}, layout, s.scale_type, s.activations, packed.data(), 1);
    return packed;
}

struct Case {
    RandomSparseWeight sparse;
    Guarded<uint8_t> packed, dense;
    std::vector<float> bias;

    explicit Case(const RandomSparseWeight& weight) : sparse(weight), packed(weight.packed()), dense(dense_twin(weight)) {
        for (int64_t n = 0; n < weight.spec.N; ++n) bias.push_back(static_cast<float>(n % 7) - 3);
    }
    // Calls run(call, weight) and returns y as bits.
    template <class Run>
    std::vector<uint32_t> product_of(const Guarded<uint8_t>& bytes, const TestRows& rows, int64_t M, int threads, Isa isa,
                                     const Run& run) const {
        const Weight weight = weight_view(bytes.data(), bytes.size());
        std::vector<uint32_t> out(static_cast<size_t>(M * weight.N), 0xa5a5a5a5);
        Epilogue epilogue{};
        epilogue.bias = bias.data();
        epilogue.bias_dtype = DType::f32;
        epilogue.out = out.data();
        epilogue.out_dtype = DType::f32;
        epilogue.out_row_stride = weight.N;
        run(ProductCall{rows, M, weight, Lane::s8, epilogue, threads, isa});
        return out;
    }
};

const SparseWeight& form_of(const ProductCall& call) { return std::get<SparseWeight>(call.weight.form); }

void few(const ProductCall& call) { product_sparse_s8_few(call, form_of(call), select_kernels(sparse_s8_list(), call.isa)); }
void by_codes(const ProductCall& call) { product_sparse_u4(call, form_of(call), *u4_for(call, form_of(call))); }

void check_case(const Case& c, int64_t M, int threads, Isa isa, uint64_t seed) {
    Random random(seed);
    const SparseSpec& spec = c.sparse.spec;
    const TestRows rows(spec.K, isa, random);
    const bool int4 = spec.format == FormatId::sparse_int4;
    const std::string what = c.sparse.text() + ", M = " + std::to_string(M) + ", threads " + std::to_string(threads) + ", " + isa_name(isa);
    const std::vector<uint32_t> wanted = c.product_of(c.dense, rows, M, 1, isa, product);
    const auto check_path = [&](const char* path, void (*run)(const ProductCall&)) {
        const std::vector<uint32_t> got = c.product_of(c.packed, rows, M, threads, isa, run);
        check_equal(got.data(), wanted.data(), static_cast<int64_t>(wanted.size()), std::string(path) + ": " + what);
    };
    const SparseS8Kernels& kernels = select_kernels(sparse_s8_list(), isa);
    if (M <= kernels.max_rows && (int4 || spec.G == 0)) check_path("few", few);
    if (int4 && find_kernels(u4_list(), isa) != nullptr) check_path("codes", by_codes);
}

void test_dense_twins() {
    Random random(1);
    const SparsePattern patterns[] = {SparsePattern::any, SparsePattern::b1x4, SparsePattern::b4x1, SparsePattern::b16x1};
    const ScaleType types[] = {ScaleType::f32, ScaleType::bf16, ScaleType::f16};
    uint64_t seed = 0;
    for (const FormatId format : {FormatId::sparse_int8, FormatId::sparse_int4}) {
        const bool int4 = format == FormatId::sparse_int4;
        for (const int64_t G : int4 ? std::vector<int64_t>{0, 16, 64, 256} : std::vector<int64_t>{0}) {
            for (const bool group_scales : {false, true}) {
                if (group_scales && G == 0) continue;
                for (const int64_t N : {1, 16, 75}) {
                    const int64_t K = random.integer(1, 600);
                    const SparsePattern pattern = patterns[random.integer(0, 3)];
                    const SparseSpec spec{format,
                                          N,
                                          K,
                                          G,
                                          int4 ? types[random.integer(0, 2)] : ScaleType::f32,
                                          group_scales ? Activations::int8_group : Activations::int8,
                                          pattern,
                                          kPartBitmask};
                    const Case c(RandomSparseWeight(spec, {N, K, 0.4, pattern}, ++seed));
                    for (int isa = 0; isa < kIsaCount; ++isa) {
                        if (!isa_available(static_cast<Isa>(isa)) || static_cast<Isa>(isa) == Isa::amx) continue;
                        for (const int64_t M : {int64_t{1}, random.integer(2, 8), random.integer(9, 16), int64_t{40}}) {
                            check_case(c, M, 1, static_cast<Isa>(isa), seed);
                        }
                    }
                }
            }
        }
    }
}

// Enough work for several threads, and strips of very different weight.
void test_threads() {
    for (const FormatId format : {FormatId::sparse_int8, FormatId::sparse_int4}) {
        const SparseSpec spec{format, 330, 1100, 0, ScaleType::f32, Activations::int8, SparsePattern::any, kPartBitmask};
        const Case c(RandomSparseWeight(spec, {330, 1100, 0.3, SparsePattern::any, true}, 77));
        for (const int threads : {2, 3, 5}) {
            for (const int64_t M : {1, 4, 16}) check_case(c, M, threads, isa_active(), 7);
        }
    }
}

// Parts follow each other, cover all strips, and none has more than its share by more than the heaviest strip.
void check_shares(const std::vector<int64_t>& weights, int64_t others) {
    const int64_t strips = static_cast<int64_t>(weights.size());
    std::vector<int64_t> sums = {0};
    int64_t heaviest = 0;
    for (const int64_t weight : weights) {
        sums.push_back(sums.back() + weight);
        heaviest = std::max(heaviest, weight + others);
    }
    const StripBytes bytes{sums.data(), 1, strips, others};
    for (int64_t count = 1; count <= 9; ++count) {
        int64_t end = 0;
        for (int64_t part = 0; part < count; ++part) {
            const Range range = split_strips(strips, bytes, part, count);
            check(range.begin == end && range.begin <= range.end, "parts follow each other");
            end = range.end;
            check(bytes.before(range.end) - bytes.before(range.begin) <= bytes.before(strips) / count + heaviest + count, "a fair share");
        }
        check(end == strips, "parts cover all strips");
    }
}

void test_shares() {
    Random random(3);
    check_shares({5}, 0);
    check_shares({0, 0, 0, 0}, 0);
    check_shares({0, 0, 100, 0, 0, 0, 1}, 2);
    check_shares(std::vector<int64_t>(128, 10), 0);
    for (int64_t strips = 1; strips < 40; ++strips) {
        std::vector<int64_t> weights;
        for (int64_t i = 0; i < strips; ++i) weights.push_back(random.integer(0, 1) == 0 ? random.integer(0, 10) : random.integer(0, 1000));
        check_shares(weights, random.integer(0, 50));
    }
}

// An even weight is shared as strips are, and an odd count of panels ends at the last one.
void test_strip_bytes() {
    const SparseSpec spec{FormatId::sparse_int8, 80, 512, 0, ScaleType::f32, Activations::int8, SparsePattern::any, kPartBitmask};
    const RandomSparseWeight random(spec, {80, 512, 1.0}, 5);
    const Guarded<uint8_t> packed = random.packed();
    const SparseWeight weight = sparse_view(packed.data(), packed.size());
    const StripBytes bytes = strip_bytes(weight);
    check(bytes.before(1) == 32 * 512 + 2 * weight.layout.mask_stride, "a strip's values and masks");
    check(bytes.before(3) == weight.value_bytes() + 6 * weight.layout.mask_stride, "all values");
}

}  // namespace
}  // namespace gossamer::test

int main() {
    using namespace gossamer::test;
    test_shares();
    test_strip_bytes();
    test_dense_twins();
    test_threads();
    return finish();
}
