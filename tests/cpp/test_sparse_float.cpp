// Every kernel for sparse bf16 and fp32 lines that this machine runs: lines bit for bit against the definition of the patterns, products
// against fp64.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "dispatch/lists.h"
#include "float_problem.h"
#include "gossamer/linear.h"
#include "sparse_weight.h"

namespace gossamer::test {
namespace {

constexpr SparsePattern kPatterns[] = {SparsePattern::any, SparsePattern::b1x4, SparsePattern::b1x16, SparsePattern::b4x1,
                                       SparsePattern::b16x1};
constexpr int64_t kPadding = 64;  // bytes behind the values

// The bit of an element of a line, as format_sparse.h has it.
int64_t bit_of(SparsePattern pattern, int64_t word, int64_t line, int64_t element) {
    const int64_t column = element / word, k = line * word + element % word;
    switch (pattern) {
        case SparsePattern::any: return line * 16 * word + element;
        case SparsePattern::b1x4: return k / 4 * 16 + column;
        case SparsePattern::b1x16: return k / 16 * 16 + column;
        case SparsePattern::b4x1: return line * 4 * word + column / 4 * word + k % word;
        case SparsePattern::b16x1: break;
    }
    return k;
}

int64_t bytes_of_masks(SparsePattern pattern, int64_t word, int64_t lines) {
    return bit_of(pattern, word, lines - 1, 16 * word - 1) / 8 + 1;
}

// Lines whose masks and values end at a page that must not be touched; T: float or uint16_t.
template <class T>
struct Problem {
    static constexpr int64_t word = 4 / static_cast<int64_t>(sizeof(T)), line_size = 16 * word;
    SparsePattern pattern;
    int64_t lines;
    Guarded<uint8_t> masks, values;
    std::vector<T> dense;

    Problem(SparsePattern p, const std::vector<uint8_t>& bytes, int64_t line_count, const std::function<T()>& next)
        : pattern(p),
          lines(line_count),
          masks(static_cast<int64_t>(bytes.size())),
          values(count(p, bytes, line_count) * 4 / word + kPadding) {
        std::copy(bytes.begin(), bytes.end(), masks.begin());
        uint8_t* packed = values.data();
        for (int64_t i = 0; i < lines * line_size; ++i) {
            const int64_t bit = bit_of(pattern, word, i / line_size, i % line_size);
            dense.push_back(T{});
            if ((bytes[static_cast<size_t>(bit / 8)] >> bit % 8 & 1) == 0) continue;
            dense.back() = next();
            std::memcpy(packed, &dense.back(), sizeof(T));
            packed += sizeof(T);
        }
    }
    static int64_t count(SparsePattern p, const std::vector<uint8_t>& bytes, int64_t line_count) {
        int64_t total = 0;
        for (int64_t i = 0; i < line_count * line_size; ++i) {
            const int64_t bit = bit_of(p, word, i / line_size, i % line_size);
            total += bytes[static_cast<size_t>(bit / 8)] >> bit % 8 & 1;
        }
        return total;
    }
    SparseLines b() const { return {pattern, masks.data(), values.data(), lines}; }
    T at(int64_t k, int64_t column) const { return dense[static_cast<size_t>(k / word * line_size + column * word + k % word)]; }
    std::string text() const { return std::string("pattern ") + name(pattern) + ", " + std::to_string(lines) + " lines"; }
};

std::vector<uint8_t> random_masks(SparsePattern pattern, int64_t word, int64_t lines, double density, Random& random) {
    std::vector<uint8_t> bytes(static_cast<size_t>(bytes_of_masks(pattern, word, lines)));
    for (uint8_t& byte : bytes) {
        for (int bit = 0; bit < 8; ++bit) byte = static_cast<uint8_t>(byte << 1 | (random.uniform() < 2 * density - 1 ? 1 : 0));
    }
    return bytes;
}

std::vector<const SparseFloatKernels*> available_kernels() {
    std::vector<const SparseFloatKernels*> kernels;
    for (const SparseFloatKernels* kernel : sparse_float_list()) {
        if (isa_available(kernel->isa)) kernels.push_back(kernel);
    }
    return kernels;
}

void expand(const SparseFloatKernels& kernel, const SparseLines& b, uint16_t* out) { kernel.expand_words(b, out); }
void expand(const SparseFloatKernels& kernel, const SparseLines& b, float* out) { kernel.expand_dwords(b, out); }

template <class T>
void check_expand(const Problem<T>& problem) {
    using Bits = std::conditional_t<sizeof(T) == 2, uint16_t, uint32_t>;
    const int64_t count = problem.lines * problem.line_size;
    std::vector<Bits> wanted(static_cast<size_t>(count)), got(static_cast<size_t>(count));
    std::memcpy(wanted.data(), problem.dense.data(), wanted.size() * sizeof(T));
    for (const SparseFloatKernels* kernel : available_kernels()) {
        Guarded<T> out(count);
        expand(*kernel, problem.b(), out.data());
        std::memcpy(got.data(), out.data(), got.size() * sizeof(T));
        check_equal(got.data(), wanted.data(), count, std::string(isa_name(kernel->isa)) + ", " + problem.text());
    }
}

// Any bits: a quarter of them NaN, infinity or denormal.
template <class T>
std::function<T()> any_bits(Random& random) {
    return [&random] {
        uint32_t bits = static_cast<uint32_t>(random.bits());
        const uint64_t kind = random.bits() % 12;
        if (kind == 0) bits |= 0x7f80ffff;                       // NaN
        if (kind == 1) bits = (bits & 0x80000000) | 0x7f800000;  // infinity
        if (kind == 2) bits &= 0x807fffff;                       // denormal
        T value;
        bits >>= 32 - 8 * sizeof(T);
        std::memcpy(&value, &bits, sizeof(T));
        return value;
    };
}

// Every value of a mask byte at every place of 64 bits.
template <class T>
void test_mask_bytes() {
    Random random(1);
    constexpr int64_t word = Problem<T>::word;
    for (const SparsePattern pattern : kPatterns) {
        const int64_t lines = 256 * 64 * 64 / bit_of(pattern, word, 64, 0);
        for (size_t place = 0; place < 8; ++place) {
            std::vector<uint8_t> bytes = random_masks(pattern, word, lines, 0.5, random);
            for (size_t i = 0; i < bytes.size() / 8; ++i) bytes[8 * i + place] = static_cast<uint8_t>(i % 256);
            check_expand(Problem<T>(pattern, bytes, lines, any_bits<T>(random)));
        }
    }
}

template <class T>
void test_line_counts() {
    Random random(2);
    for (const SparsePattern pattern : kPatterns) {
        for (const int64_t lines : {1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 33, 64}) {
            for (const double density : {0.0, 0.05, 0.5, 1.0}) {
                const std::vector<uint8_t> bytes = random_masks(pattern, Problem<T>::word, lines, density, random);
                check_expand(Problem<T>(pattern, bytes, lines, any_bits<T>(random)));
            }
        }
    }
}

// --- products ---

struct Shape {
    SparsePattern pattern;
    int64_t M, K;
    double density;
    int64_t first_row = 0, panel_rows = 0;  // where the rows lie in a panel of A; 0: they are the panel
};

// W: elements of the weight; A: of x.
template <class W, class A>
struct Product {
    static constexpr int64_t chunk = 64 / static_cast<int64_t>(sizeof(A));
    Shape shape;
    int64_t panel_rows;
    Problem<W> weight;
    Guarded<A> a;

