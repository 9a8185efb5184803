// The bytes of each strip of a sparse weight, by which threads share it.
#pragma once
#include "gossamer/format_sparse.h"
#include "grid.h"

namespace gossamer {

inline StripBytes strip_bytes(const SparseWeight& weight) {
    const SparseLayout& l = weight.layout;
    constexpr int64_t panels = kStripColumns / kPanelColumns;
    return {weight.offsets, panels * l.tiles, weight.panels() * l.tiles, panels * l.mask_stride};
}

}  // namespace gossamer
