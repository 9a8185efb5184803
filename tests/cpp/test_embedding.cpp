// Rows and bags of packed tables: every format against its dequantize(), bit for bit, and bags against sums in fp64.
#include <algorithm>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include "check.h"
#include "gossamer/embedding.h"
#include "guarded.h"
#include "random.h"
#include "values.h"

namespace gossamer::test {
namespace {

void fill_scales(Guarded<uint8_t>& scales, ScaleType type, Random& random) {
    const int64_t size = type == ScaleType::f32 ? 4 : type == ScaleType::e8m0 ? 1 : 2;
    for (int64_t i = 0; i < scales.size() / size; ++i) {
        const float scale = static_cast<float>(random.uniform());
        const uint16_t half = type == ScaleType::bf16 ? reference::to_bf16(random.uniform()) : reference::to_f16(random.uniform());
        const uint8_t exponent = static_cast<uint8_t>(random.integer(0, 200));
        const void* from = type == ScaleType::f32 ? static_cast<const void*>(&scale) : &half;
        if (type == ScaleType::e8m0) from = &exponent;
        std::memcpy(scales.data() + i * size, from, static_cast<size_t>(size));
    }
}

// Bytes of every value, uint8 or int8.
template <class T>
Guarded<T> random_bytes(int64_t count, Random& random) {
    Guarded<T> bytes(count);
    for (T& byte : bytes) byte = static_cast<T>(random.bits());
    return bytes;
}

// A packed table of one format: its rows as dequantize() gives them, and what a message calls it.
struct Table {
    Guarded<uint8_t> packed;
    std::string text;

