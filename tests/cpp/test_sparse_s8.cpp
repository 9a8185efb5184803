// Every sparse s8 kernel that this machine runs, bit for bit: expanded lines against lines made from weights, products against naive sums.
#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "check.h"
#include "dispatch/lists.h"
#include "values.h"

namespace gossamer::test {
namespace {

constexpr SparsePattern kPatterns[] = {SparsePattern::any, SparsePattern::b1x4, SparsePattern::b1x16, SparsePattern::b4x1,
                                       SparsePattern::b16x1};
constexpr const char* kPatternNames[] = {"any", "1x4", "1x16", "4x1", "16x1"};
constexpr ScaleType kScaleTypes[] = {ScaleType::f32, ScaleType::bf16, ScaleType::f16};
constexpr DType kScaleDTypes[] = {DType::f32, DType::bf16, DType::f16};  // by ScaleType

// Which bit of a panel's masks stands for element i of a line (format_sparse.h).
int64_t bit_index(SparsePattern pattern, int64_t line, int64_t i) {
    const int64_t column = i / 4, k = line * 4 + i % 4;
    switch (pattern) {
        case SparsePattern::any: return line * 64 + i;
        case SparsePattern::b1x4: return k / 4 * 16 + column;
        case SparsePattern::b1x16: return k / 16 * 16 + column;
        case SparsePattern::b4x1: return line * 16 + column / 4 * 4 + k % 4;
        default: return k;
    }
}

// A panel of `lines` lines, its bits chosen by `set`, and its values, bytes or codes. Behind the values lie the 64 bytes of padding, then a
// guard page; the masks end at one.
struct SparsePanel {
    SparsePattern pattern;
    int64_t lines;
    bool codes;
    std::vector<int> weights;  // [lines * 64]; code 8 where nothing is stored
    Guarded<uint8_t> masks;
    std::vector<uint8_t> packed;
    Guarded<uint8_t> values;

