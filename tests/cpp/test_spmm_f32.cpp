// The skip-compute product with sparse fp32 weights: outputs within the bounds of fp32, packing exact, damaged parts refused. Parts and
// inputs end at guard pages.
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "bounds.h"
#include "check.h"
#include "dispatch/lists.h"
#include "gossamer/spmm.h"
#include "values.h"

namespace gossamer::test {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN(), kInfinity = std::numeric_limits<double>::infinity();
constexpr int64_t kRows[] = {1, 2, 3, 15, 16, 17, 33, 64, 100};
constexpr int64_t kHeaderBytes = 64, kTileBytes = 16, kSliceBytes = 6;

std::vector<Isa> available_isas() {
    std::vector<Isa> isas;
    for (const SpmmF32Kernels* kernels : spmm_f32_list()) {
        if (isa_available(kernels->isa)) isas.push_back(kernels->isa);
    }
    return isas;
}

Guarded<uint8_t> packed(const SparseRows& rows) {
    Guarded<uint8_t> part(spmm_bytes(rows));
    spmm_pack(rows, part.data(), 2);
    return part;
}

SparseSpec spec_of(int64_t N, int64_t K) {
    return {FormatId::sparse_f32, N, K, 0, ScaleType::f32, Activations::exact, SparsePattern::any, kPartSpmm};
}

struct Canonical {
    std::vector<uint8_t> mask;
    std::vector<float> values;
};

Canonical canonical_of(int64_t N, int64_t K, const std::vector<float>& dense) {
    const int64_t stride = (K + 7) / 8;
    Canonical c{std::vector<uint8_t>(static_cast<size_t>(N * stride)), {}};
    for (int64_t i = 0; i < N * K; ++i) {
        const float value = dense[static_cast<size_t>(i)];
        if (float_bits(value) << 1 == 0) continue;
        uint8_t& byte = c.mask[static_cast<size_t>(i / K * stride + i % K / 8)];
        byte = static_cast<uint8_t>(byte | 1u << i % K % 8);
        c.values.push_back(value);
    }
    return c;
}

// Dense rows, the canonical tensors, and nothing packed but the part "spmm".
struct Matrix {
    int64_t N, K;
    std::string what;
    std::vector<float> dense;
    Canonical canonical;
    Guarded<uint8_t> part;

    Matrix(int64_t rows, int64_t k, const std::string& name, std::vector<float> elements)
        : N(rows),
          K(k),
          what(name + ", N = " + std::to_string(rows) + ", K = " + std::to_string(k)),
          dense(std::move(elements)),
          canonical(canonical_of(N, K, dense)),
          part(packed(sparse_rows(spec_of(N, K), {canonical.mask.data(), canonical.values.data(), nullptr}, nnz()))) {}

    int64_t nnz() const { return static_cast<int64_t>(canonical.values.size()); }
    SparseWeight weight() const {
        SparseWeight w{};
        w.spec = spec_of(N, K);
        w.layout = sparse_layout(w.spec);
        w.spmm = part.data();
        w.spmm_bytes = w.size_bytes = part.size();
        w.nnz = nnz();
        return w;
    }
};

// density(n): of row n.
template <class Density>
Matrix random_matrix(int64_t N, int64_t K, const std::string& name, const Density& density) {
    Random random(static_cast<uint64_t>(N * 1000 + K));
    std::vector<float> dense(static_cast<size_t>(N * K));
    for (int64_t i = 0; i < N * K; ++i) {
        if (random.uniform() < 2 * density(i / K) - 1) dense[static_cast<size_t>(i)] = static_cast<float>(random.uniform());
    }
    return Matrix(N, K, name, std::move(dense));
}
Matrix random_matrix(int64_t N, int64_t K, double density) {
    return random_matrix(N, K, "density " + std::to_string(density), [=](int64_t) { return density; });
}

// x and what is asked of a layer; rows of x and out are further apart than they are long.
struct Layer final : RowSource {
    const Matrix& matrix;
    int64_t M, x_stride, out_stride;
    Isa isa;
    Values x, bias;
    Guarded<float> addend;
    Activation activation = Activation::none;

    Layer(const Matrix& w, int64_t rows, Isa i, DType dtype = DType::f32)
        : matrix(w),
          M(rows),
          x_stride(w.K + 3),
          out_stride(w.N + 5),
          isa(i),
          x(dtype, (rows - 1) * x_stride + w.K),
          bias(DType::f32, w.N),
          addend(rows * w.N) {
        Random random(static_cast<uint64_t>(rows));
        fill_values(random);
    }