    Weight weight() const { return weight_view(packed.data(), packed.size()); }
    std::vector<float> dense() const {
        const Weight w = weight();
        std::vector<float> out(static_cast<size_t>(w.N * w.K));
        std::visit([&](const auto& form) { dequantize(form, 0, w.N, out.data(), 1); }, w.form);
        return out;
    }
};

std::string text_of(FormatId format, int64_t N, int64_t K, int64_t G) {
    return std::string(name(format)) + " " + std::to_string(N) + " x " + std::to_string(K) + ", G = " + std::to_string(G);
}

Table int8_table(int64_t N, int64_t K, int64_t G, Random& random) {
    const Int8Layout layout = int8_layout(N, K, G);
    const Guarded<int8_t> values = random_bytes<int8_t>(N * K, random);
    Guarded<float> scales(N * layout.groups);
    for (float& scale : scales) scale = static_cast<float>(random.uniform());
    Table table{Guarded<uint8_t>(layout.size_bytes), text_of(FormatId::int8, N, K, G)};
    int8_pack(values.data(), scales.data(), layout, Activations::int8, table.packed.data(), 1);
    return table;
}

struct FourBitKind {
    FormatId format;
    ScaleType scale_type;
    bool zero_points;
    Activations activations;
};

Table four_bit_table(const FourBitKind& kind, int64_t N, int64_t K, int64_t G, Random& random) {
    const FourBitLayout layout = four_bit_layout(kind.format, N, K, G, kind.scale_type, kind.zero_points);
    const int64_t scale_bytes = kind.scale_type == ScaleType::f32 ? 4 : kind.scale_type == ScaleType::e8m0 ? 1 : 2;
    const Guarded<uint8_t> codes = random_bytes<uint8_t>(N * ((K + 1) / 2), random);
    Guarded<uint8_t> scales(N * layout.groups * scale_bytes), zero_points(N * layout.groups);
    fill_scales(scales, kind.scale_type, random);
    for (uint8_t& zero : zero_points) zero = static_cast<uint8_t>(random.integer(0, 15));
    Table table{Guarded<uint8_t>(layout.size_bytes), text_of(kind.format, N, K, G) + (kind.zero_points ? ", asymmetric" : "")};
    const FourBitTensors tensors{codes.data(), scales.data(), kind.zero_points ? zero_points.data() : nullptr};
    four_bit_pack(kind.format, tensors, layout, kind.scale_type, kind.activations, table.packed.data(), 1);
    return table;
}

Table fp8_table(FormatId format, int64_t N, int64_t K, int64_t G, Random& random) {
    const Fp8Layout layout = fp8_layout(N, K, G);
    const Guarded<uint8_t> codes = random_bytes<uint8_t>(N * K, random);  // NaN and infinities among them
    Guarded<float> scales(layout.scale_rows * layout.scale_columns);
    for (float& scale : scales) scale = static_cast<float>(random.uniform());
    Table table{Guarded<uint8_t>(layout.size_bytes), text_of(format, N, K, G)};
    fp8_pack(format, codes.data(), scales.data(), layout, table.packed.data(), 1);
    return table;
}

Table bf16_table(int64_t N, int64_t K, Random& random) {
    const Bf16Layout layout = bf16_layout(N, K);
    Guarded<uint16_t> values(N * K);
    for (uint16_t& value : values) value = reference::to_bf16(random.uniform());
    Table table{Guarded<uint8_t>(layout.size_bytes), text_of(FormatId::bf16, N, K, 0)};
    bf16_pack(values.data(), layout, table.packed.data(), 1);
    return table;
}

void for_each_table(int64_t N, int64_t K, const std::function<void(const Table&)>& body) {
    Random random(static_cast<uint64_t>(1000 * N + K));
    for (const int64_t G : {0, 32, 64, 128}) body(int8_table(N, K, G, random));
    const FourBitKind kinds[] = {{FormatId::int4, ScaleType::f16, false, Activations::int8},
                                 {FormatId::int4, ScaleType::f32, true, Activations::exact},
                                 {FormatId::nf4, ScaleType::bf16, false, Activations::int8},
                                 {FormatId::fp4, ScaleType::f32, false, Activations::int8}};
    for (const FourBitKind& kind : kinds) {
        for (const int64_t G : {0, 16, 32, 64, 128, 256}) body(four_bit_table(kind, N, K, G, random));
    }
    body(four_bit_table({FormatId::mxfp4, ScaleType::e8m0, false, Activations::int8}, N, K, 32, random));
    for (const FormatId format : {FormatId::fp8_e4m3, FormatId::fp8_e5m2}) {
        for (const int64_t G : {0, 128}) body(fp8_table(format, N, K, G, random));
    }
    body(bf16_table(N, K, random));
}

// All rows, the last one first, and some more.
Guarded<int64_t> some_indices(int64_t N) {
    Guarded<int64_t> indices(N + 3);
    for (int64_t i = 0; i < N; ++i) indices[i] = N - 1 - i;
    for (int64_t i = N; i < indices.size(); ++i) indices[i] = i * 7 % N;
    return indices;
}

void check_rows_of(const Table& table) {
    const Weight weight = table.weight();
    const std::vector<float> dense = table.dense();
    const Guarded<int64_t> indices = some_indices(weight.N);
    for (const DType dtype : kDTypes) {
        for (const int threads : {1, 3}) {
            Values out(dtype, indices.size() * weight.K), wanted(dtype, out.count);
            for (int64_t i = 0; i < out.count; ++i) {
                const float value = dense[static_cast<size_t>(indices[i / weight.K] * weight.K + i % weight.K)];
                if (dtype == DType::f32) {
                    std::memcpy(static_cast<char*>(wanted.data()) + 4 * i, &value, 4);
                } else {
                    wanted.set(i, static_cast<double>(value));
                }
            }
            embedding({weight, indices.data(), indices.size(), out.data(), dtype, threads});
            const std::string what = table.text + ", " + dtype_name(dtype) + ", " + std::to_string(threads) + " threads";
            if (dtype == DType::f32) {
                check_equal(out.bytes(), wanted.bytes(), out.size_in_bytes(), what);
            } else {  // a NaN may carry another payload
                int64_t wrong = 0;
                for (int64_t i = 0; i < out.count; ++i) {
                    const bool both_nan = out.get(i) != out.get(i) && wanted.get(i) != wanted.get(i);
                    wrong += out.bits(i) != wanted.bits(i) && !both_nan;
                }
                check(wrong == 0, what + ": " + std::to_string(wrong) + " values are wrong");
            }
        }
    }
}

void test_rows() {
    for (const int64_t N : {1, 17, 130}) {
        for (const int64_t K : {1, 7, 64, 130, 257}) for_each_table(N, K, check_rows_of);
    }
}

// More rows than one thread is given at least.
void test_many_rows() {
    Random random(1);
    const Table table = int8_table(40, 512, 0, random);
    const Weight weight = table.weight();
    const std::vector<float> dense = table.dense();
    Guarded<int64_t> indices(400);
    for (int64_t& index : indices) index = random.integer(0, 39);
    std::vector<float> wanted;
    for (const int64_t index : indices) wanted.insert(wanted.end(), dense.begin() + index * 512, dense.begin() + (index + 1) * 512);
    for (const int threads : {1, 2, 4, 7}) {
        Guarded<float> out(400 * 512);
        embedding({weight, indices.data(), 400, out.data(), DType::f32, threads});
        check_equal(out.data(), wanted.data(), out.size(), "400 rows, " + std::to_string(threads) + " threads");
    }
}

struct Bags {
    std::vector<int64_t> indices, offsets;
    std::vector<float> weights;
    int64_t count() const { return static_cast<int64_t>(offsets.size()) - 1; }
};

// Some empty, one long; what comes after the last is in none.
Bags random_bags(int64_t N, Random& random) {
    Bags bags;
    bags.offsets.push_back(0);
    for (const int64_t length : {3, 0, 1, 90, 2, 0, 7}) {
        bags.offsets.push_back(bags.offsets.back() + length);
    }
    for (int64_t i = 0; i < bags.offsets.back() + 2; ++i) {
        bags.indices.push_back(random.integer(0, N - 1));
        bags.weights.push_back(static_cast<float>(random.uniform()));
    }
    return bags;
}

struct Wanted {
    double value, magnitude;
};

Wanted reduce(const Bags& bags, const std::vector<float>& dense, int64_t K, int64_t b, int64_t k, const EmbeddingBagCall& call) {
    double total = 0, magnitude = 0;
    int64_t rows = 0;
    for (int64_t i = bags.offsets[static_cast<size_t>(b)]; i < bags.offsets[static_cast<size_t>(b + 1)]; ++i) {
        const int64_t index = bags.indices[static_cast<size_t>(i)];
        if (index == call.padding_idx) continue;
        const double value = static_cast<double>(dense[static_cast<size_t>(index * K + k)]);
        const double weight = call.sample_weights == nullptr ? 1 : static_cast<double>(bags.weights[static_cast<size_t>(i)]);
        total = call.mode == BagMode::max ? (rows == 0 ? value : std::max(total, value)) : total + weight * value;
        magnitude += std::fabs(weight * value);
        ++rows;
    }
    if (call.mode == BagMode::mean && rows > 0) return {total / static_cast<double>(rows), magnitude};
    return {total, magnitude};
}

void check_bags(const Table& table, const Bags& bags, BagMode mode, bool weighted, int64_t padding_idx, DType dtype) {
    const Weight weight = table.weight();
    const std::vector<float> dense = table.dense();
    const float* sample_weights = weighted ? bags.weights.data() : nullptr;
    std::vector<uint8_t> first;
    for (const int threads : {1, 2, 5}) {
        Values out(dtype, bags.count() * weight.K);
        const EmbeddingBagCall call{weight,
                                    bags.indices.data(),
                                    static_cast<int64_t>(bags.indices.size()),
                                    bags.offsets.data(),
                                    bags.count(),
                                    sample_weights,
                                    mode,
                                    padding_idx,
                                    out.data(),
                                    dtype,
                                    threads};
        embedding_bag(call);
        const std::string what = table.text + ", mode " + std::to_string(static_cast<int>(mode)) + ", " + dtype_name(dtype);
        for (int64_t i = 0; i < out.count; ++i) {
            const Wanted wanted = reduce(bags, dense, weight.K, i / weight.K, i % weight.K, call);
            const double rounding = dtype == DType::f32 ? 0 : dtype == DType::bf16 ? 0x1p-8 : 0x1p-11;
            const double bound = 100 * 0x1p-24 * wanted.magnitude + (rounding + 0x1p-23) * std::fabs(wanted.value) + 1e-7;
            check_near(out.get(i), wanted.value, bound, what);
        }
        if (first.empty()) first.assign(out.bytes(), out.bytes() + out.size_in_bytes());
        check_equal(out.bytes(), first.data(), out.size_in_bytes(), what + ": the same for every number of threads");
    }
}

void test_bags() {
    Random random(2);
    const Table tables[] = {int8_table(37, 70, 32, random),
                            four_bit_table({FormatId::int4, ScaleType::f16, true, Activations::int8}, 37, 1000, 64, random),
                            bf16_table(37, 66, random)};
    for (const Table& table : tables) {
        const Bags bags = random_bags(37, random);
        for (const int64_t padding_idx : {int64_t{-1}, bags.indices[3]}) {
            for (const BagMode mode : {BagMode::sum, BagMode::mean, BagMode::max}) {
                for (const DType dtype : kDTypes) check_bags(table, bags, mode, false, padding_idx, dtype);
            }
            check_bags(table, bags, BagMode::sum, true, padding_idx, DType::f32);
        }
    }
}

void check_wrong_bags(const std::vector<int64_t>& indices, const std::vector<int64_t>& offsets, const std::string& message, bool index) {
    Random random(3);
    const Table table = int8_table(5, 8, 0, random);
    const Weight weight = table.weight();
    const int64_t bags = static_cast<int64_t>(offsets.size()) - 1;
    Guarded<float> out(bags * 8), before(bags * 8);
    const auto call = [&] {
        embedding_bag({weight, indices.data(), static_cast<int64_t>(indices.size()), offsets.data(), bags, nullptr, BagMode::sum, -1,
                       out.data(), DType::f32, 1});
    };
    index ? check_throws<std::runtime_error>(call, message) : check_throws<std::invalid_argument>(call, message);
    check(std::memcmp(out.data(), before.data(), static_cast<size_t>(4 * out.size())) == 0, message + ": nothing was written");
}

void test_errors() {
    Random random(4);
    const Table table = int8_table(5, 8, 0, random);
    const Weight weight = table.weight();
    for (const int64_t wrong : {int64_t{5}, int64_t{-1}, int64_t{1} << 40}) {
        const int64_t indices[] = {0, 4, wrong};
        Guarded<float> out(24);
        const auto call = [&] { embedding({weight, indices, 3, out.data(), DType::f32, 2}); };
        check_throws<std::out_of_range>(call, "index out of range in self");
        check(float_bits(out[0]) == 0xa5a5a5a5, "nothing was written");
        check_wrong_bags({0, wrong}, {0, 2}, "found idx to be " + std::to_string(wrong), true);
    }
    check_wrong_bags({0, 1}, {1, 2}, "got 1 to 2", false);
    check_wrong_bags({0, 1}, {0, 3}, "got 0 to 3", false);
    check_wrong_bags({0, 1}, {0, 2, 1}, "falling in between", false);
    embedding({weight, nullptr, 0, nullptr, DType::f32, 2});
    embedding_bag({weight, nullptr, 0, nullptr, 0, nullptr, BagMode::mean, -1, nullptr, DType::f32, 2});
}

}  // namespace
}  // namespace gossamer::test

int main() {
    using namespace gossamer::test;
    test_rows();
    test_many_rows();
    test_bags();
    test_errors();
    return finish();
}