    Product(const Shape& s, Random& random, const std::function<W()>& next)
        : shape(s),
          panel_rows(s.panel_rows == 0 ? s.M : s.panel_rows),
          weight(s.pattern, random_masks(s.pattern, Problem<W>::word, s.K / Problem<W>::word, s.density, random), s.K / Problem<W>::word,
                 next),
          a(panel_rows * s.K) {
        for (A& x : a) encode(std::numeric_limits<double>::quiet_NaN(), x);
        for (int64_t m = 0; m < s.M; ++m) {
            for (int64_t k = 0; k < s.K; ++k) encode(random.uniform(), x(m, k));
        }
    }
    A& x(int64_t m, int64_t k) { return a[(k / chunk * panel_rows + shape.first_row + m) * chunk + k % chunk]; }

    // c [M][32], of which the kernel writes 16 columns.
    std::vector<float> run(void (*kernel)(const SparseFloatRows<A>&)) {
        Guarded<float> c((shape.M - 1) * kStripColumns + kPanelColumns);
        kernel({weight.b(), a.data() + shape.first_row * chunk, panel_rows, shape.M, c.data()});
        for (int64_t i = 0; i < c.size(); ++i) {
            uint32_t bits;
            std::memcpy(&bits, &c[i], 4);
            if (i % kStripColumns >= kPanelColumns) check(bits == 0xa5a5a5a5, "a sum beyond the panel was written");
        }
        return {c.begin(), c.end()};
    }

