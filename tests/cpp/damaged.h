// Bytes that are not a packed weight, for the view of any format: each must be an error that says what is wrong.
#pragma once
#include <cstddef>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>

#include "check.h"
#include "gossamer/format.h"
#include "guarded.h"

namespace gossamer::test {

// A field of the header overwritten.
template <class Value, class View>
void check_field(const Guarded<uint8_t>& packed, size_t offset, Value value, const std::string& message, const View& view) {
    Guarded<uint8_t> damaged(packed.size());
    std::memcpy(damaged.data(), packed.data(), static_cast<size_t>(packed.size()));
    std::memcpy(damaged.data() + offset, &value, sizeof value);
    check_throws<std::invalid_argument>([&] { view(damaged.data(), damaged.size()); }, message);
}

// `other`: a format that the view does not take.
template <class View>
void check_damaged(const Guarded<uint8_t>& packed, FormatId other, const View& view) {
    view(packed.data(), packed.size());
    check_field(packed, offsetof(PackedHeader, magic), 'g', "do not start with the mark", view);
    check_field(packed, offsetof(PackedHeader, layout), uint32_t{99}, "got layout 99", view);
    check_field(packed, offsetof(PackedHeader, format), other, std::string("got format ") + name(other), view);
    for (const uint32_t format : {uint32_t{0}, static_cast<uint32_t>(kLastFormat) + 1}) {
        check_field(packed, offsetof(PackedHeader, format), format, "got format " + std::to_string(format), view);
    }
    check_field(packed, offsetof(PackedHeader, activations), uint8_t{3}, "got activations 3", view);
    check_field(packed, offsetof(PackedHeader, scale_type), uint8_t{4}, "got scale type 4", view);
    check_field(packed, offsetof(PackedHeader, has_zero_points), uint8_t{2}, "got zero points 2", view);
    constexpr int64_t kLargest = std::numeric_limits<int64_t>::max(), kSmallest = std::numeric_limits<int64_t>::min();
    for (const int64_t size : {int64_t{1000}, int64_t{0}, int64_t{-20}, kLargest, kSmallest}) {
        check_field(packed, offsetof(PackedHeader, N), size, "N", view);
        check_field(packed, offsetof(PackedHeader, K), size, "K", view);
    }
    for (const int64_t bytes : {0, 63, 64}) {
        Guarded<uint8_t> truncated(bytes);
        if (bytes > 0) std::memcpy(truncated.data(), packed.data(), static_cast<size_t>(bytes));
        check_throws<std::invalid_argument>([&] { view(truncated.data(), bytes); }, "got " + std::to_string(bytes) + " bytes");
    }
    for (const int64_t bytes : {packed.size() - 1, packed.size() + 64}) {
        check_throws<std::invalid_argument>([&] { view(packed.data(), bytes); }, "got " + std::to_string(bytes) + " bytes");
    }
    Guarded<uint8_t> moved(packed.size() + 4);
    std::memcpy(moved.data(), packed.data(), static_cast<size_t>(packed.size()));
    check_throws<std::invalid_argument>([&] { view(moved.data(), packed.size()); }, "multiple of 8");
}

}  // namespace gossamer::test
