// The driver of the s8 lane: quantize x once, split the grid of (rows x strips of 32 columns) over the team, and for each cell run the
// microkernel over K, then the epilogue.
//
// Loop nest of one thread, outermost first:
//   slabs           at most kSlabRows rows and kSlabBytes of x, so that the quantized copy stays bounded, and in L3, for any M and K
//   row blocks      at most block_rows x K bytes of A, in L2
//   strips          32 columns of B, read from memory once per row block
//   sum blocks      one, or one per group of the weight
//   K blocks        block_k
//
// Tried and lost (Zen 4): prefetching the lines that the epilogue will write, 1-2 % faster at M = 1024 and 2 % slower at M = 1; K blocks of
// 512 or 1024 on VNNI, whose B comes from L2 fast enough, no faster.
#include "gossamer/linear.h"

#include <algorithm>
#include <memory>
#include <new>

#include "dispatch/lists.h"
#include "gossamer/parallel.h"
#include "simd/scalar.h"

namespace gossamer {
namespace {

constexpr int64_t kSlabRows = 2048, kSlabBytes = int64_t{16} << 20;
constexpr int64_t kMaxBlockRows = 128;
constexpr int64_t kBlockBytes = 1 << 20;  // of A, half of a 2 MiB L2
// Up to this many rows every thread quantizes all of x for itself, which is cheaper than a barrier.
constexpr int64_t kPrivateRows = 4;
// Up to this many rows VPDPBUSD beats AMX, whose tiles would be mostly empty.
constexpr int64_t kRowsBelowAmx = 4;

constexpr int64_t ceil_div(int64_t x, int64_t y) { return (x + y - 1) / y; }

// Memory that grows and is kept for the next call of this thread.
class Workspace {
public:
    uint8_t* reserve(int64_t bytes) {
        if (bytes > capacity_) {
            memory_.reset(static_cast<uint8_t*>(::operator new(static_cast<size_t>(bytes), std::align_val_t{64})));
            capacity_ = bytes;
        }
        return memory_.get();
    }

private:
    struct Free {
        void operator()(uint8_t* p) const { ::operator delete(p, std::align_val_t{64}); }
    };
    std::unique_ptr<uint8_t, Free> memory_;
    int64_t capacity_ = 0;
};

thread_local Workspace workspace;

// Quantized rows of one slab: panels (quantize.h), then a scale per row.
struct Activations {
    uint8_t* panels;
    float* scale;
    int64_t panel_rows;
    int64_t panel_stride;  // bytes

    static int64_t size_bytes(int64_t rows, int64_t K) {
        const int64_t panel_rows = std::min(rows, kPanelRows), panels = ceil_div(rows, panel_rows);
        return panels * panel_rows * padded_k(K) + ceil_div(rows, kPanelRows) * kChunk;
    }
    Activations(uint8_t* memory, int64_t rows, int64_t K)
        : panels(memory), panel_rows(std::min(rows, kPanelRows)), panel_stride(panel_rows * padded_k(K)) {
        scale = reinterpret_cast<float*>(memory + ceil_div(rows, panel_rows) * panel_stride);
    }
};

// One layer on one ISA; what stays the same over all cells.
struct Job {
    const S8Kernels& s8;
    const EpilogueKernels& epilogue;
    const QuantizeKernels& quantize;
    const LinearCall& call;

