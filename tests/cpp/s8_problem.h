// One product of the s8 lane: logical matrices, the same in the panels of quantize.h and s8.h, and the driver's loop over blocks.
#pragma once
#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "gossamer/s8.h"
#include "guarded.h"
#include "random.h"
#include "reference/reference.h"

namespace gossamer::test {

struct S8Shape {
    int64_t M, K, n_panels, panel_rows;
    int64_t first_k = 0;  // where the block starts in its panels, below 64: a multiple of the group in a line
    int64_t spare = 0;    // bytes between panels that are not the block's

    int64_t N() const { return n_panels * kPanelColumns; }
    int64_t row_panels() const { return (M + panel_rows - 1) / panel_rows; }
    int64_t stored_k() const { return padded_k(first_k + K); }
    std::string text() const {
        return "M = " + std::to_string(M) + ", K = " + std::to_string(K) + ", N = " + std::to_string(N()) +
               ", R = " + std::to_string(panel_rows) + ", first k = " + std::to_string(first_k);
    }
};

struct S8Problem {
    S8Shape shape;
    std::vector<uint8_t> u;      // [M, K]
    std::vector<int8_t> w;       // [N, K]
    std::vector<int32_t> start;  // [M, N] what c holds before
    Guarded<uint8_t> a;
    Guarded<int8_t> b;
    Guarded<int32_t> init, c;

    int64_t a_stride() const { return shape.panel_rows * shape.stored_k() + shape.spare; }
    int64_t b_stride() const { return kPanelColumns * shape.stored_k() + shape.spare; }

    S8Problem(const S8Shape& s, std::vector<uint8_t> u_values, std::vector<int8_t> w_values, Random& random)
        : shape(s),
          u(std::move(u_values)),
          w(std::move(w_values)),
          a(s.row_panels() * (s.panel_rows * s.stored_k() + s.spare) - s.spare),
          b(s.n_panels * (kPanelColumns * s.stored_k() + s.spare) - s.spare),
          init(s.N()),
          c(s.row_panels() * s.panel_rows * kStripColumns) {
        for (int64_t m = 0; m < s.M; ++m) {
            for (int64_t k = 0; k < s.K; ++k) a[a_index(m, k)] = u[static_cast<size_t>(m * s.K + k)];
        }
        for (int64_t n = 0; n < s.N(); ++n) {
            for (int64_t k = 0; k < s.K; ++k) b[b_index(n, k)] = w[static_cast<size_t>(n * s.K + k)];
        }
        for (int32_t& x : init) x = static_cast<int32_t>(random.integer(-5000, 5000));
        for (int64_t i = 0; i < s.M * s.N(); ++i) start.push_back(static_cast<int32_t>(random.integer(-5000, 5000)));
    }

    int64_t a_index(int64_t m, int64_t k) const {
        const int64_t R = shape.panel_rows, line = (shape.first_k + k) / kChunk, in_line = (shape.first_k + k) % kChunk;
        return m / R * a_stride() + (line * R + m % R) * kChunk + in_line;
    }
    int64_t b_index(int64_t n, int64_t k) const {
        const int64_t quad = (shape.first_k + k) / 4, in_quad = (shape.first_k + k) % 4;
        return n / kPanelColumns * b_stride() + (quad * kPanelColumns + n % kPanelColumns) * 4 + in_quad;
    }

    // Calls the kernel as the driver does, and returns c [M, N].
    std::vector<int32_t> run(const S8Kernels& kernel, bool from_init) {
        if (kernel.begin != nullptr) kernel.begin(shape.panel_rows);
        std::vector<int32_t> out = run_blocks(kernel, from_init);
        if (kernel.end != nullptr) kernel.end();
        return out;
    }

    // In blocks that the kernel allows, between its begin and end.
    std::vector<int32_t> run_blocks(const S8Kernels& kernel, bool from_init) {
        const int64_t R = shape.panel_rows, N = shape.N();
        for (int64_t i = 0; i < shape.M * N; ++i) c[i / N * kStripColumns + i % N] = start[static_cast<size_t>(i)];
        const int64_t block_rows = kernel.block_rows / R * R;
        for (int64_t m = 0; m < shape.M; m += block_rows) {
            S8Block block{};
            block.panel_rows = R;
            block.a_panel_stride = a_stride();
            block.b_panel_stride = b_stride();
            block.n_panels = shape.n_panels;
            block.M = std::min(block_rows, shape.M - m);
            block.c = c.data() + m * kStripColumns;
            for (int64_t k = 0; k < shape.K; k += block.K) {
                block.K = std::min(kernel.block_k, shape.K - k);
                block.a = a.data() + a_index(m, k);
                block.b = b.data() + b_index(0, k);
                block.init = k == 0 && from_init ? init.data() : nullptr;
                kernel.run(block);
            }
        }
        std::vector<int32_t> out;
        for (int64_t i = 0; i < shape.M * N; ++i) out.push_back(c[i / N * kStripColumns + i % N]);
        return out;
    }

    // The reference's sums; what run() starts from is not in them.
    std::vector<int64_t> product() const { return reference::multiply(u.data(), w.data(), shape.M, shape.N(), shape.K); }
    std::vector<int64_t> expected(const std::vector<int64_t>& product, bool from_init) const {
        std::vector<int64_t> out = product;
        for (size_t i = 0; i < out.size(); ++i) out[i] += from_init ? init[static_cast<int64_t>(i) % shape.N()] : start[i];
        return out;
    }
};

inline S8Problem random_problem(const S8Shape& s, Random& random) {
    std::vector<uint8_t> u(static_cast<size_t>(s.M * s.K));
    std::vector<int8_t> w(static_cast<size_t>(s.N() * s.K));
    for (uint8_t& x : u) x = static_cast<uint8_t>(random.integer(0, 255));
    for (int8_t& x : w) x = static_cast<int8_t>(random.integer(-128, 127));
    return {s, std::move(u), std::move(w), random};
}

}  // namespace gossamer::test
