// The same numbers on every machine and in every run.
#pragma once
#include <cmath>
#include <cstdint>

namespace gossamer::test {

class Random {
public:
    explicit Random(uint64_t seed) : state_(seed) {}
    // splitmix64
    uint64_t bits() {
        uint64_t z = (state_ += 0x9e3779b97f4a7c15);
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
        z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
        return z ^ (z >> 31);
    }
    int64_t integer(int64_t first, int64_t last) { return first + static_cast<int64_t>(bits() % static_cast<uint64_t>(last - first + 1)); }
    // In [-1, 1).
    double uniform() { return std::ldexp(static_cast<double>(bits() >> 11), -52) - 1.0; }

private:
    uint64_t state_;
};

}  // namespace gossamer::test
