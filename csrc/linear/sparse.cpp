// Which path a product with a sparse weight takes. Contract: linear.h.
#include <stdexcept>
#include <string>

#include "dispatch/lists.h"
#include "gossamer/spmm.h"
#include "product.h"

namespace gossamer {
namespace {

constexpr const char* kPathNames[kSparsePathCount] = {"auto", "gemv", "expand", "spmm"};

// Kernels that multiply this weight as they read it, for at most max_rows rows; 0 rows where there are none.
int64_t gemv_rows(const SparseWeight& w, Lane lane, Isa isa) {
    if (!w.has(kPartBitmask)) return 0;
    if (lane == Lane::s8) {
        const SparseS8Kernels& kernels = select_kernels(sparse_s8_list(), isa);
        const bool int8 = w.spec.format == FormatId::sparse_int8;
        const bool fits = int8 ? w.layout.G == 0 && w.layout.sum_blocks == 1 : w.layout.G != 0 || w.layout.K64 <= kMaxSumK;
        return fits && (int8 ? kernels.run_int8 != nullptr : kernels.run_int4 != nullptr) ? kernels.max_rows : 0;
    }
    const SparseFloatKernels& kernels = select_kernels(sparse_float_list(), isa);
    if (w.spec.format == FormatId::sparse_f32) return kernels.run_f32 != nullptr ? kernels.max_rows : 0;
    if (w.spec.format != FormatId::sparse_bf16) return 0;
    return (lane == Lane::bf16 ? kernels.run_bf16 != nullptr : kernels.run_bf16_f32 != nullptr) ? kernels.max_rows : 0;
}

bool can_skip(const SparseWeight& w, Lane lane) {
    return w.has(kPartSpmm) && lane == (w.spec.format == FormatId::sparse_int8 ? Lane::s8 : Lane::f32);
}

SparsePath best_path(const SparseWeight& w, Lane lane, int64_t M, Isa isa) {
    const bool skip = can_skip(w, lane);
    if (skip && (!w.has(kPartBitmask) || M >= spmm_min_rows(w, isa))) return SparsePath::spmm;
    return M <= gemv_rows(w, lane, isa) ? SparsePath::gemv : SparsePath::expand;
}

}  // namespace

const char* name(SparsePath path) { return kPathNames[static_cast<size_t>(path)]; }

SparsePath sparse_path(const SparseWeight& w, Lane lane, int64_t M, Isa isa, SparsePath wanted) {
    const std::string what = std::string("product: path: got ") + name(wanted) + ", but ";
    switch (wanted) {
        case SparsePath::automatic: return best_path(w, lane, M, isa);
        case SparsePath::gemv:
            if (M <= gemv_rows(w, lane, isa)) return wanted;
            throw std::invalid_argument(what + "it takes at most " + std::to_string(gemv_rows(w, lane, isa)) +
                                        " rows of this weight, got " + std::to_string(M));
        case SparsePath::expand:
            if (w.has(kPartBitmask)) return wanted;
            throw std::invalid_argument(what + "the weight was packed without the part bitmask");
        case SparsePath::spmm: break;
    }
    if (can_skip(w, lane)) return wanted;
    throw std::invalid_argument(what + "the weight was packed without the part spmm, or is not multiplied on its lane");
}

void product_sparse(const ProductCall& call, const SparseWeight& w) {
    switch (sparse_path(w, call.lane, call.M, call.isa, call.path)) {
        case SparsePath::spmm: return product_spmm(call, w);
        case SparsePath::gemv:
            if (call.lane == Lane::s8) return product_sparse_s8_few(call, w, select_kernels(sparse_s8_list(), call.isa));
            return product_sparse_float_few(call, w, select_kernels(sparse_float_list(), call.isa));
        default: return product_dense(call);
    }
}

}  // namespace gossamer
