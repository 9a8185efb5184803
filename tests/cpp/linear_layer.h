// One linear layer and its inputs, and a check of what it computed.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "any_weight.h"
#include "check.h"

namespace gossamer::test {

struct LayerOptions {
    DType x_dtype = DType::f32, out_dtype = DType::f32;
    bool bias = true, addend = false;
    DType bias_dtype = DType::f32;
    Activation activation = Activation::none;
};

inline Weight packed_weight(const RandomWeight& w) { return weight_view(w.packed.data(), w.packed.size()); }
inline Weight packed_weight(const AnyWeight& w) { return w.view(); }

// Rows of x, out and addend are further apart than they are long.
template <class W>
struct LinearLayer {
    const W& weight;
    int64_t M, x_stride, out_stride, addend_stride;
    LayerOptions options;
    Values x, bias;
    Guarded<float> addend;

    LinearLayer(const W& w, int64_t rows, const LayerOptions& o, uint64_t seed)
        : weight(w),
          M(rows),
          x_stride(w.K + 7),
          out_stride(w.N + 5),
          addend_stride(w.N + 3),
          options(o),
          x(o.x_dtype, count(x_stride, w.K)),
          bias(o.bias_dtype, w.N),
          addend(count(addend_stride, w.N)) {
        Random random(seed);
        fill(x, random, 4.0);
        fill(bias, random);
        for (float& a : addend) a = static_cast<float>(random.uniform());
    }
    Values output() const { return Values(options.out_dtype, count(out_stride, weight.N)); }
    Values run(Isa isa, int threads) const {
        Values out = output();
        const Epilogue epilogue{options.bias ? bias.bytes() : nullptr,
                                options.bias_dtype,
                                options.activation,
                                options.addend ? addend.data() : nullptr,
                                addend_stride,
                                out.data(),
                                options.out_dtype,
                                out_stride};
        linear({x.bytes(), options.x_dtype, M, x_stride, packed_weight(weight), epilogue, threads, isa});
        return out;
    }
    std::string text() const {
        return weight.text() + ", M = " + std::to_string(M) + ", " + dtype_name(options.x_dtype) + " to " + dtype_name(options.out_dtype) +
               ", activation " + std::to_string(static_cast<int>(options.activation));
    }

private:
    // Elements from the first of M rows to the end of the last.
    int64_t count(int64_t stride, int64_t length) const { return std::max<int64_t>((M - 1) * stride + length, 0); }
};

// Every output [m, n] is within bound[m * N + n] of value[m * N + n], and nothing is written between the rows.
template <class W>
void check_output(const LinearLayer<W>& layer, const std::vector<double>& value, const std::vector<double>& bound, const Values& out,
                  const std::string& what) {
    const Values untouched = layer.output();
    const size_t element = static_cast<size_t>(size_bytes(out.dtype));
    int64_t wrong = 0, strayed = 0;
    for (int64_t i = 0; i < out.count; ++i) {
        const int64_t m = i / layer.out_stride, n = i % layer.out_stride;
        if (n >= layer.weight.N) {
            strayed += std::memcmp(out.at(i), untouched.at(i), element) != 0;
            continue;
        }
        const size_t at = static_cast<size_t>(m * layer.weight.N + n);
        if (std::fabs(out.get(i) - value[at]) <= bound[at]) continue;
        if (wrong++ == 0) check_near(out.get(i), value[at], bound[at], what + ": [" + std::to_string(m) + ", " + std::to_string(n) + "]");
    }
    check(wrong == 0, what + ": " + std::to_string(wrong) + " outputs are wrong");
    check(strayed == 0, what + ": wrote between the rows of the output");
}

// With any number of threads the bits are those of `first`.
template <class W>
void check_threads(const LinearLayer<W>& layer, Isa isa, const Values& first, const std::string& what) {
    for (const int threads : {1, 2, 5}) {
        const Values again = layer.run(isa, threads);
        check(std::memcmp(first.bytes(), again.bytes(), static_cast<size_t>(first.size_in_bytes())) == 0,
              what + ": the same bits with " + std::to_string(threads) + " threads");
    }
}

}  // namespace gossamer::test
