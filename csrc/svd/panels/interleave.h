// A line of B, lane bf16, of two rows of 16 columns: the first in the low halves of the words. interleave_avx512.h defines the same name.
#pragma once
#include <cstdint>
#include <cstring>

namespace gossamer {
namespace {

inline void interleave(const uint16_t* low, const uint16_t* high, uint16_t* line) {
    uint32_t words[16];
    for (int i = 0; i < 16; ++i) words[i] = low[i] | static_cast<uint32_t>(high[i]) << 16;
    std::memcpy(line, words, sizeof words);
}

}  // namespace
}  // namespace gossamer