    void fill(const Target& t) const override {
        const ConvertRows rows{x.at(t.first_row * x_stride), x.dtype, x_stride, t.begin, t.end, matrix.K, t.panel_rows, t.panels};
        select_kernels(convert_list(), isa).to_f32(rows);
    }

    Values run(int threads, DType out_dtype = DType::f32) const {
        Values out(out_dtype, (M - 1) * out_stride + matrix.N);
        const SparseWeight sparse = matrix.weight();
        const Weight weight{sparse, Activations::exact, matrix.N, matrix.K};
        const Epilogue epilogue{bias.bytes(), DType::f32, activation, addend.data(), matrix.N, out.data(), out_dtype, out_stride};
        product_spmm({*this, M, weight, Lane::f32, epilogue, threads, isa}, sparse);
        return out;
    }

    std::string text() const { return matrix.what + ", M = " + std::to_string(M) + ", " + isa_name(isa) + ", x " + dtype_name(x.dtype); }

private:
    void fill_values(Random& random) {
        test::fill(x, random);
        test::fill(bias, random);
        for (float& a : addend) a = static_cast<float>(random.uniform());
    }
};

// Every output against fp64; a row of x that is not finite gives NaN.
void check_outputs(const Layer& layer, const Values& out) {
    const Matrix& w = layer.matrix;
    const std::vector<double> dense(w.dense.begin(), w.dense.end());
    std::vector<double> x(static_cast<size_t>(w.K));
    int64_t wrong = 0;
    for (int64_t m = 0; m < layer.M; ++m) {
        bool finite = true;
        for (int64_t k = 0; k < w.K; ++k) finite = std::isfinite(x[static_cast<size_t>(k)] = layer.x.get(m * layer.x_stride + k)) && finite;
        for (int64_t n = 0; n < w.N; ++n) {
            const double got = out.get(m * layer.out_stride + n);
            const double addend = layer.addend[m * w.N + n], bias = layer.bias.get(n);
            const auto z = reference::preactivation(x.data(), dense.data() + n * w.K, w.K, bias, addend);
            const double wanted = finite ? reference::activate(layer.activation, z.value) : kNaN;
            const double bound = finite ? output_bound(z, 2 * w.K + 4, layer.activation, out.dtype) : 0;
            const bool right = std::isnan(wanted) ? std::isnan(got) : std::fabs(got - wanted) <= bound;
            if (right || wrong++ > 0) continue;
            check(false, layer.text() + ": [" + std::to_string(m) + ", " + std::to_string(n) + "]: got " + std::to_string(got) +
                             ", wanted " + std::to_string(wanted) + ", bound " + std::to_string(bound));
        }
    }
    check(wrong == 0, layer.text() + ": " + std::to_string(wrong) + " outputs are wrong");
}

void check_same_bits(const Values& got, const Values& wanted, const std::string& what) {
    check_equal(got.bytes(), wanted.bytes(), wanted.size_in_bytes(), what);
}

std::vector<Matrix> matrices() {
    std::vector<Matrix> all;
    for (const double density : {0.5, 0.1, 0.03}) {
        all.push_back(random_matrix(37, 257, density));
        all.push_back(random_matrix(131, 1031, density));
    }
    all.push_back(random_matrix(1, 1, 1.0));
    all.push_back(random_matrix(1, 389, 0.4));
    all.push_back(random_matrix(67, 1, 0.5));
    all.push_back(random_matrix(1031, 65, 0.3));  // blocks of 128 rows
    all.push_back(random_matrix(64, 128, 1.0));
    all.push_back(random_matrix(67, 515, 1.0));
    all.push_back(random_matrix(5, 300, 0.0));
    all.push_back(random_matrix(100, 300, "every other row empty", [](int64_t n) { return n % 2 == 0 ? 0.3 : 0.0; }));
    all.push_back(random_matrix(100, 300, "one dense row among empty ones", [](int64_t n) { return n == 77 ? 1.0 : 0.0; }));
    all.push_back(random_matrix(150, 520, "one dense row among sparse ones", [](int64_t n) { return n == 77 ? 1.0 : 0.02; }));
    return all;
}

void test_products(const std::vector<Matrix>& all) {
    for (const Matrix& matrix : all) {
        for (const Isa isa : available_isas()) {
            for (const int64_t M : kRows) {
                const Layer layer(matrix, M, isa);
                const Values out = layer.run(1);
                check_outputs(layer, out);
                for (const int threads : {2, 3}) check_same_bits(layer.run(threads), out, layer.text() + ", threads");
            }
        }
    }
}

void test_types() {
    const Matrix matrix = random_matrix(70, 200, 0.2);
    for (const Isa isa : available_isas()) {
        for (const DType dtype : kDTypes) {
            for (const int64_t M : {1, 20}) {
                Layer layer(matrix, M, isa, dtype);
                layer.activation = Activation::gelu;
                check_outputs(layer, layer.run(2, dtype));
            }
        }
    }
}

// Work enough for several threads, slabs of more rows than one.
void test_many_rows() {
    const Matrix matrix = random_matrix(97, 130, 0.3);
    for (const Isa isa : available_isas()) {
        const Layer layer(matrix, 2100, isa);
        const Values out = layer.run(1);
        check_outputs(layer, out);
        check_same_bits(layer.run(3), out, layer.text() + ", threads");
    }
}

void test_not_finite() {
    // No value is stored at k = 5, and the last row of W holds none at all.
    Matrix matrix = random_matrix(33, 40, "k = 5 empty", [](int64_t n) { return n == 32 ? 0.0 : 0.5; });
    for (int64_t n = 0; n < matrix.N; ++n) matrix.dense[static_cast<size_t>(n * matrix.K + 5)] = 0;
    const Matrix without(matrix.N, matrix.K, "k = 5 empty", matrix.dense);
    for (const Isa isa : available_isas()) {
        for (const int64_t M : {1, 3, 17, 70}) {
            for (const double odd : {kNaN, kInfinity, -kInfinity}) {
                Layer layer(without, M, isa);
                const Values before = layer.run(1);
                const int64_t row = M / 2;
                layer.x.set(row * layer.x_stride + 5, odd);
                const Values after = layer.run(2);
                check_outputs(layer, after);
                for (int64_t m = 0; m < M; ++m) {
                    if (m == row) continue;
                    check(std::memcmp(after.at(m * layer.out_stride), before.at(m * layer.out_stride),
                                      static_cast<size_t>(without.N) * 4) == 0,
                          layer.text() + ": a row changed because of another one");
                }
            }
        }
    }
}

// Denormal weights are multiplied, not flushed; those that are not finite pass through.
void test_odd_weights() {
    const float smallest = bits_float(1), large = bits_float(0x007fffff);
    std::vector<float> dense(20 * 9, 0.0f);
    dense[0] = smallest, dense[9 + 3] = -large, dense[9 + 8] = smallest;
    dense[18] = static_cast<float>(kInfinity), dense[27 + 1] = static_cast<float>(kNaN), dense[36 + 2] = bits_float(0xffc01234);
    dense[45] = -0.0f;
    const Matrix matrix(20, 9, "odd values", dense);
    check(matrix.nnz() == 6, "a negative zero is not stored");
    for (const Isa isa : available_isas()) {
        for (const int64_t M : {1, 18}) {
            Layer layer(matrix, M, isa);
            for (int64_t i = 0; i < layer.x.count; ++i) layer.x.set(i, 0x1p120);
            for (int64_t i = 0; i < matrix.N; ++i) layer.bias.set(i, 0);
            for (float& a : layer.addend) a = 0;
            const Values out = layer.run(1);
            for (int64_t m = 0; m < M; ++m) {
                const auto at = [&](int64_t n) { return out.get(m * layer.out_stride + n); };
                check_near(at(0), static_cast<double>(smallest) * 0x1p120, 0, "denormal");
                check_near(at(1), (static_cast<double>(smallest) - static_cast<double>(large)) * 0x1p120, 0x1p-29, "denormals");
                check(at(2) == kInfinity && std::isnan(at(3)) && std::isnan(at(4)), "infinity and NaN in W");
                check(at(5) == 0 && at(19) == 0, "empty rows");
            }
        }
    }
}

void test_packing(const std::vector<Matrix>& all) {
    for (const Matrix& w : all) {
        const SparseSpec spec = spec_of(w.N, w.K);
        spmm_check(spec, w.part.data(), w.part.size());
        check(spmm_nnz(spec, w.part.data()) == w.nnz(), w.what + ": nnz");
        std::vector<uint8_t> mask(w.canonical.mask.size());
        Guarded<uint32_t> bits(w.nnz());
        spmm_unpack(spec, w.part.data(), mask.data(), bits.data());
        check_equal(mask.data(), w.canonical.mask.data(), static_cast<int64_t>(mask.size()), w.what + ": mask");
        std::vector<uint32_t> wanted(w.canonical.values.size());
        for (size_t i = 0; i < wanted.size(); ++i) wanted[i] = float_bits(w.canonical.values[i]);
        check_equal(bits.data(), wanted.data(), bits.size(), w.what + ": values");
        const SparseRows rows = sparse_rows(spec, {w.canonical.mask.data(), w.canonical.values.data(), nullptr}, w.nnz());
        Guarded<uint8_t> again(spmm_bytes(rows));
        spmm_pack(rows, again.data(), 3);
        check_equal(again.data(), w.part.data(), again.size(), w.what + ": packed by 3 threads");
    }
}

bool refused(const SparseSpec& spec, const Guarded<uint8_t>& part, int64_t bytes) {
    try {
        spmm_check(spec, part.data(), bytes);
    } catch (const std::invalid_argument& error) {
        return std::string(error.what()).find("part spmm") != std::string::npos;
    }
    return false;
}

// Every row has values in every tile, so that there is no row number that a slice could take instead of its own.
void test_damaged() {
    Matrix w = random_matrix(64, 200, 0.4);
    const SparseSpec spec = spec_of(w.N, w.K);
    Guarded<uint8_t>& part = w.part;
    const int64_t tiles = 2, slices = 64 / 4 * tiles, slices_offset = round_up(kHeaderBytes + (tiles + 1) * kTileBytes, 64);
    const auto check_bits = [&](int64_t first, int64_t last, const std::string& what) {
        for (int64_t i = first; i < last; ++i) {
            for (int bit = 0; bit < 8; ++bit) {
                part[i] = static_cast<uint8_t>(part[i] ^ 1u << bit);
                check(refused(spec, part, part.size()), what + ": byte " + std::to_string(i) + ", bit " + std::to_string(bit));
                part[i] = static_cast<uint8_t>(part[i] ^ 1u << bit);
            }
        }
    };
    check_bits(0, kHeaderBytes, "header");
    check_bits(kHeaderBytes, kHeaderBytes + (tiles + 1) * kTileBytes, "offsets");
    check_bits(slices_offset, slices_offset + slices * kSliceBytes, "slices");
    spmm_check(spec, part.data(), part.size());
    for (const int64_t bytes : {int64_t{0}, int64_t{63}, int64_t{64}, part.size() - 64, part.size() + 64}) {
        check(refused(spec, part, bytes), "a part of " + std::to_string(bytes) + " bytes");
    }
    check(refused(spec_of(64, 201), part, part.size()) && refused(spec_of(63, 200), part, part.size()), "a part of another weight");
}

// Indices and values: refused, or another valid weight, which is multiplied without leaving the part or x.
void test_damaged_indices() {
    Matrix w = random_matrix(64, 200, 0.4);
    const SparseSpec spec = spec_of(w.N, w.K);
    const int64_t first = round_up(round_up(kHeaderBytes + 3 * kTileBytes, 64) + 32 * kSliceBytes, 64);
    Random random(5);
    int64_t refusals = 0;
    for (int i = 0; i < 300; ++i) {
        const int64_t at = random.integer(first, w.part.size() - 1);
        const uint8_t before = w.part[at];
        w.part[at] = static_cast<uint8_t>(random.bits());
        if (refused(spec, w.part, w.part.size())) {
            ++refusals;
        } else {
            for (const Isa isa : available_isas()) Layer(w, 3, isa).run(1);
        }
        w.part[at] = before;
    }
    check(refusals > 20, "damaged indices are refused");
    w.part[first + 4] = w.part[first];
    check(refused(spec, w.part, w.part.size()), "an index that comes twice");
    w.part[first + 4] = 0xff;
    check(refused(spec, w.part, w.part.size()), "an index beyond its block");
}

// One value at the last k: its index may not pass the end of x, nor may those of the zeros that fill up its slice.
void test_index_beyond_x() {
    const int64_t K = 200, index = round_up(round_up(kHeaderBytes + 2 * kTileBytes, 64) + kSliceBytes, 64);
    std::vector<float> dense(static_cast<size_t>(K));
    dense.back() = 1;
    Matrix w(1, K, "one value", dense);
    check(w.part[index] == 199, "the index stands where the layout says");
    w.part[index] = 198;
    spmm_check(spec_of(1, K), w.part.data(), w.part.size());
    w.part[index] = 200;
    check(refused(spec_of(1, K), w.part, w.part.size()), "an index beyond x");
    w.part[index] = 199;
    for (const uint8_t fill : {uint8_t{1}, uint8_t{200}, uint8_t{0xff}}) {
        w.part[index + 1] = fill;
        check(refused(spec_of(1, K), w.part, w.part.size()), "a zero that fills up, at index " + std::to_string(fill));
    }
}

}  // namespace
}  // namespace gossamer::test

int main() {
    using namespace gossamer::test;
    const std::vector<Matrix> all = matrices();
    test_packing(all);
    test_products(all);
    test_types();
    test_many_rows();
    test_not_finite();
    test_odd_weights();
    test_damaged();
    test_damaged_indices();
    test_index_beyond_x();
    return finish();
}
