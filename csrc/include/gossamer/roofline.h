// What this machine can reach: peaks of the multiply instructions and read bandwidth, measured.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace gossamer {

// Those this machine has, of "fma-f32", "vnni-int8", "expand-int8" (sparse lines expanded and multiplied with one row), "avx512-bf16",
// "amx-int8" and "amx-bf16".
std::vector<std::string> peak_instructions();
// Operations per second of all threads together, the best of several slices of time. Throws for an unknown or unavailable instruction.
double peak_ops(const std::string& instruction, int threads, double seconds);
// Bytes per second read by all threads together, each from its own part of one buffer.
double read_bandwidth(int64_t buffer_bytes, int threads, double seconds);

}  // namespace gossamer