    template <class Set>
    SparsePanel(SparsePattern p, int64_t count, bool with_codes, Random& random, const Set& set)
        : pattern(p),
          lines(count),
          codes(with_codes),
          weights(static_cast<size_t>(count * 64), with_codes ? 8 : 0),
          masks(bit_index(p, count - 1, 63) / 8 + 1),
          packed(pack(random, set)),
          values(static_cast<int64_t>(packed.size()) + 64) {
        std::copy(packed.begin(), packed.end(), values.begin());
        // Not zeros, so that a kernel which takes padding for values is seen.
        std::fill(values.begin() + packed.size(), values.end(), uint8_t{0x5a});
    }
    template <class Set>
    std::vector<uint8_t> pack(Random& random, const Set& set) {
        std::fill(masks.begin(), masks.end(), uint8_t{0});
        const int64_t bits = masks.size() * 8;
        for (int64_t bit = 0; bit < bits; ++bit) {
            if (bit <= bit_index(pattern, lines - 1, 63) && set(bit)) masks[bit / 8] = static_cast<uint8_t>(masks[bit / 8] | 1 << bit % 8);
        }
        std::vector<uint8_t> bytes;
        for (int64_t line = 0; line < lines; ++line) {
            int64_t stored = 0;
            for (int64_t i = 0; i < 64; ++i) {
                const int64_t bit = bit_index(pattern, line, i);
                if ((masks[bit / 8] >> bit % 8 & 1) == 0) continue;
                int& weight = weights[static_cast<size_t>(line * 64 + i)];
                weight = static_cast<int>(codes ? random.integer(0, 15) : random.integer(-128, 127));
                if (!codes || stored % 2 == 0) bytes.push_back(0);
                bytes.back() = static_cast<uint8_t>(bytes.back() | weight << (codes ? stored % 2 * 4 : 0));
                ++stored;
            }
        }
        return bytes;
    }
    SparseLines view() const { return {pattern, masks.data(), values.data(), lines}; }
    int weight(int64_t n, int64_t k) const { return weights[static_cast<size_t>(k / 4 * 64 + n * 4 + k % 4)]; }
    std::string text() const {
        return std::string(kPatternNames[static_cast<int>(pattern)]) + (codes ? ", codes, " : ", bytes, ") + std::to_string(lines) +
               " lines";
    }
};

// Bits set with this probability; 0 and 1 are exact.
auto bits_of_density(Random& random, double density) {
    return [&random, density](int64_t) { return random.uniform() < 2 * density - 1; };
}

std::vector<const SparseS8Kernels*> available_kernels() {
    std::vector<const SparseS8Kernels*> kernels;
    for (const SparseS8Kernels* kernel : sparse_s8_list()) {
        if (isa_available(kernel->isa)) kernels.push_back(kernel);
    }
    return kernels;
}

void check_expand(const SparsePanel& panel) {
    std::vector<uint8_t> wanted;
    for (int64_t i = 0; i < panel.lines * 64; ++i) {
        const size_t at = static_cast<size_t>(i);
        if (!panel.codes) wanted.push_back(static_cast<uint8_t>(panel.weights[at]));
        if (panel.codes && i / 64 % 2 == 0) wanted.push_back(static_cast<uint8_t>(panel.weights[at] | panel.weights[at + 64] << 4));
    }
    for (const SparseS8Kernels* kernel : available_kernels()) {
        Guarded<uint8_t> got(static_cast<int64_t>(wanted.size()));
        if (panel.codes) {
            kernel->expand_codes(panel.view(), got.data());
        } else {
            kernel->expand_bytes(panel.view(), reinterpret_cast<int8_t*>(got.data()));
        }
        check_equal(got.data(), wanted.data(), got.size(), std::string(isa_name(kernel->isa)) + ": expand: " + panel.text());
    }
}

// Every value of a byte of the mask in each of its eight places, others random; codes from two lines.
void test_every_mask_byte() {
    Random random(1);
    for (const bool codes : {false, true}) {
        for (int64_t place = 0; place < 8; ++place) {
            std::vector<uint8_t> bytes(256 * 8);
            for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random.bits());
            for (int64_t value = 0; value < 256; ++value) bytes[static_cast<size_t>(value * 8 + place)] = static_cast<uint8_t>(value);
            check_expand({SparsePattern::any, 256, codes, random,
                          [&](int64_t bit) { return (bytes[static_cast<size_t>(bit / 8)] >> bit % 8 & 1) != 0; }});
        }
    }
}

void test_every_pattern() {
    Random random(2);
    for (const SparsePattern pattern : kPatterns) {
        for (const double density : {0.0, 0.02, 0.3, 0.5, 0.9, 1.0}) {
            for (const int64_t lines : {1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 33, 64, 129}) {
                check_expand({pattern, lines, false, random, bits_of_density(random, density)});
                check_expand({pattern, 2 * lines, true, random, bits_of_density(random, density)});
            }
        }
    }
}

// Lines that are full and empty in turn, so that values begin as far apart as they can.
void test_full_and_empty_lines() {
    Random random(3);
    for (const int64_t period : {1, 2, 3, 5, 16}) {
        for (const bool codes : {false, true}) {
            check_expand({SparsePattern::any, 96, codes, random, [&](int64_t bit) { return bit / 64 / period % 2 == 0; }});
        }
    }
}

struct RowsShape {
    int64_t M, K, panel_rows, first_row;
    std::string text() const {
        return "M = " + std::to_string(M) + ", K = " + std::to_string(K) + ", R = " + std::to_string(panel_rows) + ", first row " +
               std::to_string(first_row);
    }
};

// Rows of A, and the panel that holds them from first_row on.
template <class T>
struct Rows {
    RowsShape shape;
    std::vector<int> x;  // [M, K]
    Guarded<T> panel;

