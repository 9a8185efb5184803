// Entry points: which lane a call takes, and where the rows of a linear layer come from.
#include "gossamer/linear.h"

#include <cstring>
#include <stdexcept>

#include "dispatch/lists.h"
#include "product.h"

namespace gossamer {
namespace {

// The rows of x as they lie in memory.
class MatrixRows final : public RowSource {
public:
    explicit MatrixRows(const LinearCall& call) : call_(call) {}

    void fill(const Target& t) const override {
        const char* x = static_cast<const char*>(call_.x) + t.first_row * call_.x_row_stride * size_bytes(call_.x_dtype);
        const int64_t K = call_.weight.K;
        if (t.lane == Lane::s8) {
            return select_kernels(quantize_list(), call_.isa)
                .run({x, call_.x_dtype, call_.x_row_stride, t.begin, t.end, K, t.panel_rows, static_cast<uint8_t*>(t.panels), t.scale,
                      t.group_k, call_.weight.input_scale});
        }
        const ConvertRows rows{x, call_.x_dtype, call_.x_row_stride, t.begin, t.end, K, t.panel_rows, t.panels};
        if (t.lane == Lane::bf16) return copy_rows_bf16(rows);
        select_kernels(convert_list(), call_.isa).to_f32(rows);
    }
    bool scales_groups() const override { return true; }
    bool fills(Lane lane) const override { return lane != Lane::bf16 || call_.x_dtype == DType::bf16; }

private:
    const LinearCall& call_;
};

// The bf16 lane would round fp32 values.
bool is_wide(const Weight& weight) {
    const auto* sparse = std::get_if<SparseWeight>(&weight.form);
    const auto* low_rank = std::get_if<LowRankWeight>(&weight.form);
    return (sparse != nullptr && sparse->spec.format == FormatId::sparse_f32) || std::holds_alternative<F32Weight>(weight.form) ||
           (low_rank != nullptr && is_wide(*low_rank));
}

}  // namespace

bool is_wide(const LowRankWeight& weight) { return is_wide(*weight.V) || is_wide(*weight.U); }

const char* name(Lane lane) { return lane == Lane::s8 ? "s8" : lane == Lane::bf16 ? "bf16" : "f32"; }

Weight weight_view(const void* packed, int64_t packed_bytes) {
    const PackedHeader header = read_header(packed, packed_bytes);
    const auto make = [&](auto form) {
        check_activations(header);
        return Weight{form, header.activations, header.N, header.K, header.input_scale};
    };
    switch (header.format) {
        case FormatId::int8: return make(int8_view(packed, packed_bytes));
        case FormatId::int4:
        case FormatId::nf4:
        case FormatId::fp4:
        case FormatId::mxfp4: return make(four_bit_view(packed, packed_bytes));
        case FormatId::fp8_e4m3:
        case FormatId::fp8_e5m2: return make(fp8_view(packed, packed_bytes));
        case FormatId::bf16: return make(bf16_view(packed, packed_bytes));
        case FormatId::sparse_int8:
        case FormatId::sparse_int4:
        case FormatId::sparse_bf16:
        case FormatId::sparse_f32: return make(sparse_view(packed, packed_bytes));
        case FormatId::f32: return make(f32_view(packed, packed_bytes));
        case FormatId::low_rank: return make(low_rank_view(packed, packed_bytes));
        case FormatId::sum: return make(sum_view(packed, packed_bytes));
    }
    throw std::invalid_argument("packed weight: got format " + std::to_string(static_cast<uint32_t>(header.format)) +
                                ", which this version does not know");
}

void set_input_scale(void* packed, int64_t packed_bytes, float input_scale) {
    weight_view(packed, packed_bytes);  // checks more than the header
    PackedHeader header = read_header(packed, packed_bytes);
    header.input_scale = input_scale;
    check_activations(header);
    if (header.format == FormatId::sum) {  // its header repeats what that of the base says
        const PackedPart base = read_parts(packed, packed_bytes).first;
        set_input_scale(static_cast<char*>(packed) + base.offset, base.size_bytes, input_scale);
    }
    std::memcpy(packed, &header, sizeof header);
}

Lane lane_of(const Weight& weight, DType x_dtype, Isa isa) {
    if (weight.activations != Activations::exact) return Lane::s8;
    if (const auto* sum = std::get_if<SumWeight>(&weight.form)) return lane_of(*sum->base, x_dtype, isa);
    return x_dtype == DType::bf16 && !is_wide(weight) && find_kernels(bf16_list(), isa) != nullptr ? Lane::bf16 : Lane::f32;
}

void product(const ProductCall& call) {
    if (call.weight.activations == Activations::int8_group && !call.rows.scales_groups()) {
        throw std::invalid_argument("product: weight: got activations int8-group, wanted int8 or exact: the rows have one scale each");
    }
    if (call.M == 0) return;
    if (const auto* low_rank = std::get_if<LowRankWeight>(&call.weight.form)) return product_low_rank(call, *low_rank);
    if (const auto* sum = std::get_if<SumWeight>(&call.weight.form)) return product_sum(call, *sum);
    if (const auto* sparse = std::get_if<SparseWeight>(&call.weight.form)) return product_sparse(call, *sparse);
    product_dense(call);
}

void product_dense(const ProductCall& call) {
    switch (call.lane) {
        case Lane::s8: return product_s8(call);
        case Lane::bf16: return product_bf16(call);
        case Lane::f32: return product_f32(call);
    }
}

void linear(const LinearCall& call) {
    const Lane lane = lane_of(call.weight, call.x_dtype, call.isa);
    product({MatrixRows(call), call.M, call.weight, lane, call.epilogue, call.threads, call.isa, call.path});
}

}  // namespace gossamer
