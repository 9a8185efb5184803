// Nothing of a packed sparse weight is followed before it has been checked here.
#include "check.h"

#include <stdexcept>
#include <string>

#include "gossamer/spmm.h"

namespace gossamer {
namespace {

[[noreturn]] void fail(const SparseWeight& w, const std::string& what) {
    throw std::invalid_argument("packed weight: " + std::string(name(w.spec.format)) + ", N = " + std::to_string(w.spec.N) +
                                ", K = " + std::to_string(w.spec.K) + ": " + what);
}

// Every offset is the sum of what the masks before it stand for.
void check_offsets(const SparseWeight& w) {
    const SparseLayout& l = w.layout;
    int64_t expected = 0;
    for (int64_t panel = 0; panel < w.panels(); ++panel) {
        for (int64_t tile = 0; tile < l.tiles; ++tile) {
            const int64_t found = w.offsets[panel * l.tiles + tile];
            if (found != expected) {
                fail(w, "tile " + std::to_string(tile) + " of panel " + std::to_string(panel) + " begins at byte " + std::to_string(found) +
                            ", but its masks say " + std::to_string(expected));
            }
            const int64_t first_k = tile * kSparseTileK, last_k = std::min(first_k + kSparseTileK, l.K64);
            const uint8_t* masks = w.masks + panel * l.mask_stride + mask_bytes(w.spec.pattern, first_k);
            expected += value_bytes(l, {w.spec.pattern, masks, nullptr, (last_k - first_k) / l.line_k});
        }
    }
    if (w.value_bytes() != expected) {
        fail(w, "got " + std::to_string(w.value_bytes()) + " bytes of values, but the masks say " + std::to_string(expected));
    }
}

}  // namespace

void check_spec(const SparseSpec& spec) {
    const std::string what = "packed weight: " + std::string(name(spec.format)) + ": ";
    const auto pattern = static_cast<int>(spec.pattern);
    if (pattern >= kSparsePatternCount) throw std::invalid_argument(what + "got pattern " + std::to_string(pattern) + ", wanted 0 to 4");
    if (spec.parts == 0 || spec.parts > (kPartBitmask | kPartSpmm)) {
        throw std::invalid_argument(what + "got parts " + std::to_string(spec.parts) + ", wanted 1 to 3");
    }
    if ((spec.parts & kPartSpmm) != 0 && !spmm_offered(spec)) {
        throw std::invalid_argument(
            what + "has a part for skipping zeros, which only sparse-fp32 and sparse-int8 (per channel, int8 activations) have");
    }
}

void check_parts(SparseWeight& w, const uint8_t* packed) {
    const SparseLayout& l = w.layout;
    const auto needs = [&](int64_t bytes) {
        if (bytes > w.size_bytes) fail(w, "got " + std::to_string(w.size_bytes) + " bytes, wanted at least " + std::to_string(bytes));
    };
    w.scales = packed + l.scales_offset;
    w.init = reinterpret_cast<const int32_t*>(packed + l.init_offset);
    int64_t end = round_up(l.offsets_offset, 64);
    needs(end);
    if (w.nnz < 0 || w.nnz > l.N * l.K) fail(w, "got " + std::to_string(w.nnz) + " values, wanted 0 to N * K");
    if (w.has(kPartBitmask)) {
        needs(l.values_offset);
        w.offsets = reinterpret_cast<const int64_t*>(packed + l.offsets_offset);
        w.masks = packed + l.masks_offset;
        w.values = packed + l.values_offset;
        check_offsets(w);
        end = round_up(l.values_offset + w.value_bytes() + 64, 64);
        needs(end);
    }
    if (w.has(kPartSpmm)) {
        w.spmm = packed + end;
        w.spmm_bytes = w.size_bytes - end;
        spmm_check(w.spec, w.spmm, w.spmm_bytes);
        const int64_t found = spmm_nnz(w.spec, w.spmm);
        if (found != w.nnz)
            fail(w, "got " + std::to_string(w.nnz) + " values, but the part for skipping zeros has " + std::to_string(found));
    } else if (end != w.size_bytes) {
        fail(w, "got " + std::to_string(w.size_bytes) + " bytes, wanted " + std::to_string(end));
    }
}

}  // namespace gossamer
