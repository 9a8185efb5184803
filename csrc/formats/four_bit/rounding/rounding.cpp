// Rounding to int4, row by row over a team. Contract: round_int4.h.
#include "dispatch/lists.h"
#include "formats/rows.h"
#include "gossamer/round_int4.h"

namespace gossamer {
namespace {

int64_t groups_of(const RoundInt4& weight) { return (weight.K + weight.G - 1) / weight.G; }

Int4Row row_of(const RoundInt4& weight, int64_t n) { return {weight.W + n * weight.row_stride, weight.K, weight.G}; }

}  // namespace

void int4_best_scales(const RoundInt4& weight, float* scales) {
    const RoundInt4Kernels& kernels = select_kernels(round_int4_list(), isa_active());
    for_each_row(weight.N, weight.threads, [&](int64_t n) { kernels.best_scales(row_of(weight, n), scales + n * groups_of(weight)); });
}

void int4_codes(const RoundInt4& weight, const float* scales, const uint8_t* zero_points, uint8_t* codes) {
    const RoundInt4Kernels& kernels = select_kernels(round_int4_list(), isa_active());
    const int64_t groups = groups_of(weight), row_bytes = (weight.K + 1) / 2;
    for_each_row(weight.N, weight.threads, [&](int64_t n) {
        kernels.codes(row_of(weight, n), scales + n * groups, zero_points == nullptr ? nullptr : zero_points + n * groups,
                      codes + n * row_bytes);
    });
}

}  // namespace gossamer
