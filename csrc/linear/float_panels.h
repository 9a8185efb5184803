// Weights as panels of the float lanes: expanded, or as they are.
#pragma once
#include "gossamer/bf16.h"
#include "gossamer/f32.h"
#include "gossamer/linear.h"

namespace gossamer {
namespace {

void expand(const auto& weight, const PanelRange& range, Isa isa, float* out) { expand_f32(weight, range, isa, out); }
void expand(const auto& weight, const PanelRange& range, Isa isa, uint16_t* out) { expand_bf16(weight, range, isa, out); }

// The panels of a weight that need no expansion, or null.
const uint16_t* panels_in_place(const auto& weight, const Bf16Block*) { return bf16_panels(weight); }
const float* panels_in_place(const auto&, const F32Block*) { return nullptr; }
inline const float* panels_in_place(const F32Weight& weight, const F32Block*) { return weight.panels; }

}  // namespace
}  // namespace gossamer