    Rows(const RowsShape& s, std::vector<int> numbers) : shape(s), x(std::move(numbers)), panel(s.panel_rows * s.K) {
        for (int64_t m = 0; m < s.M; ++m) {
            for (int64_t k = 0; k < s.K; ++k) {
                panel[(k / 64 * s.panel_rows + s.first_row + m) * 64 + k % 64] = static_cast<T>(x[static_cast<size_t>(m * s.K + k)]);
            }
        }
    }
    const T* first() const { return panel.data() + shape.first_row * 64; }
    int at(int64_t m, int64_t k) const { return x[static_cast<size_t>(m * shape.K + k)]; }
};

std::vector<int> random_numbers(int64_t count, int64_t first, int64_t last, Random& random) {
    std::vector<int> numbers;
    for (int64_t i = 0; i < count; ++i) numbers.push_back(static_cast<int>(random.integer(first, last)));
    return numbers;
}

void check_int8(const SparsePanel& panel, const Rows<uint8_t>& a, Random& random) {
    const RowsShape& s = a.shape;
    Guarded<int32_t> init(kPanelColumns);
    for (int32_t& x : init) x = static_cast<int32_t>(random.integer(-100000, 100000));
    std::vector<int64_t> wanted;
    for (int64_t i = 0; i < s.M * kPanelColumns; ++i) {
        const int64_t m = i / kPanelColumns, n = i % kPanelColumns;
        int64_t sum = init[n];
        for (int64_t k = 0; k < s.K; ++k) sum += a.at(m, k) * panel.weight(n, k);
        wanted.push_back(sum);
    }
    for (const SparseS8Kernels* kernel : available_kernels()) {
        if (kernel->run_int8 == nullptr || s.M > kernel->max_rows) continue;
        Guarded<int32_t> c((s.M - 1) * kStripColumns + kPanelColumns);
        kernel->run_int8({panel.view(), a.first(), s.panel_rows, s.M, init.data(), c.data()});
        std::vector<int64_t> got;
        for (int64_t i = 0; i < s.M * kPanelColumns; ++i) got.push_back(c[i / kPanelColumns * kStripColumns + i % kPanelColumns]);
        check_equal(got.data(), wanted.data(), s.M * kPanelColumns,
                    std::string(isa_name(kernel->isa)) + ": int8: " + panel.text() + ", " + s.text());
    }
}

std::vector<RowsShape> row_shapes(int64_t K) {
    std::vector<RowsShape> shapes = {{1, K, 16, 15}, {3, K, 16, 6}, {2, K, 5, 3}, {7, K, 9, 2}};
    for (int64_t M = 1; M <= kPanelRows; ++M) shapes.push_back({M, K, M, 0});
    return shapes;
}

void test_int8() {
    Random random(4);
    for (const SparsePattern pattern : kPatterns) {
        for (const int64_t K : {64, 192, 512}) {
            for (const RowsShape& shape : row_shapes(K)) {
                const double density = std::vector{0.0, 0.1, 0.5, 1.0}[static_cast<size_t>(random.integer(0, 3))];
                check_int8({pattern, K / 4, false, random, bits_of_density(random, density)},
                           {shape, random_numbers(shape.M * K, 0, 255, random)}, random);
            }
        }
    }
}

// Products of the largest size and of both signs, and the longest sums there are.
void test_int8_extremes() {
    Random random(5);
    for (const int64_t K : {int64_t{256}, kMaxSumK}) {
        for (const int weight : {-128, 127, 0}) {
            SparsePanel panel(SparsePattern::any, K / 4, false, random, [](int64_t) { return true; });
            for (size_t i = 0; i < panel.weights.size(); ++i) {
                panel.weights[i] = weight != 0 ? weight : random.integer(0, 1) == 0 ? -128 : 127;
                panel.values[static_cast<int64_t>(i)] = static_cast<uint8_t>(panel.weights[i]);
            }
            for (const int64_t M : {1, 2, 5}) {
                std::vector<int> u = random_numbers(M * K, 0, 1, random);
                for (int& x : u) x = K == kMaxSumK ? 255 : x * 255;
                check_int8(panel, {{M, K, M, 0}, u}, random);
            }
        }
    }
}

struct Int4Options {
    int64_t group_k;
    ScaleType scale_type;
    bool row_scales;
};

// Sums of groups in int64, scaled and added with std::fma in the order of the groups.
void check_int4(const SparsePanel& panel, const Rows<int8_t>& a, const Int4Options& o, Random& random) {
    const RowsShape& s = a.shape;
    const int64_t groups = (s.K + o.group_k - 1) / o.group_k;
    Guarded<int32_t> a_sums(s.M * groups);
    Guarded<float> a_scales(s.M * groups);
    Values scales(kScaleDTypes[static_cast<int>(o.scale_type)], groups * kPanelColumns);
    for (float& x : a_scales) x = static_cast<float>(random.uniform());
    for (int64_t i = 0; i < scales.count; ++i) scales.set(i, random.uniform());
    std::vector<uint32_t> wanted;
    for (int64_t i = 0; i < s.M * kPanelColumns; ++i) {
        const int64_t m = i / kPanelColumns, n = i % kPanelColumns;
        float total = 0;
        for (int64_t g = 0; g < groups; ++g) {
            int64_t sum = 0, q = 0;
            for (int64_t k = g * o.group_k; k < std::min(s.K, (g + 1) * o.group_k); ++k) {
                sum += a.at(m, k) * (panel.weight(n, k) - 8);
                q += a.at(m, k);
            }
            a_sums[m * groups + g] = static_cast<int32_t>(-8 * q);
            const float part = static_cast<float>(sum), scale = static_cast<float>(scales.get(g * kPanelColumns + n));
            total = o.row_scales ? std::fma(part * scale, a_scales[m * groups + g], total) : std::fma(part, scale, total);
        }
        wanted.push_back(float_bits(total));
    }
    for (const SparseS8Kernels* kernel : available_kernels()) {
        if (kernel->run_int4 == nullptr || s.M > kernel->max_rows) continue;
        Guarded<float> sum((s.M - 1) * kStripColumns + kPanelColumns);
        kernel->run_int4({panel.view(), a.first(), s.panel_rows, s.M, a_sums.data(), o.row_scales ? a_scales.data() : nullptr, groups,
                          o.group_k, scales.bytes(), o.scale_type, sum.data()});
        std::vector<uint32_t> got;
        for (int64_t i = 0; i < s.M * kPanelColumns; ++i)
            got.push_back(float_bits(sum[i / kPanelColumns * kStripColumns + i % kPanelColumns]));
        check_equal(got.data(), wanted.data(), s.M * kPanelColumns,
                    std::string(isa_name(kernel->isa)) + ": int4: " + panel.text() + ", " + s.text() +
                        ", G = " + std::to_string(o.group_k) + ", " + name(o.scale_type));
    }
}

void test_int4() {
    Random random(6);
    for (const SparsePattern pattern : kPatterns) {
        for (const int64_t K : {64, 192, 576}) {
            for (const RowsShape& shape : row_shapes(K)) {
                const int64_t group = std::vector<int64_t>{16, 32, 64, 128, 256, K}[static_cast<size_t>(random.integer(0, 5))];
                const double density = std::vector{0.0, 0.1, 0.5, 1.0}[static_cast<size_t>(random.integer(0, 3))];
                check_int4({pattern, K / 4, true, random, bits_of_density(random, density)},
                           {shape, random_numbers(shape.M * K, -127, 127, random)},
                           {group, kScaleTypes[random.integer(0, 2)], random.integer(0, 1) == 0}, random);
            }
        }
    }
}

void test_every_int4_option() {
    Random random(7);
    for (const int64_t group : {16, 32, 64, 128, 256, 320}) {
        for (const ScaleType type : kScaleTypes) {
            for (const bool row_scales : {false, true}) {
                for (const int64_t M : {1, 2, 9}) {
                    check_int4({SparsePattern::any, 80, true, random, bits_of_density(random, 0.4)},
                               {{M, 320, M, 0}, random_numbers(M * 320, -127, 127, random)}, {group, type, row_scales}, random);
                }
            }
        }
    }
}

// The highest code everywhere and the largest q of one sign, in groups as long as int32 allows.
void test_int4_extremes() {
    Random random(8);
    for (const int64_t K : {int64_t{256}, kMaxSumK}) {
        SparsePanel panel(SparsePattern::any, K / 4, true, random, [](int64_t) { return true; });
        std::fill(panel.weights.begin(), panel.weights.end(), 15);
        std::fill(panel.values.begin(), panel.values.begin() + panel.lines * 32, uint8_t{0xff});
        for (const int q : {-127, 127}) {
            for (const int64_t M : {1, 3}) {
                check_int4(panel, {{M, K, M, 0}, std::vector<int>(static_cast<size_t>(M * K), q)}, {K, ScaleType::f32, false}, random);
            }
        }
    }
}

void test_contract() {
    for (const SparseS8Kernels* kernel : sparse_s8_list()) {
        const std::string name = isa_name(kernel->isa);
        check(kernel->expand_bytes != nullptr && kernel->expand_codes != nullptr, name + ": expand");
        check(kernel->max_rows >= 0 && kernel->max_rows <= kPanelRows, name + ": max_rows");
        check(kernel->max_rows == 0 || kernel->run_int8 != nullptr, name + ": run_int8");
    }
}

}  // namespace
}  // namespace gossamer::test

int main() {
    using namespace gossamer::test;
    if (!gossamer::isa_available(gossamer::sparse_s8_list().back()->isa)) return kSkipped;
    test_contract();
    test_every_mask_byte();
    test_every_pattern();
    test_full_and_empty_lines();
    test_int8();
    test_int8_extremes();
    test_int4();
    test_every_int4_option();
    test_int4_extremes();
    return finish();
}