    void check_sums(const std::vector<float>& c, const std::string& what) {
        for (int64_t i = 0; i < shape.M * kPanelColumns; ++i) {
            const int64_t m = i / kPanelColumns, n = i % kPanelColumns;
            double sum = 0, magnitude = 0;
            for (int64_t k = 0; k < shape.K; ++k) {
                const double product = decode(x(m, k)) * decode(weight.at(k, n));
                sum += product;
                magnitude += std::fabs(product);
            }
            const double got = static_cast<double>(c[static_cast<size_t>(m * kStripColumns + n)]);
            const std::string place = what + ", " + weight.text() + ", M = " + std::to_string(shape.M) + ", [" + std::to_string(i) + "]";
            if (std::isnan(sum)) {
                check(std::isnan(got), place + ": NaN");
            } else if (std::isinf(sum)) {
                check(got == sum, place + ": infinity");
            } else {
                check_near(got, sum, static_cast<double>(shape.K) * 0x1p-23 * magnitude, place);
            }
        }
    }
};

template <class W>
std::function<W()> uniform(Random& random, double scale = 1) {
    return [&random, scale] {
        W value;
        encode(random.uniform() * scale, value);
        return value;
    };
}

template <class A>
using Kernel = void (*SparseFloatKernels::*)(const SparseFloatRows<A>&);

template <class W, class A>
void check_products(const Shape& shape, Kernel<A> kernel, Random& random, const std::function<void(Product<W, A>&)>& change = {}) {
    Product<W, A> product(shape, random, uniform<W>(random));
    if (change) change(product);
    for (const SparseFloatKernels* kernels : available_kernels()) {
        if (kernels->*kernel == nullptr || shape.M > kernels->max_rows) continue;
        product.check_sums(product.run(kernels->*kernel), isa_name(kernels->isa));
    }
}

template <class W, class A>
void test_products(Kernel<A> kernel) {
    Random random(3);
    constexpr int64_t chunk = Product<W, A>::chunk;
    for (const SparsePattern pattern : kPatterns) {
        for (int64_t M = 1; M <= 8; ++M) {
            for (const int64_t K : {chunk, 3 * chunk, 8 * chunk}) check_products<W, A>({pattern, M, K, 0.4}, kernel, random);
            // Few enough for 16x1 to skip, and a K that is no multiple of 64.
            check_products<W, A>({pattern, M, 5 * chunk, 0.1}, kernel, random);
            check_products<W, A>({pattern, M, 2 * chunk, 0.4, 16 - M, 16}, kernel, random);
        }
        for (const double density : {0.0, 0.02, 1.0}) check_products<W, A>({pattern, 3, 4 * chunk, density}, kernel, random);
    }
}

// NaN and infinity in x reach every sum of their row, also where the weight is zero, and no other row; in the weight, their column.
template <class W, class A>
void test_special_values(Kernel<A> kernel) {
    constexpr double nan = std::numeric_limits<double>::quiet_NaN(), infinity = std::numeric_limits<double>::infinity();
    Random random(4);
    constexpr int64_t K = 2 * Product<W, A>::chunk;
    for (const SparsePattern pattern : kPatterns) {
        for (const double density : {0.0, 0.1, 0.5, 1.0}) {
            for (int64_t M = 1; M <= 6; ++M) {
                for (int64_t k = 0; k < K; k += 5) {
                    check_products<W, A>({pattern, M, K, density}, kernel, random, [&](Product<W, A>& p) {
                        encode(nan, p.x(M - 1, k));
                        if (M > 1) encode(-infinity, p.x(0, K - 1 - k));
                    });
                }
            }
        }
        for (const double value : {nan, infinity, -infinity}) {
            Product<W, A> product({pattern, 2, K, 0.3}, random, [&random, value] {
                W element;
                encode(random.bits() % 40 == 0 ? value : random.uniform(), element);
                return element;
            });
            for (const SparseFloatKernels* kernels : available_kernels()) {
                if (kernels->*kernel != nullptr) product.check_sums(product.run(kernels->*kernel), isa_name(kernels->isa));
            }
        }
    }
}

// Sums of denormals are exact multiples of the smallest; the f32 lane does not flush them.
template <class W>
void test_denormals(Kernel<float> kernel) {
    Random random(5);
    Product<W, float> product({SparsePattern::any, 3, 64, 0.5}, random, uniform<W>(random, 0x1p-127));
    for (int64_t i = 0; i < 3 * 64; ++i) product.x(i / 64, i % 64) = i % 3 == 0 ? -1.0f : 1.0f;
    for (const SparseFloatKernels* kernels : available_kernels()) {
        if (kernels->*kernel != nullptr) product.check_sums(product.run(kernels->*kernel), isa_name(kernels->isa));
    }
}

// --- whole layers ---

struct Layer {
    RandomSparseWeight sparse;
    Guarded<uint8_t> packed;
    DType x_dtype;
    int64_t M;
    Guarded<float> x;  // its values as fp32; bf16 holds them too
    Guarded<uint16_t> x_bf16;

