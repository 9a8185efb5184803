// The skip-compute product with sparse int8 weights: packed and unpacked exactly, sums bit for bit against the naive ones on every ISA,
// outputs bit for bit those of the dense int8 product, and an error for bytes that are no part.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "check.h"
#include "dispatch/lists.h"
#include "gossamer/linear.h"
#include "guarded.h"
#include "random.h"
#include "reference/reference.h"
#include "spmm/s8/part_layout.h"
#include "spmm_s8_case.h"

namespace gossamer::test {
namespace {

std::vector<Isa> available_isas() {
    if (spmm_s8_list().size() == 1) return {Isa::amx};  // one_kernel.cpp: whatever is asked for, it is that kernel
    std::vector<Isa> isas;
    for (const SpmmS8Kernels* kernels : spmm_s8_list()) {
        if (isa_available(kernels->isa)) isas.push_back(kernels->isa);
    }
    return isas;
}

// Rows of x that the quantizer leaves as they are: integers, and 127 in each row, so that its scale is 1.
struct Activity {
    int64_t M, K;
    std::vector<int8_t> q;
    Guarded<float> x;

    Activity(int64_t m, int64_t k, uint64_t seed) : M(m), K(k), x(m * k) {
        Random random(seed);
        for (int64_t i = 0; i < M * K; ++i) {
            const int64_t v = i % K == (i / K) % K ? 127 : random.integer(-127, 127);
            q.push_back(static_cast<int8_t>(v));
            x[i] = static_cast<float>(v);
        }
    }
};

class QuantizedRows final : public RowSource {
public:
    QuantizedRows(const Guarded<float>& x, int64_t K, Isa isa) : x_(x), K_(K), isa_(isa) {}
    void fill(const Target& t) const override {
        select_kernels(quantize_list(), isa_)
            .run({x_.data() + t.first_row * K_, DType::f32, K_, t.begin, t.end, K_, t.panel_rows, static_cast<uint8_t*>(t.panels), t.scale,
                  t.group_k});
    }

private:
    const Guarded<float>& x_;
    int64_t K_;
    Isa isa_;
};

Guarded<float> skip_product(const SparseCase& c, const Guarded<float>& x, int64_t M, Isa isa, int threads) {
    Guarded<float> out(M * c.N);
    const SparseWeight view = c.view();
    const Weight weight{view, Activations::int8, c.N, c.K};
    Epilogue epilogue{};
    epilogue.out = out.data();
    epilogue.out_row_stride = c.N;
    const QuantizedRows rows(x, c.K, isa);
    spmm_s8::product({rows, M, weight, Lane::s8, epilogue, threads, isa}, view);
    return out;
}

void check_same(const Guarded<float>& got, const Guarded<float>& wanted, const std::string& what) {
    check(got.size() == wanted.size() && std::memcmp(got.data(), wanted.data(), static_cast<size_t>(got.size()) * 4) == 0, what);
}

// Scales of 1 and integers below 2^24: outputs are the sums themselves.
void check_sums(const SparseCase& c, int64_t M, const std::vector<Isa>& isas) {
    const Activity activity(M, c.K, static_cast<uint64_t>(M));
    const std::vector<int64_t> wanted = reference::multiply(activity.q.data(), c.dense.data(), M, c.N, c.K);
    for (const Isa isa : isas) {
        const std::string what = c.what + ", M = " + std::to_string(M) + ", " + isa_name(isa);
        const Guarded<float> got = skip_product(c, activity.x, M, isa, 2);
        std::vector<float> sums;
        for (const int64_t sum : wanted) sums.push_back(static_cast<float>(sum));
        check_equal(got.data(), sums.data(), got.size(), what);
    }
}

// A kernel alone, on buffers that end at a page it must not touch.
void check_kernel(const SpmmS8Kernels& kernels, int64_t vectors, int64_t groups, Random& random) {
    const int64_t rows = vectors * kPanelRows, present = rows - random.integer(0, 15), group_bytes = rows * kernels.word_bytes;
    Guarded<uint8_t> lines(present * 64), x(16 * group_bytes);
    for (uint8_t& u : lines) u = static_cast<uint8_t>(random.integer(0, 255));
    for (int64_t v = 0; v < vectors; ++v) {
        const int64_t here = std::min(kPanelRows, present - v * kPanelRows);
        kernels.transpose_lines(lines.data() + v * kPanelRows * 64, here, x.data() + v * kPanelRows * kernels.word_bytes, group_bytes);
    }
    Guarded<uint16_t> counts(kStripColumns);
    int64_t stored = 0;
    for (uint16_t& count : counts) stored += count = static_cast<uint16_t>(random.integer(0, groups));
    Guarded<uint8_t> indices(stored), words(stored * 4);
    Guarded<int32_t> init(kStripColumns), c(kStripColumns * rows), sums(kStripColumns * rows);
    for (uint8_t& index : indices) index = static_cast<uint8_t>(random.integer(0, 15));
    for (uint8_t& w : words) w = static_cast<uint8_t>(random.integer(0, 255));
    for (int32_t& i : init) i = static_cast<int32_t>(random.integer(-1000000, 1000000));
    const int32_t* first_word = reinterpret_cast<const int32_t*>(words.data());
    kernels.run({x.data(), vectors, counts.data(), first_word, indices.data(), words.data(), init.data(), c.data()});
    kernels.run({x.data(), vectors, counts.data(), first_word, indices.data(), words.data(), nullptr, c.data()});
    for (int64_t n = 0; n < kStripColumns; n += 16) {
        for (int64_t m = 0; m < rows; m += 16) {
            kernels.transpose(c.data() + n * rows + m, rows, 16, sums.data() + m * kStripColumns + n, kStripColumns);
        }
    }
    std::vector<int64_t> wanted;
    for (int64_t m = 0; m < rows; ++m) {
        for (int64_t n = 0, i = 0; n < kStripColumns; ++n) {
            int64_t sum = 0;
            for (const int64_t last = i + counts[n]; i < last; ++i) {
                for (int64_t j = 0; m < present && j < 4; ++j)
                    sum += lines[m * 64 + indices[i] * 4 + j] * static_cast<int8_t>(words[i * 4 + j]);
            }
            wanted.push_back(init[n] + 2 * sum);
        }
    }
    check_equal(sums.data(), wanted.data(), sums.size(), std::string(isa_name(kernels.isa)) + ": " + std::to_string(vectors) + " vectors");
}

void test_kernels() {
    Random random(7);
    for (const SpmmS8Kernels* kernels : spmm_s8_list()) {
        if (!isa_available(kernels->isa)) continue;
        for (int64_t vectors = 1; vectors <= kernels->tile_vectors; ++vectors) {
            for (const int64_t groups : {1, 2, 5, 40, 256}) check_kernel(*kernels, vectors, groups, random);
        }
    }
}

constexpr int64_t kRows[] = {1, 2, 3, 15, 16, 17, 33, 64, 100};

void test_sums() {
    const std::vector<Isa> isas = available_isas();
    struct {
        int64_t N, K;
    } shapes[] = {{1, 1}, {2, 3}, {31, 4}, {33, 67}, {47, 131}, {64, 515}, {97, 1031}};
    for (const auto& shape : shapes) {
        for (const double density : {0.02, 0.1, 0.6}) {
            const SparseCase c = random_case(shape.N, shape.K, density, static_cast<uint64_t>(shape.K));
            for (const int64_t M : kRows) check_sums(c, M, isas);
        }
    }
    const SparseCase blocks = random_case(40, 2048 + 20, 0.1, 9, 4);
    for (const int64_t M : kRows) check_sums(blocks, M, isas);
}

void test_special_weights() {
    const std::vector<Isa> isas = available_isas();
    Random random(3);
    std::vector<std::function<int8_t(int64_t, int64_t)>> kinds = {
        [](int64_t, int64_t) { return int8_t{0}; },
        [](int64_t, int64_t) { return int8_t{-128}; },
        [](int64_t n, int64_t k) { return static_cast<int8_t>((n + k) % 2 == 0 ? -128 : 127); },
        [&random](int64_t, int64_t) { return any_value(random); },
        [&random](int64_t n, int64_t) { return n == 33 ? any_value(random) : int8_t{0}; },
        [](int64_t n, int64_t k) { return static_cast<int8_t>(k == 4 * n + 3 ? 5 : 0); },
    };
    const char* names[] = {"all zero", "all -128", "-128 and 127", "all dense", "one dense row", "one value a row"};
    for (size_t i = 0; i < kinds.size(); ++i) {
        for (const int64_t K : {64, 517, 1024, 1029}) {
            const SparseCase c(50, K, names[i], kinds[i]);
            for (const int64_t M : {1, 17, 100}) check_sums(c, M, isas);
        }
    }
}

// Against the dense product, with scales and rows of any size: the same integers through the same epilogue are the same bits.
void check_as_dense(const SparseCase& c, int64_t M) {
    Random random(5);
    Guarded<float> x(M * c.K);
    for (float& v : x) v = static_cast<float>(random.uniform() * 3);
    if (M > 2) {
        x[c.K / 2] = std::numeric_limits<float>::quiet_NaN();
        x[2 * c.K - 1] = std::numeric_limits<float>::infinity();
        for (int64_t k = 0; k < c.K; ++k) x[2 * c.K + k] = 0;
    }
    const Int8Layout layout = int8_layout(c.N, c.K, 0);
    Guarded<uint8_t> packed(layout.size_bytes);
    int8_pack(c.dense.data(), c.scales.data(), layout, Activations::int8, packed.data(), 1);
    const Weight dense = weight_view(packed.data(), packed.size());
    for (const Isa isa : available_isas()) {
        Guarded<float> wanted(M * c.N);
        Epilogue epilogue{};
        epilogue.out = wanted.data();
        epilogue.out_row_stride = c.N;
        linear({x.data(), DType::f32, M, c.K, dense, epilogue, 2, isa});
        for (const int threads : {1, 2, 3}) {
            const std::string what = c.what + ", M = " + std::to_string(M) + ", " + isa_name(isa) + ", threads " + std::to_string(threads);
            const Guarded<float> got = skip_product(c, x, M, isa, threads);
            check_same(got, wanted, what + ": the bits of the dense product");
            check(M <= 2 || (std::isnan(got[0]) && std::isnan(got[2 * c.N - 1]) && got[2 * c.N] == 0), what + ": NaN, Inf and zero rows");
        }
    }
}

void test_as_dense() {
    for (const int64_t N : {5, 130, 300}) {
        for (const double density : {0.05, 0.4}) {
            SparseCase c = random_case(N, 709, density, 11);
            for (int64_t n = 0; n < N; ++n) c.scales[n] = 0.001f * static_cast<float>(n + 1);
            for (const int64_t M : {1, 4, 5, 40, 200}) check_as_dense(c, M);
        }
    }
    SparseCase long_rows = random_case(18, 2 * kMaxSumK + 77, 0.3, 12);
    check_as_dense(long_rows, 3);
    SparseCase large_sums(18, 3 * kMaxSumK, "all 127", [](int64_t, int64_t) { return int8_t{127}; });
    check_as_dense(large_sums, 3);
    // More rows than a slab holds.
    SparseCase many_rows = random_case(33, 40, 0.2, 13);
    check_as_dense(many_rows, 2048 + 100);
}

void check_round_trip(const SparseCase& c) {
    spmm_s8::check(c.rows.spec, c.part.data(), c.part.size());
    const int64_t count = static_cast<int64_t>(c.values.size());
    check(spmm_s8::nnz(c.rows.spec, c.part.data()) == count, c.what + ": nnz");
    Guarded<uint8_t> mask(static_cast<int64_t>(c.mask.size()));
    Guarded<int8_t> values(count);
    std::memset(mask.data(), 0, static_cast<size_t>(mask.size()));
    spmm_s8::unpack(c.rows.spec, c.part.data(), mask.data(), values.data());
    check_equal(mask.data(), c.mask.data(), mask.size(), c.what + ": mask");
    check_equal(values.data(), c.values.data(), count, c.what + ": values");
    for (const int threads : {1, 3}) {
        Guarded<uint8_t> again(c.part.size());
        spmm_s8::pack(c.rows, again.data(), threads);
        check_equal(again.data(), c.part.data(), again.size(), c.what + ": the same bytes again");
    }
}

void test_round_trips() {
    for (const int64_t N : {1, 32, 33, 71}) {
        for (const int64_t K : {1, 7, 8, 64, 511, 1025, 2053}) {
            for (const double density : {0.0, 0.03, 0.5, 1.0}) check_round_trip(random_case(N, K, density, static_cast<uint64_t>(N + K)));
        }
    }
}

// 5 bytes a stored group and 2 for each row and block, as the layout says.
void test_size() {
    const SparseCase c = random_case(256, 4096, 0.05, 21, 4);
    const spmm_s8::PartHeader& header = *reinterpret_cast<const spmm_s8::PartHeader*>(c.part.data());
    check(header.block_groups == spmm_s8::kLongBlock, "5 % in blocks of 1x4: long blocks");
    const int64_t most = header.stored_groups * 5 + 256 * 4 * 2 + 8 * 4 * 15 + 64 + 9 * 8 + 128;
    check(header.stored_groups * 4 == header.nnz && c.part.size() <= most, "5 % in blocks of 1x4: bytes");
    const SparseCase dense = random_case(64, 1024, 1.0, 22);
    check(reinterpret_cast<const spmm_s8::PartHeader*>(dense.part.data())->block_groups == spmm_s8::kShortBlock, "dense: short blocks");
}

// Bytes overwritten must be refused.
template <class Value>
void check_refused(const SparseCase& c, int64_t offset, Value value, const std::string& what) {
    Guarded<uint8_t> damaged(c.part.size());
    std::memcpy(damaged.data(), c.part.data(), static_cast<size_t>(c.part.size()));
    std::memcpy(damaged.data() + offset, &value, sizeof value);
    check_throws<std::invalid_argument>([&] { spmm_s8::check(c.rows.spec, damaged.data(), damaged.size()); }, what);
}

void test_damage() {
    const SparseCase c = random_case(70, 1003, 0.5, 31);
    const spmm_s8::Part part{c.part.data()};
    const auto at = [&](const void* place) { return static_cast<const uint8_t*>(place) - c.part.data(); };
    check_refused(c, 0, int64_t{71}, "N = 71");
    check_refused(c, 8, int64_t{1004}, "K = 1004");
    for (const int64_t groups : {0, -1, 127, 512}) check_refused(c, 16, groups, "blocks of");
    check_refused(c, 24, int64_t{1}, "as many as its header says");
    check_refused(c, 32, int64_t{1}, "as many as its header says");
    for (int64_t s = 0; s <= part.strips(); ++s) {
        for (const int64_t by : {int64_t{1}, int64_t{16}, int64_t{-16}, int64_t{1} << 40, std::numeric_limits<int64_t>::min() / 2}) {
            check_refused(c, 64 + 8 * s, part.offsets()[s] + by, "part spmm");
        }
    }
    const spmm_s8::Segment first = spmm_s8::segment_at(part.strip(0));
    for (const int count : {0, 129, 60000}) check_refused(c, at(first.counts), static_cast<uint16_t>(count), "strip 0");
    check_refused(c, at(first.indices + 5), first.indices[4], "out of order");
    check_refused(c, at(first.indices), uint8_t{200}, "out of its block");
    check_refused(c, at(first.words), uint32_t{0}, "empty");
    int64_t value = at(first.words);
    while (c.part[value] == 0) ++value;
    check_refused(c, value, uint8_t{0}, "part spmm");  // a value less, or a group without any
    // Row 69 is the last; counts of the rows beyond must be zero.
    const spmm_s8::Segment last = spmm_s8::segment_at(part.strip(2));
    check_refused(c, at(last.counts + 6), uint16_t{1}, "too many groups");
    for (const int64_t bytes : {int64_t{-1}, int64_t{0}, int64_t{63}, int64_t{64}, c.part.size() - 64, c.part.size() + 64}) {
        check_throws<std::invalid_argument>([&] { spmm_s8::check(c.rows.spec, c.part.data(), bytes); }, "part spmm");
    }
    // The last group of K = 1003 has three values; a fourth would lie beyond K.
    const SparseCase dense = random_case(3, 1003, 1.0, 32);
    const spmm_s8::Segment first_of_dense = spmm_s8::segment_at(dense.part.data() + spmm_s8::Part{dense.part.data()}.offsets()[0]);
    const spmm_s8::Segment tail = spmm_s8::segment_at(first_of_dense.end);
    const int64_t word = reinterpret_cast<const uint8_t*>(tail.words) - dense.part.data() + 4 * (tail.counts[0] - 1);
    check_refused(dense, word + 3, int8_t{1}, "out of K");
    check_refused(dense, tail.indices + tail.counts[0] - 1 - dense.part.data(), uint8_t{123}, "out of K");
}

// Any byte changed: refused, or a part that is whole and can be multiplied.
void test_any_damage() {
    const SparseCase c = random_case(40, 530, 0.1, 41);
    const Activity activity(3, c.K, 1);
    SparseCase damaged = random_case(40, 530, 0.1, 41);
    Random random(42);
    int64_t refused = 0;
    for (int64_t i = 0; i < c.part.size(); ++i) {
        const uint8_t kept = damaged.part[i];
        damaged.part[i] = static_cast<uint8_t>(kept ^ random.integer(1, 255));
        try {
            spmm_s8::check(c.rows.spec, damaged.part.data(), damaged.part.size());
            skip_product(damaged, activity.x, 3, Isa::amx, 1);
        } catch (const std::invalid_argument&) {
            ++refused;
        }
        damaged.part[i] = kept;
    }
    check(refused > c.part.size() / 10, "changed bytes are refused");
}

}  // namespace
}  // namespace gossamer::test

int main() {
    using namespace gossamer::test;
    if (!gossamer::isa_available(gossamer::spmm_s8_list().back()->isa)) return kSkipped;
    test_kernels();
    test_sums();
    test_special_weights();
    test_as_dense();
    test_round_trips();
    test_size();
    test_damage();
    test_any_damage();
    return finish();
}
