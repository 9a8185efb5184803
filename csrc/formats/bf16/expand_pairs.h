// The kernel of expand.h as a loop that the compiler vectorizes for each <isa>.cpp.
#pragma once
#include <cstdint>
#include <cstring>

#include "expand.h"
#include "gossamer/lane.h"

namespace gossamer {
namespace {

void expand_pairs(const uint16_t* panel, int64_t pairs, float* __restrict out) {
    for (int64_t pair = 0; pair < pairs; ++pair, panel += 2 * kPanelColumns, out += 2 * kPanelColumns) {
        for (int64_t column = 0; column < kPanelColumns; ++column) {
            uint32_t both;
            std::memcpy(&both, panel + 2 * column, sizeof both);
            const uint32_t even = both << 16, odd = both & 0xffff0000;
            std::memcpy(out + column, &even, sizeof even);
            std::memcpy(out + kPanelColumns + column, &odd, sizeof odd);
        }
    }
}

}  // namespace
}  // namespace gossamer