    explicit Job(const LinearCall& c)
        : s8(select_kernels(s8_list(), c.M <= kRowsBelowAmx ? std::min(c.isa, Isa::avx512vnni) : c.isa)),
          epilogue(select_kernels(epilogue_list(), c.isa)),
          quantize(select_kernels(quantize_list(), c.isa)),
          call(c) {}
};

// A cell of the grid: rows of the slab x one strip.
struct Cell {
    int64_t first_row, rows, strip, columns;  // columns: the valid ones
    int64_t n_panels() const { return ceil_div(columns, kPanelColumns); }
    int64_t first_column() const { return strip * kStripColumns; }
};

// acc [rows, 32] = the sums of sum block `s`.
void multiply(const S8Kernels& s8, const Activations& a, const Int8Weight& w, const Cell& cell, int64_t s, int32_t* acc) {
    const int64_t first_k = s * w.layout.sum_k, last_k = std::min(first_k + w.layout.sum_k, w.layout.K64);
    S8Block block{};
    block.panel_rows = a.panel_rows;
    block.a_panel_stride = a.panel_stride;
    block.b_panel_stride = w.layout.K64 * kPanelColumns;
    block.n_panels = cell.n_panels();
    block.M = cell.rows;
    block.c = acc;
    const uint8_t* a_rows = a.panels + cell.first_row / a.panel_rows * a.panel_stride;
    const int8_t* b_strip = w.panels + cell.first_column() * w.layout.K64;
    for (int64_t k = first_k; k < last_k; k += block.K) {
        block.K = std::min(s8.block_k, last_k - k);
        block.a = a_rows + k / kChunk * kChunk * a.panel_rows + k % kChunk;
        block.b = b_strip + k * kPanelColumns;
        block.init = k == first_k ? w.init + s * w.layout.N16 + cell.first_column() : nullptr;
        s8.run(block);
    }
}

float bias_at(const Epilogue& e, int64_t n) {
    if (e.bias_dtype == DType::f32) return static_cast<const float*>(e.bias)[n];
    const uint16_t* bits = static_cast<const uint16_t*>(e.bias) + n;
    return (e.bias_dtype == DType::bf16 ? load_bf16(bits) : load_f16(bits)).v;
}

constexpr float kZeros[kStripColumns] = {};
constexpr struct Ones {
    float values[kStripColumns];
    constexpr Ones() : values() {
        for (float& x : values) x = 1.0f;
    }
} kOnes;

// Scales and bias of one strip as 32 floats each: in place where they lie so, else copied. `scaled`: the sums carry the scales already.
struct StripConstants {
    const float* scale = kOnes.values;
    const float* bias = kZeros;

