// Checks of the C++ tests. A failed one is printed with its place and counted; finish() is the exit status. For the main thread only.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <string>

namespace gossamer::test {

inline int64_t checks = 0, failures = 0;

// Exit status that ctest takes for "skipped": this machine cannot run the test.
inline constexpr int kSkipped = 77;

inline void check(bool holds, const std::string& what, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    ++checks;
    if (holds) return;
    ++failures;
    if (failures <= 20) std::fprintf(stderr, "%s:%d: failed: %s\n", file, line, what.c_str());
}

// Bit for bit: `got` and `wanted` are integers, or floats seen as integers.
template <class Got, class Wanted>
void check_equal(const Got* got, const Wanted* wanted, int64_t count, const std::string& what, const char* file = __builtin_FILE(),
                 int line = __builtin_LINE()) {
    int64_t i = 0;
    while (i < count && got[i] == wanted[i]) ++i;
    std::string text = what;
    if (i < count) text += ": [" + std::to_string(i) + "]: got " + std::to_string(got[i]) + ", wanted " + std::to_string(wanted[i]);
    check(i == count, text, file, line);
}

inline void check_near(double got, double wanted, double bound, const std::string& what, const char* file = __builtin_FILE(),
                       int line = __builtin_LINE()) {
    ++checks;
    if (std::fabs(got - wanted) <= bound) return;  // false for NaN
    char text[160];
    std::snprintf(text, sizeof text, ": got %.9g, wanted %.9g, off by %.3g, bound %.3g", got, wanted, std::fabs(got - wanted), bound);
    check(false, what + text, file, line);
}

// `call` must throw an Exception whose message contains `part`.
template <class Exception, class Call>
void check_throws(const Call& call, const std::string& part, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    std::string message = "nothing was thrown";
    bool right = false;
    try {
        call();
    } catch (const Exception& error) {
        message = error.what();
        right = message.find(part) != std::string::npos;
    }
    check(right, "wanted an error with '" + part + "': " + message, file, line);
}

inline int finish() {
    std::printf("%lld checks, %lld failed\n", static_cast<long long>(checks), static_cast<long long>(failures));
    return failures == 0 && checks > 0 ? 0 : 1;
}

}  // namespace gossamer::test
