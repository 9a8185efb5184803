// Y = W X and Z = W^T Y in one read of W. Contract: svd.h.
//
// Rows of W fall into chunks, by the shape alone. One thread works through a chunk, step_rows rows at a time:
//
//   Y rows             panels of A of these rows of W, times X, strip by strip
//   Z^T of the chunk   += Y^T W, strip by strip of 32 columns of W, each turned into panels of B. A group of kGroupColumns that has been
//                      multiplied makes room for the same columns of the next rows, which were asked for during the group before: so W
//                      comes from memory while the lanes are busy, and lies nowhere but in these panels
//
// and then Z = sum of the chunks' Z, in their order, in fp64.
//
// Sizes. step_rows x n panels of A take 128 bytes of a column in either lane: 512 KiB where n = 4096, in L2 (1 MiB on Zen 4, 2 MiB on Intel
// servers), beside the group that is on its way (32 KiB). A turned strip takes 4 KiB, Y^T 2 KiB for 16 columns: L1. The sums of Z pass
// through once in step_rows rows, 32 KiB for 128 columns of W and l = 64; fewer rows would pass them more often, and make the kernel's
// loop over K (32 steps) shorter.
//
// W is read once, so that the chunks' sums must be kept: at most kPartialBytes. Where they are larger, and where W stays in cache anyhow,
// this is sketch, then project.
//
// Tried and lost (Zen 4, l = 32): no prefetch (30 % slower), prefetch to L1 (20-30 %; its few miss buffers are full, and the kernels wait),
// groups of 64 or 256 columns, steps of twice the rows (no faster).
#include "lane.h"

namespace gossamer {
namespace {

constexpr int64_t kCachedBytes = 8 << 20;  // of W
constexpr int64_t kChunkRows = 512, kMaxChunks = 32, kMinChunks = 4;
constexpr int64_t kPartialBytes = 64 << 20;
constexpr int64_t kGroupColumns = 128;  // of W, converted at once

thread_local Workspace x_workspace, partial_workspace, step_workspace;

struct Chunks {
    int64_t count, rows;
};

// None where W should rather be read twice.
Chunks choose_chunks(const SvdPass& pass, int64_t step_rows) {
    const int64_t partial_bytes = round_to(pass.n, kStripColumns) * round_to(pass.l, kPanelRows) * 4;
    const int64_t most = std::min({kMaxChunks, kPartialBytes / partial_bytes, pass.m / kChunkRows});
    if (most < kMinChunks || pass.m * pass.n * size_bytes(pass.w_dtype) <= kCachedBytes) return {0, 0};
    const int64_t rows = round_to(ceil_div(pass.m, most), step_rows);
    return {ceil_div(pass.m, rows), rows};
}

// Asks for a group of columns of some rows of W, a few lines at a time: a core waits when it has asked for more than it can.
class Prefetch {
public:
    // All of it after `calls` calls.
    Prefetch(const SvdPass& pass, Range rows, int64_t column, int64_t calls)
        : line_(static_cast<const char*>(element(pass, rows.begin, column))),
          row_bytes_(pass.w_row_stride * size_bytes(pass.w_dtype)),
          line_bytes_(std::min(kGroupColumns, pass.n - column) * size_bytes(pass.w_dtype)),
          rows_(column < pass.n ? std::max<int64_t>(rows.end - rows.begin, 0) : 0),
          lines_per_call_(ceil_div(rows_ * ceil_div(line_bytes_, 64), calls)) {}

    void some() {
        for (int64_t i = 0; i < lines_per_call_ && rows_ > 0; ++i) {
            __builtin_prefetch(line_ + offset_, 0, 2);
            offset_ += 64;
            if (offset_ >= line_bytes_) {
                offset_ = 0;
                line_ += row_bytes_;
                --rows_;
            }
        }
    }

private:
    const char* line_;
    int64_t row_bytes_, line_bytes_, offset_ = 0, rows_, lines_per_call_;
};

template <class Block>
class PowerStep {
    using Kernels = SvdKernels<Block>;
    using Element = typename Kernels::Element;

public:
    static constexpr int64_t step_rows = 128 / Kernels::element_bytes;
    static constexpr int64_t y_stride = step_rows * kPanelRows;  // of the panels of Y^T, and of a strip of W
    static constexpr int64_t rows_per_call = 16;                 // so that lines are asked for in small numbers

    PowerStep(const SvdPass& pass, const Kernels& kernels, Chunks chunks)
        : pass_(pass),
          kernels_(kernels),
          chunks_(chunks),
          strips_(ceil_div(pass.n, kStripColumns)),
          l16_(round_to(pass.l, kPanelRows)),
          x_(pass, reinterpret_cast<Element*>(x_workspace.reserve(PackedX<Block>::size_in_bytes(pass)))),
          partial_(reinterpret_cast<float*>(partial_workspace.reserve(chunks.count * strips_ * sums_of_strip() * 4))) {}

    void run() const {
        parallel(std::min<int>(svd_threads(pass_), static_cast<int>(chunks_.count)), [&](Team team) {
            x_.fill(pass_, kernels_, team);
            team.barrier();
            const Range chunks = split_range(chunks_.count, team.rank, team.size);
            const Step step(*this);
            if (kernels_.product.begin != nullptr) kernels_.product.begin(kPanelRows);
            for (int64_t chunk = chunks.begin; chunk < chunks.end; ++chunk) run_chunk(chunk, step);
            if (kernels_.product.end != nullptr) kernels_.product.end();
            team.barrier();
            const Range strips = split_range(strips_, team.rank, team.size);
            for (int64_t strip = strips.begin; strip < strips.end; ++strip) add_partials(strip);
        });
    }

private:
    // What a thread keeps of the rows it works on.
    struct Step {
        Element *a, *turned, *y_panels;  // W; a strip of W; Y^T
        float* y;                        // [strips of l][step_rows][32]

