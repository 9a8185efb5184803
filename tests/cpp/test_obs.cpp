// The column update on every ISA: each step is checked in fp64 from the errors of the steps before it, so that a weight that lies between
// two levels may go to either.
#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "check.h"
#include "gossamer/cpu.h"
#include "gossamer/obs.h"
#include "guarded.h"
#include "random.h"

namespace gossamer::test {
namespace {

constexpr double kUnit = 0x1p-24;
enum class Rounding { none, uniform, codebook };

struct Case {
    int64_t columns, rows, gap;
    Rounding rounding;
    bool mask;
    int64_t n, m, group;
};

struct Problem {
    Case c;
    int64_t stride;
    Guarded<float> start, W, E, L, scales, zeros, levels, thresholds;
    Guarded<double> loss;
    Guarded<uint8_t> keep, codes;
    Guarded<int32_t> groups;

    Problem(const Case& of, Random& random)
        : c(of),
          stride(of.columns + of.gap),
          start(of.columns * of.rows),
          W(of.columns * of.rows),
          E(of.columns * of.rows),
          L((of.columns - 1) * stride + of.columns),
          scales(of.columns * of.rows),
          zeros(of.columns * of.rows),
          levels(11),
          thresholds(10),
          loss(of.rows),
          keep(of.columns * of.rows),
          codes(of.columns * of.rows),
          groups(of.columns) {
        for (float& x : start) x = static_cast<float>(random.uniform());
        for (int64_t k = 0; k < c.columns; ++k) {
            for (int64_t j = 0; j <= k; ++j) l(k, j) = static_cast<float>(j == k ? 0.5 + 0.2 * random.uniform() : 0.1 * random.uniform());
        }
        for (float& x : scales) x = random.integer(0, 20) == 0 ? 0.0f : static_cast<float>(0.2 + 0.1 * random.uniform());
        for (float& x : zeros) x = static_cast<float>(random.integer(2, 9));
        for (int64_t i = 0; i < levels.size(); ++i) levels[i] = static_cast<float>((i - 5) * std::abs(i - 5));
        for (int64_t i = 0; i < thresholds.size(); ++i) thresholds[i] = (levels[i] + levels[i + 1]) / 2;
        for (uint8_t& x : keep) x = static_cast<uint8_t>(random.integer(0, 1));
        for (int64_t j = 0; j < c.columns; ++j) groups[j] = static_cast<int32_t>(j / c.group);
    }
    float& l(int64_t k, int64_t j) { return L[k * stride + j]; }

    void run(Isa isa, int threads) {
        std::copy(start.begin(), start.end(), W.begin());
        std::fill(loss.begin(), loss.end(), 1.0);
        ObsBlock block{W.data(), E.data(), loss.data(), c.mask || c.m != 0 ? keep.data() : nullptr, L.data(), stride, c.columns, c.rows,
                       c.n,      c.m,      {}};
        if (c.rounding != Rounding::none) {
            block.grid = {codes.data(), 0, 15, levels.data(), nullptr, 11, scales.data(), zeros.data(), groups.data()};
        }
        if (c.rounding == Rounding::codebook) {
            block.grid.thresholds = thresholds.data();
            block.grid.zeros = nullptr;
        }
        obs_update(block, isa, threads);
    }

    // G = start, from codes that are all the same; E becomes the errors.
    void descend(Isa isa, int threads) {
        std::fill(E.begin(), E.end(), 0.0f);
        for (int64_t i = 0; i < W.size(); ++i) W[i] = level(3, i % c.rows + groups[i / c.rows] * c.rows);
        DescentBlock block{start.data(), E.data(), W.data(), c.mask ? keep.data() : nullptr, L.data(), stride, c.columns, c.rows, {}};
        block.grid = {codes.data(), 0, 15, levels.data(), thresholds.data(), 11, scales.data(), nullptr, groups.data()};
        if (c.rounding == Rounding::uniform) {
            block.grid.thresholds = nullptr;
            block.grid.zeros = zeros.data();
        }
        obs_descend(block, isa, threads);
    }
    float level(int64_t code, int64_t group_at) {
        return c.rounding == Rounding::uniform ? static_cast<float>(code) - zeros[group_at] : levels[code];
    }