    StripConstants(const Int8Weight& w, const Epilogue& e, const Cell& cell, bool scaled) {
        const bool whole = cell.columns == kStripColumns;
        if (!scaled) scale = whole ? w.scales + cell.first_column() : copy(scale_copy_, cell, [&](int64_t n) { return w.scales[n]; });
        if (e.bias == nullptr) return;
        const bool in_place = whole && e.bias_dtype == DType::f32;
        bias = in_place ? static_cast<const float*>(e.bias) + cell.first_column()
                        : copy(bias_copy_, cell, [&](int64_t n) { return bias_at(e, n); });
    }
    StripConstants(const StripConstants&) = delete;
    StripConstants& operator=(const StripConstants&) = delete;

private:
    template <class At>
    static const float* copy(float* to, const Cell& cell, const At& value_at) {
        for (int64_t n = 0; n < kStripColumns; ++n) to[n] = n < cell.columns ? value_at(cell.first_column() + n) : 0.0f;
        return to;
    }
    float scale_copy_[kStripColumns], bias_copy_[kStripColumns];
};

FinishTile finish_tile(const Epilogue& e, const Activations& a, int64_t slab, const Cell& cell, const StripConstants& strip) {
    const int64_t row = slab + cell.first_row, column = cell.first_column();
    FinishTile tile{};
    tile.M = cell.rows;
    tile.N = cell.columns;
    tile.row_scale = a.scale + cell.first_row;
    tile.column_scale = strip.scale;
    tile.bias = strip.bias;
    tile.addend = e.addend == nullptr ? nullptr : e.addend + row * e.addend_row_stride + column;
    tile.addend_row_stride = e.addend_row_stride;
    tile.activation = e.activation;
    tile.out = static_cast<char*>(e.out) + (row * e.out_row_stride + column) * size_bytes(e.out_dtype);
    tile.out_dtype = e.out_dtype;
    tile.out_row_stride = e.out_row_stride;
    return tile;
}

// Per channel, K <= 65,536: the sums go straight to the output.
void run_cell(const Job& job, const Activations& a, int64_t slab, const Cell& cell) {
    alignas(64) int32_t acc[kMaxBlockRows * kStripColumns];
    multiply(job.s8, a, job.call.weight, cell, 0, acc);
    const StripConstants strip(job.call.weight, job.call.epilogue, cell, false);
    job.epilogue.finish_s32(finish_tile(job.call.epilogue, a, slab, cell, strip), acc);
}

// sum [rows, 32] = the scaled sums of all groups, added in order.
void multiply_grouped(const Job& job, const Activations& a, const Int8Weight& w, const Cell& cell, float* sum) {
    if (job.s8.run_grouped != nullptr) {
        const int64_t first_column = cell.first_column(), panel_stride = w.layout.K64 * kPanelColumns;
        return job.s8.run_grouped({a.panels + cell.first_row / a.panel_rows * a.panel_stride, a.panel_rows, a.panel_stride,
                                   w.panels + first_column * w.layout.K64, panel_stride, cell.n_panels(), cell.rows,
                                   std::min(w.layout.K64, w.layout.groups * w.layout.G), w.layout.G, w.init + first_column,
                                   w.scales + first_column, w.layout.N16, sum});
    }
    alignas(64) int32_t acc[kMaxBlockRows * kStripColumns];
    const int64_t columns = cell.n_panels() * kPanelColumns;
    for (int64_t g = 0; g < w.layout.groups; ++g) {
        multiply(job.s8, a, w, cell, g, acc);
        const float* scales = w.scales + g * w.layout.N16 + cell.first_column();
        job.epilogue.scale_add(acc, scales, cell.rows, columns, g == 0, sum);
    }
}

void run_cell_grouped(const Job& job, const Activations& a, int64_t slab, const Cell& cell) {
    alignas(64) float sum[kMaxBlockRows * kStripColumns];
    const Int8Weight& w = job.call.weight;
    multiply_grouped(job, a, w, cell, sum);
    const StripConstants strip(w, job.call.epilogue, cell, true);
    job.epilogue.finish_f32(finish_tile(job.call.epilogue, a, slab, cell, strip), sum);
}

// Per channel, K > 65,536: blocks add up in int64 and are converted once.
void run_cell_long(const Job& job, const Activations& a, int64_t slab, const Cell& cell) {
    alignas(64) int32_t acc[kMaxBlockRows * kStripColumns];
    alignas(64) float sum[kMaxBlockRows * kStripColumns];
    int64_t total[kMaxBlockRows * kStripColumns] = {};
    const Int8Weight& w = job.call.weight;
    const int64_t count = cell.rows * kStripColumns;
    for (int64_t s = 0; s < w.layout.sum_blocks; ++s) {
        multiply(job.s8, a, w, cell, s, acc);
        for (int64_t i = 0; i < count; ++i) total[i] += acc[i];
    }
    for (int64_t i = 0; i < count; ++i) sum[i] = static_cast<float>(total[i]);
    const StripConstants strip(w, job.call.epilogue, cell, false);
    job.epilogue.finish_f32(finish_tile(job.call.epilogue, a, slab, cell, strip), sum);
}

// The part of the grid (panels of rows x strips) that falls to one thread: the split with the least work for the busiest.
struct Share {
    Range rows, strips;
};

Share choose_share(int64_t rows, int64_t panel_rows, int64_t strips, Team team) {
    const int64_t panels = ceil_div(rows, panel_rows);
    int64_t row_parts = 1, strip_parts = 1, least = panels * strips;
    for (int64_t parts = team.size; parts >= 1; --parts) {
        const int64_t others = team.size / parts;
        const int64_t busiest = ceil_div(panels, others) * ceil_div(strips, parts);
        // Ties go to the split along N, which reads the weight once.
        if (busiest < least) {
            least = busiest;
            row_parts = others;
            strip_parts = parts;
        }
    }
    if (team.rank >= row_parts * strip_parts) return {{0, 0}, {0, 0}};
    const Range part = split_range(panels, team.rank / strip_parts, row_parts);
    return {{part.begin * panel_rows, std::min(part.end * panel_rows, rows)}, split_range(strips, team.rank % strip_parts, strip_parts)};
}

// Calls run(cell) for this thread's share of a slab.
template <class Run>
void for_each_cell(const S8Kernels& s8, const Activations& a, const Int8Layout& w, int64_t rows, Team team, const Run& run) {
    const Share share = choose_share(rows, a.panel_rows, ceil_div(w.N, kStripColumns), team);
    const int64_t in_l2 = std::max(kBlockBytes / w.K64 / kStripColumns * kStripColumns, 2 * kPanelRows);
    const int64_t block_rows = std::min(s8.block_rows, in_l2);
    if (s8.begin != nullptr) s8.begin(a.panel_rows);
    for (int64_t m = share.rows.begin; m < share.rows.end; m += block_rows) {
        for (int64_t strip = share.strips.begin; strip < share.strips.end; ++strip) {
            run(Cell{m, std::min(block_rows, share.rows.end - m), strip, std::min(kStripColumns, w.N - strip * kStripColumns)});
        }
    }
    if (s8.end != nullptr) s8.end();
}

// Waking a thread costs a few microseconds; a thread must have more work than that.
int useful_threads(int64_t M, const Int8Layout& w, int threads) {
    constexpr double kBytesPerMicrosecond = 20e3, kProductsPerMicrosecond = 150e3, kMicrosecondsPerThread = 3;
    const double bytes = static_cast<double>(w.N16) * static_cast<double>(w.K64);
    const double microseconds = std::max(bytes / kBytesPerMicrosecond, bytes * static_cast<double>(M) / kProductsPerMicrosecond);
    const double useful = std::min(microseconds / kMicrosecondsPerThread, static_cast<double>(threads));
    return std::max(static_cast<int>(useful), 1);
}

void quantize_part(const Job& job, const Activations& a, int64_t slab, Range rows) {
    const LinearCall& call = job.call;
    const char* x = static_cast<const char*>(call.x) + slab * call.x_row_stride * size_bytes(call.x_dtype);
    job.quantize.run({x, call.x_dtype, call.x_row_stride, rows.begin, rows.end, call.weight.layout.K, a.panel_rows, a.panels, a.scale});
}

void run_slab(const Job& job, const Activations& a, int64_t slab, int64_t rows, Team team) {
    const Int8Layout& w = job.call.weight.layout;
    const auto run = w.G > 0 ? run_cell_grouped : w.sum_blocks > 1 ? run_cell_long : run_cell;
    for_each_cell(job.s8, a, w, rows, team, [&](const Cell& cell) { run(job, a, slab, cell); });
}

}  // namespace

void linear(const LinearCall& call) {
    const Int8Layout& w = call.weight.layout;
    if (call.M == 0) return;
    const Job job(call);
    const int threads = useful_threads(call.M, w, call.threads);
    const int64_t slab_panels = std::max<int64_t>(1, kSlabBytes / (w.K64 * kPanelRows));
    const int64_t slab_rows = std::min({call.M, kSlabRows, slab_panels * kPanelRows}), bytes = Activations::size_bytes(slab_rows, w.K);
    const bool private_copies = call.M <= kPrivateRows;
    uint8_t* memory = workspace.reserve(private_copies ? bytes * threads : bytes);
    parallel(threads, [&](Team team) {
        if (private_copies) {
            const Activations a(memory + team.rank * bytes, call.M, w.K);
            quantize_part(job, a, 0, {0, call.M});
            return run_slab(job, a, 0, call.M, team);
        }
        for (int64_t slab = 0; slab < call.M; slab += slab_rows) {
            const int64_t rows = std::min(slab_rows, call.M - slab);
            const Activations a(memory, rows, w.K);
            if (slab > 0) team.barrier();  // the slab before is still being read
            quantize_part(job, a, slab, split_range(rows, team.rank, team.size));
            team.barrier();
            run_slab(job, a, slab, rows, team);
        }
    });
}

void accumulate(const AccumulateCall& call) {
    const Int8Layout& w = call.weight.layout;
    if (call.M == 0) return;
    const S8Kernels& s8 = select_kernels(s8_list(), call.isa);
    uint8_t* memory = workspace.reserve(Activations::size_bytes(call.M, w.K));
    const Activations a(memory, call.M, w.K);
    for (int64_t m = 0; m < call.M; ++m) {
        uint8_t* line = a.panels + m / a.panel_rows * a.panel_stride + m % a.panel_rows * kChunk;
        for (int64_t k = 0; k < w.K64; ++k) {
            const int value = k < w.K ? call.x[m * call.x_row_stride + k] : 0;
            line[k / kChunk * kChunk * a.panel_rows + k % kChunk] = static_cast<uint8_t>(value + 128);
        }
    }
    parallel(std::max(call.threads, 1), [&](Team team) {
        for_each_cell(s8, a, w, call.M, team, [&](const Cell& cell) {
            alignas(64) int32_t acc[kMaxBlockRows * kStripColumns];
            for (int64_t s = 0; s < w.sum_blocks; ++s) {
                multiply(s8, a, call.weight, cell, s, acc);
                for (int64_t m = 0; m < cell.rows; ++m) {
                    int64_t* out = call.out + (cell.first_row + m) * w.N + cell.first_column();
                    for (int64_t n = 0; n < cell.columns; ++n) out[n] = (s == 0 ? 0 : out[n]) + acc[m * kStripColumns + n];
                }
            }
        });
    });
}

}  // namespace gossamer
