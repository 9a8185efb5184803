// The OBS column update, which GPTQ and SparseGPT share (gossamer.calibration.obs): weights of a layer are rounded or pruned column by
// column, and those that are left make up for the error. Here: one block of columns; what later blocks owe it is a matrix product, the
// caller's.
//
// W [N, K], and L [K, K] lower, the Cholesky factor of the inverse of the moments: H^-1 = L L^T. For j = 0 .. B-1, in every row n:
//
//   v    = round(W[n,j]), where the row's mask keeps it, else 0                 without a grid round(w) = w
//   e    = (v - W[n,j]) / L[j,j]
//   W[n,k] += e L[k,j]       k = j+1 .. B-1
//
// W[n,j] becomes v, E[n,j] = e, loss[n] += e^2 (what tr((W - V) H (W - V)^T) grows by).
//
// Rounding, with the scale s and zero z of the row's group, and w / s + z = z where s is 0:
//   uniform (thresholds null)  code + lowest = clamp(round_half_even(w / s) + z, lowest, highest);   v = (code + lowest - z) s
//   codebook                   code = how many thresholds lie below w / s + z;                       v = (levels[code] - z) s
// A pruned weight is 0 in W; its code is that of w = 0.
//
// N of M (m > 0): at each j that is a multiple of m the n largest of (W[n,j..j+m-1] / L[j,j])^2 are kept, of equals the first, and the
// mask is written.
//
// Layout: everything per weight is transposed, [column][row], rows padded with zeros to a multiple of kObsRows = 32; lanes are rows, which
// never meet, so the number of threads changes no bit. Arithmetic is fp32, fused where the instruction set can; a column collects its
// updates in the order of j. Source: Frantar et al., "GPTQ" (2022), algorithm 1; Frantar, Alistarh, "SparseGPT" (2023), algorithm 1.
//
// And the coordinate descent that may follow (gossamer.quantization.descent): codes of a block move, one column after the other, to what
// is best with all others as they are. With the errors E = W - V [N, K] and G = E H for the columns of the block, for j = 0 .. B-1:
//
//   y    = d[n,j] + G[n,j] / H[j,j] / s, where the row's mask moves it, else d[n,j]           d = level - z of the code as it is
//   d'   = the level nearest to y + z, by the rounding above, - z
//   e    = (d[n,j] - d') s
//   G[n,k] += e H[k,j]       k = j+1 .. B-1
//
// d[n,j] becomes d', E[n,j] += e. A column with H[j,j] = 0 stays as it is; so does one with s = 0, and of codebooks with two zeros the
// second is taken. Each step lowers tr(E H E^T) or leaves it, but for rounding: G may be off by c B 2^-24 sum |E| |H|. Layout and order of
// the sums are those of the update. Source: Behdin et al., "QuantEase" (2023), algorithm 1.
#pragma once
#include <cstdint>

#include "gossamer/isa.h"

namespace gossamer {

inline constexpr int64_t kObsRows = 32;
inline constexpr int64_t kObsColumns = 128;  // of a block, at most

// What a weight may be rounded to.
struct ObsGrid {
    uint8_t* codes;           // [columns][rows]; null: no rounding
    float lowest, highest;    // uniform
    const float* levels;      // codebook: [count] ascending, count <= 256
    const float* thresholds;  // codebook: [count - 1] ascending; null: uniform
    int64_t count;
    const float* scales;    // [groups][rows]
    const float* zeros;     // the same, or null: 0
    const int32_t* groups;  // of each column
};

struct ObsBlock {
    float* W;              // [columns][rows]
    float* E;              // [columns][rows]
    double* loss;          // [rows]
    uint8_t* keep;         // [columns][rows], 0 or 1; null: all are kept
    const float* L;        // at the diagonal of the first column
    int64_t l_stride;      // elements
    int64_t columns;       // 1 .. kObsColumns
    int64_t rows;          // a multiple of kObsRows, of all rows: the stride of a column
    int64_t keep_n, of_m;  // of_m 0: keep is read, not written
    ObsGrid grid;
};

struct DescentBlock {
    const float* G;       // [columns][rows]
    float* E;             // [columns][rows]
    float* levels;        // [columns][rows]: d
    const uint8_t* keep;  // [columns][rows], 0 or 1; null: all may move
    const float* H;       // at the diagonal of the first column
    int64_t h_stride;     // elements
    int64_t columns;      // 1 .. kObsColumns
    int64_t rows;         // as of ObsBlock
    ObsGrid grid;         // with codes, which are written only
};

struct ObsKernels {
    Isa isa;
    int64_t rows;  // per call; divides kObsRows
    void (*update)(const ObsBlock& block, int64_t first_row);
    void (*descend)(const DescentBlock& block, int64_t first_row);
};

void obs_update(const ObsBlock& block, Isa isa, int threads);
void obs_descend(const DescentBlock& block, Isa isa, int threads);

}  // namespace gossamer