    // The weight of a row at column j when its turn comes, with the errors that the kernel has made before.
    double current(int64_t j, int64_t row) {
        double w = static_cast<double>(start[j * c.rows + row]);
        for (int64_t i = 0; i < j; ++i) w += static_cast<double>(E[i * c.rows + row]) * static_cast<double>(l(j, i));
        return w;
    }
    bool kept(int64_t j, int64_t row) { return !(c.mask || c.m != 0) || keep[j * c.rows + row] != 0; }
    std::string text(Isa isa) const {
        return std::string(isa_name(isa)) + ", columns " + std::to_string(c.columns) + ", rounding " +
               std::to_string(static_cast<int>(c.rounding)) + ", mask " + std::to_string(c.mask) + ", of " + std::to_string(c.m);
    }
};

// The value that was stored, from its code; and the largest distance of a level from what is rounded to it.
void check_rounded(Problem& p, int64_t j, int64_t row, double w, double bound, const std::string& what) {
    const int64_t at = j * p.c.rows + row, group = p.groups[j] * p.c.rows + row;
    const bool uniform = p.c.rounding == Rounding::uniform;
    const float scale = p.scales[group], zero = uniform ? p.zeros[group] : 0.0f, code = static_cast<float>(p.codes[at]);
    check(p.codes[at] < (uniform ? 16 : 11), what + ": code");
    if (!p.kept(j, row)) {
        check((uniform ? code : p.levels[p.codes[at]]) == zero && p.W[at] == 0, what + ": pruned");
        return;
    }
    check(p.W[at] == ((uniform ? code : p.levels[p.codes[at]]) - zero) * scale, what + ": value of the code");
    double nearest = 1e30;
    for (int64_t i = 0; i < (uniform ? 16 : 11); ++i) {
        const float level = uniform ? static_cast<float>(i) : p.levels[i];
        nearest = std::min(nearest, std::fabs(w - static_cast<double>((level - zero) * scale)));
    }
    check(std::fabs(w - static_cast<double>(p.W[at])) <= nearest + 2 * bound, what + ": nearest");
}

void check_n_of_m(Problem& p, int64_t first, int64_t row, const std::vector<double>& scores, const std::string& what) {
    const int64_t count = static_cast<int64_t>(scores.size());
    int64_t stay = 0;
    double least = 1e30, most = 0;
    for (int64_t i = 0; i < count; ++i) {
        const bool kept = p.kept(first + i, row);
        stay += kept;
        (kept ? least : most) = kept ? std::min(least, scores[static_cast<size_t>(i)]) : std::max(most, scores[static_cast<size_t>(i)]);
    }
    check(stay == std::min(p.c.n, count) && most <= least * (1 + 1e-4) + 1e-8, what + ": n of m");
}

void check_row(Problem& p, int64_t row, const std::string& what) {
    const double bound = kUnit * static_cast<double>(8 * p.c.columns + 16);  // magnitudes are of the order of 1
    double loss = 1;
    for (int64_t j = 0; j < p.c.columns; ++j) {
        const int64_t at = j * p.c.rows + row;
        const double w = p.current(j, row), e = static_cast<double>(p.E[at]);
        check_near(e * static_cast<double>(p.l(j, j)), static_cast<double>(p.W[at]) - w, bound, what + ": error");
        if (p.c.rounding != Rounding::none) {
            check_rounded(p, j, row, w, bound, what);
        } else {
            check_near(static_cast<double>(p.W[at]), p.kept(j, row) ? w : 0, p.kept(j, row) ? bound : 0, what + ": value");
        }
        loss += e * e;
    }
    check_near(p.loss[row], loss, 1e-12 * loss, what + ": loss");
    for (int64_t first = 0; p.c.m != 0 && first < p.c.columns; first += p.c.m) {
        std::vector<double> scores;
        for (int64_t j = first; j < std::min(first + p.c.m, p.c.columns); ++j) {
            double w = static_cast<double>(p.start[j * p.c.rows + row]);
            for (int64_t i = 0; i < first; ++i) w += static_cast<double>(p.E[i * p.c.rows + row]) * static_cast<double>(p.l(j, i));
            scores.push_back(w * w / static_cast<double>(p.l(j, j)) / static_cast<double>(p.l(j, j)));
        }
        check_n_of_m(p, first, row, scores, what);
    }
}

void check_descent(Problem& p, int64_t j, int64_t row, const std::string& what) {
    const int64_t at = j * p.c.rows + row, group_at = p.groups[j] * p.c.rows + row;
    const double scale = static_cast<double>(p.scales[group_at]), before = static_cast<double>(p.level(3, group_at)) * scale;
    const double after = static_cast<double>(p.W[at]) * scale, bound = kUnit * static_cast<double>(64 * p.c.columns + 64);
    check_near(static_cast<double>(p.E[at]), before - after, bound, what + ": error");
    check(p.W[at] == p.level(p.codes[at], group_at), what + ": level of the code");
    if (scale == 0 || (p.c.mask && p.keep[at] == 0)) {
        check(p.codes[at] == 3, what + ": stays");
        return;
    }
    const double wanted = before + p.current(j, row) / static_cast<double>(p.l(j, j));
    double nearest = 1e30;
    for (int64_t i = 0; i < (p.c.rounding == Rounding::uniform ? 16 : 11); ++i) {
        nearest = std::min(nearest, std::fabs(wanted - static_cast<double>(p.level(i, group_at)) * scale));
    }
    check(std::fabs(wanted - after) <= nearest + 2 * bound, what + ": nearest");
}

bool same(Problem& a, Problem& b) {
    const size_t bytes = static_cast<size_t>(a.c.columns * a.c.rows);
    return std::memcmp(a.W.data(), b.W.data(), 4 * bytes) == 0 && std::memcmp(a.E.data(), b.E.data(), 4 * bytes) == 0 &&
           (a.c.rounding == Rounding::none || std::memcmp(a.codes.data(), b.codes.data(), bytes) == 0);
}

void test_all() {
    const Case cases[] = {
        {1, 32, 0, Rounding::uniform, false, 0, 0, 1},     {15, 32, 3, Rounding::uniform, true, 0, 0, 8},
        {16, 64, 0, Rounding::codebook, false, 0, 0, 16},  {17, 32, 5, Rounding::codebook, true, 0, 0, 17},
        {31, 32, 0, Rounding::none, true, 0, 0, 31},       {127, 64, 2, Rounding::uniform, false, 0, 0, 32},
        {128, 96, 0, Rounding::uniform, true, 0, 0, 64},   {128, 32, 9, Rounding::none, false, 2, 4, 128},
        {101, 32, 0, Rounding::codebook, false, 1, 3, 33}, {128, 64, 0, Rounding::uniform, false, 13, 29, 128},
        {70, 32, 0, Rounding::none, false, 8, 16, 70},
    };
    for (const Isa isa : {Isa::scalar, Isa::avx2, Isa::avx512}) {
        if (!isa_available(isa)) continue;
        for (const Case& c : cases) {
            Random random(7), again(7);
            Problem p(c, random), q(c, again);
            p.run(isa, 1);
            for (int64_t row = 0; row < c.rows; ++row) check_row(p, row, p.text(isa));
            q.run(isa, 3);
            check(same(p, q), "other threads: " + p.text(isa));
            if (c.rounding == Rounding::none) continue;
            p.descend(isa, 1);
            for (int64_t at = 0; at < p.W.size(); ++at) check_descent(p, at / c.rows, at % c.rows, "descent, " + p.text(isa));
            q.descend(isa, 3);
            check(same(p, q), "other threads: descent, " + p.text(isa));
        }
    }
}

}  // namespace
}  // namespace gossamer::test

int main() {
    gossamer::test::test_all();
    return gossamer::test::finish();
}