    Layer(const SparseSpec& spec, double density, DType dtype, int64_t rows, Random& random)
        : sparse(spec, {spec.N, spec.K, density, spec.pattern, true}, random.bits()),
          packed(sparse.packed()),
          x_dtype(dtype),
          M(rows),
          x(rows * spec.K),
          x_bf16(rows * spec.K) {
        for (int64_t i = 0; i < x.size(); ++i) {
            encode(random.uniform(), x_bf16[i]);
            encode(decode(x_bf16[i]), x[i]);
        }
    }
    std::vector<float> run(Isa isa, int threads, SparsePath path) const {
        const Weight weight = weight_view(packed.data(), packed.size());
        Guarded<float> out(M * weight.N);
        Epilogue epilogue{};
        epilogue.out = out.data();
        epilogue.out_dtype = DType::f32;
        epilogue.out_row_stride = weight.N;
        const void* rows = x_dtype == DType::bf16 ? static_cast<const void*>(x_bf16.data()) : x.data();
        linear({rows, x_dtype, M, weight.K, weight, epilogue, threads, isa, path});
        return {out.begin(), out.end()};
    }
    void check_isa(const SparseFloatKernels& kernels) const {
        const int64_t N = sparse.spec.N, K = sparse.spec.K;
        const std::string what = std::string(isa_name(kernels.isa)) + ", " + sparse.text() + ", M = " + std::to_string(M);
        const std::vector<float> got = run(kernels.isa, 1, SparsePath::gemv);
        for (int64_t i = 0; i < M * N; ++i) {
            double sum = 0, magnitude = 0;
            for (int64_t k = 0; k < K; ++k) {
                const double product = decode(x[i / N * K + k]) * sparse.dense[static_cast<size_t>(i % N * K + k)];
                sum += product;
                magnitude += std::fabs(product);
            }
            check_near(static_cast<double>(got[static_cast<size_t>(i)]), sum, static_cast<double>(K) * 0x1p-23 * magnitude, what);
        }
        for (const int threads : {2, 3}) check(run(kernels.isa, threads, SparsePath::gemv) == got, what + ": threads");
    }
};

void test_layers() {
    Random random(6);
    for (const FormatId format : {FormatId::sparse_f32, FormatId::sparse_bf16}) {
        for (const SparsePattern pattern : kPatterns) {
            for (const DType x_dtype : {DType::f32, DType::bf16}) {
                for (const int64_t N : {1, 48, 333}) {
                    const int64_t K = N == 333 ? 1000 : random.integer(1, 300), M = random.integer(1, 8);
                    const SparseSpec spec{format, N, K, 0, ScaleType::f32, Activations::exact, pattern, kPartBitmask};
                    const Layer layer(spec, N == 48 ? 0.05 : 0.4, x_dtype, M, random);
                    for (const SparseFloatKernels* kernels : available_kernels()) {
                        if (M <= kernels->max_rows) layer.check_isa(*kernels);
                    }
                }
            }
        }
    }
}

void test_tables() {
    for (const SparseFloatKernels* kernel : sparse_float_list()) {
        const std::string what = isa_name(kernel->isa);
        check(kernel->expand_words != nullptr && kernel->expand_dwords != nullptr, what + ": expands");
        check((kernel->run_f32 != nullptr) == (kernel->max_rows > 0), what + ": fp32");
        check((kernel->run_bf16_f32 != nullptr) == (kernel->max_rows > 0), what + ": bf16 on the f32 lane");
        check((kernel->run_bf16 != nullptr) == (kernel->isa == Isa::avx512bf16), what + ": bf16");
        check(kernel->max_rows <= kPanelRows, what + ": rows of one panel");
    }
}

}  // namespace
}  // namespace gossamer::test

int main() {
    using namespace gossamer;
    using namespace gossamer::test;
    test_tables();
    test_layers();
    test_mask_bytes<float>();
    test_mask_bytes<uint16_t>();
    test_line_counts<float>();
    test_line_counts<uint16_t>();
    test_products<float, float>(&SparseFloatKernels::run_f32);
    test_products<uint16_t, float>(&SparseFloatKernels::run_bf16_f32);
    test_products<uint16_t, uint16_t>(&SparseFloatKernels::run_bf16);
    test_special_values<float, float>(&SparseFloatKernels::run_f32);
    test_special_values<uint16_t, float>(&SparseFloatKernels::run_bf16_f32);
    test_special_values<uint16_t, uint16_t>(&SparseFloatKernels::run_bf16);
    test_denormals<float>(&SparseFloatKernels::run_f32);
    test_denormals<uint16_t>(&SparseFloatKernels::run_bf16_f32);
    return finish();
}
