// Integer matrix product in int64.
#include "reference/reference.h"

namespace gossamer::reference {
namespace {

template <class A>
std::vector<int64_t> multiply_as(const A* a, const int8_t* w, int64_t M, int64_t N, int64_t K) {
    std::vector<int64_t> out;
    for (int64_t m = 0; m < M; ++m) {
        for (int64_t n = 0; n < N; ++n) {
            int64_t sum = 0;
            for (int64_t k = 0; k < K; ++k) sum += a[m * K + k] * w[n * K + k];
            out.push_back(sum);
        }
    }
    return out;
}

}  // namespace

std::vector<int64_t> multiply(const uint8_t* a, const int8_t* w, int64_t M, int64_t N, int64_t K) { return multiply_as(a, w, M, N, K); }
std::vector<int64_t> multiply(const int8_t* a, const int8_t* w, int64_t M, int64_t N, int64_t K) { return multiply_as(a, w, M, N, K); }

}  // namespace gossamer::reference
