// Which type's part "spmm" a weight has. Contract: spmm.h.
#include "gossamer/spmm.h"

#include "f32/part.h"
#include "s8/part.h"

namespace gossamer {

bool spmm_offered(const SparseSpec& spec) {
    return spec.format == FormatId::sparse_f32 ||
           (spec.format == FormatId::sparse_int8 && spec.G == 0 && spec.activations == Activations::int8);
}

int64_t spmm_bytes(const SparseRows& rows) {
    return rows.spec.format == FormatId::sparse_f32 ? spmm_f32::bytes(rows) : spmm_s8::bytes(rows);
}

void spmm_pack(const SparseRows& rows, uint8_t* part, int threads) {
    rows.spec.format == FormatId::sparse_f32 ? spmm_f32::pack(rows, part, threads) : spmm_s8::pack(rows, part, threads);
}

void spmm_check(const SparseSpec& spec, const uint8_t* part, int64_t part_bytes) {
    spec.format == FormatId::sparse_f32 ? spmm_f32::check(spec, part, part_bytes) : spmm_s8::check(spec, part, part_bytes);
}

int64_t spmm_nnz(const SparseSpec& spec, const uint8_t* part) {
    return spec.format == FormatId::sparse_f32 ? spmm_f32::nnz(spec, part) : spmm_s8::nnz(spec, part);
}

void spmm_unpack(const SparseSpec& spec, const uint8_t* part, uint8_t* mask, void* values) {
    spec.format == FormatId::sparse_f32 ? spmm_f32::unpack(spec, part, mask, values) : spmm_s8::unpack(spec, part, mask, values);
}

void spmm_values(const SparseSpec& spec, const uint8_t* part, int64_t first_row, int64_t last_row, float* out) {
    spec.format == FormatId::sparse_f32 ? spmm_f32::values(spec, part, first_row, last_row, out)
                                        : spmm_s8::values(spec, part, first_row, last_row, out);
}

int64_t spmm_min_rows(const SparseWeight& weight, Isa isa) {
    return weight.spec.format == FormatId::sparse_f32 ? spmm_f32::min_rows(weight, isa) : spmm_s8::min_rows(weight, isa);
}

void product_spmm(const ProductCall& call, const SparseWeight& weight) {
    weight.spec.format == FormatId::sparse_f32 ? spmm_f32::product(call, weight) : spmm_s8::product(call, weight);
}

}  // namespace gossamer
