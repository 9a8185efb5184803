// Names of the enums that arrive from Python as strings.
#pragma once
#include <stdexcept>
#include <string>

#include "gossamer/format_sparse.h"
#include "gossamer/linear.h"

namespace gossamer {

// The value of an enum from first to last that has this name.
template <class Enum>
Enum from_name(const char* what, const std::string& wanted, Enum first, Enum last) {
    for (int i = static_cast<int>(first); i <= static_cast<int>(last); ++i) {
        if (wanted == name(static_cast<Enum>(i))) return static_cast<Enum>(i);
    }
    throw std::invalid_argument(std::string(what) + ": unknown name '" + wanted + "'");
}

inline FormatId format_from(const std::string& wanted) { return from_name("format", wanted, FormatId::int8, kLastFormat); }
inline Activations activations_from(const std::string& wanted) {
    return from_name("activations", wanted, Activations::int8, Activations::int8_group);
}
inline ScaleType scale_type_from(const std::string& wanted) { return from_name("scale_type", wanted, ScaleType::f32, ScaleType::e8m0); }
inline SparsePattern pattern_from(const std::string& wanted) {
    return from_name("pattern", wanted, SparsePattern::any, static_cast<SparsePattern>(kSparsePatternCount - 1));
}
inline SparsePath path_from(const std::string& wanted) {
    return from_name("path", wanted, SparsePath::automatic, static_cast<SparsePath>(kSparsePathCount - 1));
}

}  // namespace gossamer
