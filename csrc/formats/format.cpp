// The header of packed weights, and the checks that all formats share. Contract: format.h.
#include "gossamer/format.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cmath>
#include <cstring>
#include <iterator>
#include <limits>
#include <stdexcept>
#include <string>

namespace gossamer {
namespace {

constexpr const char* kFormatNames[] = {"",     "int8",        "int4",        "nf4",         "fp4",         "mxfp4", "fp8_e4m3", "fp8_e5m2",
                                        "bf16", "sparse-int8", "sparse-int4", "sparse-bf16", "sparse-fp32", "fp32",  "low-rank", "sum"};
constexpr const char* kActivationsNames[] = {"int8", "exact", "int8-group"};
constexpr const char* kScaleTypeNames[] = {"float32", "bfloat16", "float16", "e8m0"};

[[noreturn]] void fail(const std::string& what) { throw std::invalid_argument("packed weight: " + what); }

void check_codes(const PackedHeader& header) {
    const auto format = static_cast<uint32_t>(header.format), activations = static_cast<uint32_t>(header.activations),
               scale_type = static_cast<uint32_t>(header.scale_type);
    if (format == 0 || format >= std::size(kFormatNames))
        fail("got format " + std::to_string(format) + ", wanted 1 to " + std::to_string(static_cast<int>(kLastFormat)));
    if (activations >= std::size(kActivationsNames)) fail("got activations " + std::to_string(activations) + ", wanted 0 to 2");
    if (scale_type >= std::size(kScaleTypeNames)) fail("got scale type " + std::to_string(scale_type) + ", wanted 0 to 3");
    if (header.has_zero_points > 1) fail("got zero points " + std::to_string(header.has_zero_points) + ", wanted 0 or 1");
}

bool is_integer(FormatId format) {
    return (format >= FormatId::int8 && format <= FormatId::mxfp4) || format == FormatId::sparse_int8 || format == FormatId::sparse_int4;
}

void check_input_scale(const PackedHeader& header) {
    const float scale = header.input_scale;
    if (scale == 0) return;
    const std::string what = std::string(name(header.format)) + ": input_scale: got " + std::to_string(scale);
    if (!(scale > 0 && std::isfinite(scale))) throw std::invalid_argument(what + ", wanted a finite number above 0, or 0 for none");
    if (header.activations != Activations::int8) {
        throw std::invalid_argument(what + " with activations " + name(header.activations) + ", wanted it with int8 only");
    }
    if (!is_integer(header.format) && header.format != FormatId::sum) throw std::invalid_argument(what + ", wanted none in this format");
}

}  // namespace

const char* name(FormatId format) { return kFormatNames[static_cast<size_t>(format)]; }
const char* name(Activations activations) { return kActivationsNames[static_cast<size_t>(activations)]; }
const char* name(ScaleType scale_type) { return kScaleTypeNames[static_cast<size_t>(scale_type)]; }

PackedHeader read_header(const void* packed, int64_t packed_bytes) {
    PackedHeader header;
    if (packed_bytes < static_cast<int64_t>(sizeof header)) {
        fail("got " + std::to_string(packed_bytes) + " bytes, wanted at least a header of 64");
    }
    std::memcpy(&header, packed, sizeof header);
    if (std::memcmp(header.magic, kPackedMagic, sizeof kPackedMagic) != 0) fail("the bytes do not start with the mark of a packed weight");
    if (header.layout != kPackedLayout) {
        fail("got layout " + std::to_string(header.layout) + ", wanted " + std::to_string(kPackedLayout) +
             ": pack it again with this version");
    }
    check_codes(header);
    if (reinterpret_cast<uintptr_t>(packed) % alignof(PackedHeader) != 0) {
        fail("the bytes start at an address that is not a multiple of 8; copy them");
    }
    return header;
}

PackedHeader make_header(FormatId format, int64_t N, int64_t K, int64_t G, Activations activations) {
    PackedHeader header{};
    std::memcpy(header.magic, kPackedMagic, sizeof kPackedMagic);
    header.layout = kPackedLayout;
    header.format = format;
    header.N = N;
    header.K = K;
    header.G = G;
    header.activations = activations;
    check_activations(header);
    return header;
}

void check_activations(const PackedHeader& header) {
    const bool integer = is_integer(header.format);
    check_input_scale(header);
    if (header.format == FormatId::low_rank || header.format == FormatId::sum) return;  // those of the parts, which say it themselves
    const bool right = header.activations == Activations::exact || (integer && (header.activations == Activations::int8 || header.G != 0));
    if (right) return;
    const char* wanted = integer ? ", wanted int8 or exact: the weight has one scale per channel, so no groups" : ", wanted exact";
    throw std::invalid_argument(std::string(name(header.format)) + ": activations: got " + name(header.activations) + wanted);
}

void check_shape(const char* format, int64_t N, int64_t K) {
    const std::string what = std::string(format) + ": shape: ";
    if (N < 1 || K < 1) {
        throw std::invalid_argument(what + "got N = " + std::to_string(N) + ", K = " + std::to_string(K) + ", wanted both at least 1");
    }
    // N16 is up to 16 N, an element takes up to two bytes, and scales up to as much again.
    constexpr int64_t kMaxElements = std::numeric_limits<int64_t>::max() / 128;
    if (K > kMaxElements - 64 || N > kMaxElements / round_up(K, 64)) throw std::invalid_argument(what + "N * K overflows");
}

void check_rows(const char* function, int64_t first_row, int64_t last_row, int64_t N) {
    if (0 <= first_row && first_row <= last_row && last_row <= N) return;
    throw std::invalid_argument(std::string(function) + ": rows: got [" + std::to_string(first_row) + ", " + std::to_string(last_row) +
                                "), wanted a range in [0, " + std::to_string(N) + ")");
}

void check_format(const PackedHeader& header, bool right, const char* wanted) {
    if (!right) fail(std::string("got format ") + name(header.format) + ", wanted " + wanted);
}

void check_packed_bytes(const PackedHeader& header, int64_t found, int64_t wanted) {
    if (found == wanted) return;
    fail("got " + std::to_string(found) + " bytes, wanted " + std::to_string(wanted) + " for " + name(header.format) +
         ", N = " + std::to_string(header.N) + ", K = " + std::to_string(header.K));
}

char* begin_packed(const PackedHeader& header, void* packed, int64_t packed_bytes) {
    prefer_huge_pages(packed, packed_bytes);
    std::memset(packed, 0, static_cast<size_t>(packed_bytes));
    std::memcpy(packed, &header, sizeof header);
    return static_cast<char*>(packed);
}

void prefer_huge_pages(void* buffer, int64_t size_bytes) {
#if defined(__linux__)
    // A weight of 16 MiB then needs 8 entries of the TLB instead of 4096.
    constexpr uintptr_t kHugePage = uintptr_t{2} << 20;
    const uintptr_t first = (reinterpret_cast<uintptr_t>(buffer) + kHugePage - 1) / kHugePage * kHugePage;
    const uintptr_t last = (reinterpret_cast<uintptr_t>(buffer) + static_cast<uintptr_t>(size_bytes)) / kHugePage * kHugePage;
    if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

}  // namespace gossamer
