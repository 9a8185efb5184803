// The kernels of round_int4.h, written once over the vector type of simd/<isa>.h; each <isa>.cpp includes that, then this.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>

#include "gossamer/round_int4.h"

namespace gossamer {
namespace {

constexpr float kLowest = -8.0f, kHighest = 7.0f;
constexpr int kCandidates = 5;
constexpr float kShares[kCandidates] = {1.0f, 0.9f, 0.8f, 0.7f, 0.6f};
constexpr int64_t kLanes = 16;
constexpr int64_t kVectors = kLanes / Vec::width;
constexpr uint32_t kInfinityBits = 0x7f800000;

// Calls body(pointer to 16 values) along a group; what is missing of the last 16 is zero, and counts as nothing.
template <class Body>
inline void for_each_line(const float* w, int64_t count, const Body& body) {
    int64_t k = 0;
    for (; k + kLanes <= count; k += kLanes) body(w + k);
    if (k == count) return;
    float tail[kLanes] = {};
    std::memcpy(tail, w + k, static_cast<size_t>(count - k) * sizeof(float));
    body(tail);
}

inline float sum_lanes(const Vec (&sums)[kVectors]) {
    float lanes[kLanes];
    for (int64_t v = 0; v < kVectors; ++v) store(lanes + v * Vec::width, sums[v]);
    for (int64_t half = kLanes / 2; half > 0; half /= 2) {
        for (int64_t i = 0; i < half; ++i) lanes[i] += lanes[i + half];
    }
    return lanes[0];
}

// The entry of largest magnitude over -8; NaN where one is not finite.
inline float whole_scale(const float* w, int64_t count) {
    AbsMax largest;
    Vec low = broadcast(0.0f), high = broadcast(0.0f);
    for_each_line(w, count, [&](const float* line) {
        for (int64_t v = 0; v < kVectors; ++v) {
            const Vec x = load(line + v * Vec::width);
            update(largest, x);
            low = minimum(low, x);
            high = maximum(high, x);
        }
    });
    if (reduce(largest) >= kInfinityBits) return __builtin_nanf("");
    float lows[Vec::width], highs[Vec::width];
    store(lows, low);
    store(highs, high);
    const float smallest = *std::min_element(lows, lows + Vec::width), greatest = *std::max_element(highs, highs + Vec::width);
    return (-smallest > greatest ? smallest : greatest) / kLowest;
}

inline Vec levels_of(Vec x, Vec scale) { return minimum(maximum(round_even(x / scale), broadcast(kLowest)), broadcast(kHighest)); }

// All candidates in one pass: a line is read once, and five chains of divisions run side by side.
inline float best_scale(const float* w, int64_t count) {
    const float whole = whole_scale(w, count);
    if (whole == 0.0f || whole != whole) return whole;
    float scales[kCandidates];
    Vec sums[kCandidates][kVectors];
    for (int c = 0; c < kCandidates; ++c) {
        scales[c] = whole * kShares[c];
        if (scales[c] == 0.0f) scales[c] = 1.0f;  // underflow
        for (Vec& sum : sums[c]) sum = broadcast(0.0f);
    }
    for_each_line(w, count, [&](const float* line) {
        for (int64_t v = 0; v < kVectors; ++v) {
            const Vec x = load(line + v * Vec::width);
            for (int c = 0; c < kCandidates; ++c) {
                const Vec scale = broadcast(scales[c]), error = levels_of(x, scale) * scale - x;
                sums[c][v] = multiply_add(error * error, absolute(error), sums[c][v]);
            }
        }
    });
    int best = 0;
    float smallest = sum_lanes(sums[0]);
    for (int c = 1; c < kCandidates; ++c) {
        const float error = sum_lanes(sums[c]);
        if (error < smallest) {
            smallest = error;
            best = c;
        }
    }
    return whole * kShares[best];
}

void best_scales(const Int4Row& row, float* scales) {
    for (int64_t k = 0; k < row.K; k += row.G) *scales++ = best_scale(row.w + k, std::min(row.G, row.K - k));
}

// One row: the codes of its groups as bytes, from k = first_k on, then two to a byte. first_k is even: groups are, but for the last.
void codes(const Int4Row& row, const float* scales, const uint8_t* zero_points, uint8_t* out) {
    constexpr int64_t kBytes = 256;
    uint8_t bytes[kBytes + kLanes];
    for (int64_t g = 0; g * row.G < row.K; ++g) {
        const Vec scale = broadcast(scales[g] == 0.0f ? 1.0f : scales[g]);
        const Vec zero_point = broadcast(zero_points == nullptr ? -kLowest : static_cast<float>(zero_points[g]));
        const int64_t end = std::min((g + 1) * row.G, row.K);
        for (int64_t k = g * row.G; k < end; k += kBytes) {
            const int64_t count = std::min(kBytes, end - k);
            uint8_t* to = bytes;
            for_each_line(row.w + k, count, [&](const float* line) {
                for (int64_t v = 0; v < kVectors; ++v, to += Vec::width) {
                    const Vec level = round_even(load(line + v * Vec::width) / scale) + zero_point;
                    store_biased_u8(to, minimum(maximum(level, broadcast(0.0f)), broadcast(15.0f)));
                }
            });
            if (count % 2 != 0) bytes[count] = 0;
            // 128 was added, which the mask and the shift drop.
            for (int64_t i = 0; i < (count + 1) / 2; ++i) {
                out[k / 2 + i] = static_cast<uint8_t>((bytes[2 * i] & 15) | (bytes[2 * i + 1] << 4));
            }
        }
    }
}

}  // namespace
}  // namespace gossamer