        explicit Step(const PowerStep& all) {
            const int64_t a_size = step_rows * all.x_.K, turned_size = step_rows * kStripColumns, y_size = step_rows * all.l16_;
            const int64_t sums = step_rows * round_to(all.pass_.l, kStripColumns);
            auto* memory =
                reinterpret_cast<Element*>(step_workspace.reserve((a_size + turned_size + y_size) * Kernels::element_bytes + sums * 4));
            a = memory;
            turned = a + a_size;
            y_panels = turned + turned_size;
            y = reinterpret_cast<float*>(y_panels + y_size);
        }
    };

    int64_t sums_of_strip() const { return l16_ * kStripColumns; }
    float* partial(int64_t chunk, int64_t strip) const { return partial_ + (chunk * strips_ + strip) * sums_of_strip(); }

    void run_chunk(int64_t chunk, const Step& step) const {
        const Range rows{chunk * chunks_.rows, std::min((chunk + 1) * chunks_.rows, pass_.m)};
        convert(step, rows, 0, pass_.n);
        for (int64_t row = rows.begin; row < rows.end; row += step_rows) {
            const int64_t count = std::min(step_rows, rows.end - row);
            multiply_x(step, count);
            store_rows(pass_, step.y, step_rows * kStripColumns, row, count);
            kernels_.to.transposed(
                {pass_.Y + row * pass_.y_row_stride, DType::f32, pass_.y_row_stride, count, pass_.l, step_rows, step.y_panels, y_stride});
            for (int64_t k = 0; k < pass_.n; k += kGroupColumns) {
                const int64_t columns = std::min(kGroupColumns, pass_.n - k);
                const Range next{row + step_rows, rows.end};
                multiply_y(chunk, step, {k, k + columns}, row == rows.begin, next);
                convert(step, next, k, columns);
            }
        }
    }

    // The first step_rows of these rows; those that are not there take part in W^T Y as zeros.
    void convert(const Step& step, Range rows, int64_t k, int64_t columns) const {
        if (rows.begin >= rows.end) return;
        kernels_.to.rows({element(pass_, rows.begin, k), pass_.w_dtype, pass_.w_row_stride, std::min(step_rows, rows.end - rows.begin),
                          step_rows, columns, step.a + k * kPanelRows, kPanelRows * x_.K});
    }

    void multiply_x(const Step& step, int64_t rows) const {
        Block block{};
        block.a = step.a;
        block.panel_rows = kPanelRows;
        block.a_panel_stride = kPanelRows * x_.K;
        block.M = rows;
        block.K = x_.K;
        for (int64_t strip = 0; strip * kStripColumns < pass_.l; ++strip) {
            x_.put_into(block, strip, 0, pass_.l);
            block.c = step.y + strip * step_rows * kStripColumns;
            multiply(kernels_.product, block, true);
        }
    }

    void multiply_y(int64_t chunk, const Step& step, Range columns, bool first, Range next) const {
        Block block{};
        block.panel_rows = kPanelRows;
        block.a_panel_stride = y_stride;
        block.b = step.turned;
        block.b_panel_stride = y_stride;
        block.K = step_rows;
        const int64_t calls = ceil_div(columns.end - columns.begin, kStripColumns) * ceil_div(pass_.l, rows_per_call);
        Prefetch ahead(pass_, {next.begin, std::min(next.end, next.begin + step_rows)}, columns.end, calls);
        for (int64_t strip = columns.begin / kStripColumns; strip * kStripColumns < columns.end; ++strip) {
            block.n_panels = std::min<int64_t>(2, ceil_div(pass_.n, kPanelColumns) - 2 * strip);
            kernels_.to.turned({step.a + strip * kStripColumns * kPanelRows, kPanelRows * x_.K, step_rows, block.n_panels, step.turned});
            for (int64_t c = 0; c < pass_.l; c += block.M) {
                ahead.some();
                block.M = std::min(rows_per_call, pass_.l - c);
                block.a = step.y_panels + c / kPanelRows * y_stride;
                block.c = partial(chunk, strip) + c * kStripColumns;
                multiply(kernels_.product, block, first);
            }
        }
    }

    void add_partials(int64_t strip) const {
        double sums[kMaxBlockRows * kStripColumns];
        for (int64_t column = 0; column < pass_.l; column += kMaxBlockRows) {
            const int64_t columns = std::min(kMaxBlockRows, pass_.l - column), count = columns * kStripColumns;
            std::fill_n(sums, count, 0.0);
            for (int64_t chunk = 0; chunk < chunks_.count; ++chunk) {
                kernels_.accumulate(partial(chunk, strip) + column * kStripColumns, count, sums);
            }
            store_transposed(pass_, sums, strip, column, columns);
        }
    }

    const SvdPass& pass_;
    const Kernels& kernels_;
    Chunks chunks_;
    int64_t strips_, l16_;
    PackedX<Block> x_;
    float* partial_;
};

}  // namespace

void power_step(const SvdPass& pass) {
    with_lane(pass, [&](const auto& kernels) {
        using Step = PowerStep<typename std::decay_t<decltype(kernels)>::Block>;
        const Chunks chunks = choose_chunks(pass, Step::step_rows);
        if (chunks.count > 0) return Step(pass, kernels, chunks).run();
        sketch(pass);
        project(pass);
    });
}

}  // namespace gossamer
