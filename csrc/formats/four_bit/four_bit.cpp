// Codebooks, packing and unpacking of the 4-bit formats. Contract: format_four_bit.h.
#include <cstring>
#include <stdexcept>
#include <string>

#include "formats/rows.h"
#include "gossamer/format_four_bit.h"
#include "simd/scalar.h"

namespace gossamer {
namespace {

constexpr float kNf4[16] = {-1.0f,
                            -0.6961928009986877f,
                            -0.5250730514526367f,
                            -0.39491748809814453f,
                            -0.28444138169288635f,
                            -0.18477343022823334f,
                            -0.09105003625154495f,
                            0.0f,
                            0.07958029955625534f,
                            0.16093020141124725f,
                            0.24611230194568634f,
                            0.33791524171829224f,
                            0.44070982933044434f,
                            0.5626170039176941f,
                            0.7229568362236023f,
                            1.0f};
constexpr float kE2m1[16] = {0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f, -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f};
constexpr float kInt4[16] = {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7};

constexpr Codebook make_codebook(const float (&values)[16], int steps_per_one, int offset) {
    Codebook book{};
    book.offset = offset;
    book.unit = 1.0f / static_cast<float>(steps_per_one);
    book.finest = 16.0f;
    for (int i = 0; i < 16; ++i) {
        book.value[i] = values[i];
        // The sum is positive, so that cutting it off rounds to nearest.
        book.s8[i] = static_cast<uint8_t>(values[i] * static_cast<float>(steps_per_one) + static_cast<float>(offset) + 0.5f);
        const float magnitude = values[i] < 0 ? -values[i] : values[i];
        if (magnitude > book.largest) book.largest = magnitude;
        for (int j = 0; j < i; ++j) {
            const float distance = values[i] < values[j] ? values[j] - values[i] : values[i] - values[j];
            if (distance > 0 && distance < book.finest) book.finest = distance;
        }
    }
    return book;
}

constexpr Codebook kInt4Book = make_codebook(kInt4, 1, 8);
constexpr Codebook kNf4Book = make_codebook(kNf4, 127, 128);
constexpr Codebook kE2m1Book = make_codebook(kE2m1, 2, 12);

int64_t canonical_scale_bytes(ScaleType type) { return type == ScaleType::f32 ? 4 : type == ScaleType::e8m0 ? 1 : 2; }
int64_t packed_scale_bytes(ScaleType type) { return type == ScaleType::f32 ? 4 : 2; }

// 2^(byte - 127): an exponent alone, but for the subnormal 2^-127 and the NaN.
uint16_t bf16_of_e8m0(uint8_t byte) {
    if (byte == 0) return 0x0040;
    return static_cast<uint16_t>(byte == 255 ? 0x7fc0 : byte << 7);
}
uint8_t e8m0_of_bf16(uint16_t bits) { return static_cast<uint8_t>(bits >> 7); }

// The scale of group g of row n lies at this element.
int64_t scale_index(const FourBitLayout& l, int64_t n, int64_t g) {
    return (n / kPanelColumns * l.packed_groups + g) * kPanelColumns + n % kPanelColumns;
}

float scale_at(const FourBitWeight& weight, int64_t n, int64_t g) {
    const int64_t i = scale_index(weight.layout, n, g);
    if (weight.scale_type == ScaleType::f32) return static_cast<const float*>(weight.scales)[i];
    const uint16_t* bits = static_cast<const uint16_t*>(weight.scales) + i;
    return (weight.scale_type == ScaleType::f16 ? load_f16(bits) : load_bf16(bits)).v;
}

// The code of W[n,k] lies in this byte, and in its high half where k / 4 is odd.
int64_t byte_index(const FourBitLayout& l, int64_t n, int64_t k) {
    return n / kPanelColumns * (l.K64 / 8 * 64) + k / 8 * 64 + n % kPanelColumns * 4 + k % 4;
}

int code_at(const FourBitWeight& weight, int64_t n, int64_t k) {
    const int byte = weight.panels[byte_index(weight.layout, n, k)];
    return k / 4 % 2 == 0 ? byte & 15 : byte >> 4;
}

void pack_codes(const FourBitLayout& l, const uint8_t* codes, int64_t n, uint8_t* panels) {
    for (int64_t k = 0; k < l.K; ++k) {
        const int code = k % 2 == 0 ? codes[k / 2] & 15 : codes[k / 2] >> 4;
        uint8_t& byte = panels[byte_index(l, n, k)];
        byte = static_cast<uint8_t>(byte | (k / 4 % 2 == 0 ? code : code << 4));
    }
}

void pack_scales(const FourBitLayout& l, ScaleType type, const char* scales, int64_t n, char* packed) {
    const int64_t size = canonical_scale_bytes(type), packed_size = packed_scale_bytes(type);
    for (int64_t g = 0; g < l.groups; ++g) {
        const char* from = scales + (n * l.groups + g) * size;
        char* to = packed + scale_index(l, n, g) * packed_size;
        const uint16_t widened = bf16_of_e8m0(static_cast<uint8_t>(*from));
        std::memcpy(to, type == ScaleType::e8m0 ? reinterpret_cast<const char*>(&widened) : from, static_cast<size_t>(packed_size));
    }
}

void unpack_scales(const FourBitWeight& weight, int64_t n, char* scales) {
    const FourBitLayout& l = weight.layout;
    const int64_t size = canonical_scale_bytes(weight.scale_type);
    for (int64_t g = 0; g < l.groups; ++g) {
        const int64_t i = scale_index(l, n, g);
        char* to = scales + (n * l.groups + g) * size;
        if (weight.scale_type == ScaleType::e8m0) {
            *to = static_cast<char>(e8m0_of_bf16(static_cast<const uint16_t*>(weight.scales)[i]));
        } else {
            std::memcpy(to, static_cast<const char*>(weight.scales) + i * size, static_cast<size_t>(size));
        }
    }
}

void check_group_size(FormatId format, int64_t G) {
    const bool power = G == 16 || G == 32 || G == 64 || G == 128 || G == 256;
    const std::string got = std::string(name(format)) + ": group_size: got " + std::to_string(G) + ", wanted ";
    if (format == FormatId::mxfp4 && G != 32) throw std::invalid_argument(got + "32");
    if (G != 0 && !power) throw std::invalid_argument(got + "16, 32, 64, 128, 256, or 0 for per channel");
}

void check_parts(FormatId format, ScaleType scale_type, bool zero_points) {
    const std::string what = std::string(name(format)) + ": ";
    if ((format == FormatId::mxfp4) != (scale_type == ScaleType::e8m0)) {
        const char* wanted = format == FormatId::mxfp4 ? "e8m0" : "float32, bfloat16 or float16";
        throw std::invalid_argument(what + "scale_type: got " + name(scale_type) + ", wanted " + wanted);
    }
    if (zero_points && format != FormatId::int4) throw std::invalid_argument(what + "zero_points: only int4 has them");
}

}  // namespace

const Codebook& codebook(FormatId format) {
    switch (format) {
        case FormatId::int4: return kInt4Book;
        case FormatId::nf4: return kNf4Book;
        case FormatId::fp4:
        case FormatId::mxfp4: return kE2m1Book;
        default: break;
    }
    throw std::invalid_argument(std::string("format: got ") + name(format) + ", wanted int4, nf4, fp4 or mxfp4");
}

FourBitLayout four_bit_layout(FormatId format, int64_t N, int64_t K, int64_t G, ScaleType scale_type, bool zero_points) {
    codebook(format);  // throws
    check_shape(name(format), N, K);
    check_group_size(format, G);
    check_parts(format, scale_type, zero_points);
    FourBitLayout l{};
    l.N = N;
    l.K = K;
    l.G = G;
    l.N16 = round_up(N, kPanelColumns);
    l.K64 = round_up(K, 64);
    l.group_k = G == 0 ? l.K64 : G;
    l.groups = G == 0 ? 1 : (K + G - 1) / G;
    l.packed_groups = (l.K64 + l.group_k - 1) / l.group_k;
    l.scales_offset = static_cast<int64_t>(sizeof(PackedHeader));
    const int64_t scales = l.N16 * l.packed_groups;
    l.zero_points_offset = round_up(l.scales_offset + scales * packed_scale_bytes(scale_type), 64);
    l.panels_offset = zero_points ? round_up(l.zero_points_offset + scales, 64) : l.zero_points_offset;
    l.size_bytes = l.panels_offset + l.N16 * l.K64 / 2;
    return l;
}

FourBitWeight four_bit_view(const void* packed, int64_t packed_bytes) {
    const PackedHeader header = read_header(packed, packed_bytes);
    check_format(header, header.format >= FormatId::int4 && header.format <= FormatId::mxfp4, "int4, nf4, fp4 or mxfp4");
    const bool zero_points = header.has_zero_points != 0;
    const FourBitLayout l = four_bit_layout(header.format, header.N, header.K, header.G, header.scale_type, zero_points);
    check_packed_bytes(header, packed_bytes, l.size_bytes);
    const uint8_t* bytes = static_cast<const uint8_t*>(packed);
    return {l,
            header.format,
            header.scale_type,
            bytes + l.scales_offset,
            zero_points ? bytes + l.zero_points_offset : nullptr,
            bytes + l.panels_offset};
}

void four_bit_pack(FormatId format, const FourBitTensors& tensors, const FourBitLayout& l, ScaleType scale_type, Activations activations,
                   void* packed, int threads) {
    PackedHeader header = make_header(format, l.N, l.K, l.G, activations);
    header.scale_type = scale_type;
    header.has_zero_points = tensors.zero_points != nullptr;
    char* bytes = begin_packed(header, packed, l.size_bytes);
    uint8_t* zero_points = reinterpret_cast<uint8_t*>(bytes + l.zero_points_offset);
    uint8_t* panels = reinterpret_cast<uint8_t*>(bytes + l.panels_offset);
    for_each_row(l.N, threads, [&](int64_t n) {
        pack_codes(l, tensors.codes + n * ((l.K + 1) / 2), n, panels);
        pack_scales(l, scale_type, static_cast<const char*>(tensors.scales), n, bytes + l.scales_offset);
        if (tensors.zero_points == nullptr) return;
        for (int64_t g = 0; g < l.groups; ++g) zero_points[scale_index(l, n, g)] = tensors.zero_points[n * l.groups + g];
    });
}

void four_bit_unpack(const FourBitWeight& weight, uint8_t* codes, void* scales, uint8_t* zero_points, int threads) {
    const FourBitLayout& l = weight.layout;
    for_each_row(l.N, threads, [&](int64_t n) {
        for (int64_t k = 0; k < l.K; k += 2) {
            // Behind an odd K lies a zero of the padding.
            codes[n * ((l.K + 1) / 2) + k / 2] = static_cast<uint8_t>(code_at(weight, n, k) | code_at(weight, n, k + 1) << 4);
        }
        unpack_scales(weight, n, static_cast<char*>(scales));
        if (weight.zero_points == nullptr) return;
        for (int64_t g = 0; g < l.groups; ++g) zero_points[n * l.groups + g] = weight.zero_points[scale_index(l, n, g)];
    });
}

void dequantize(const FourBitWeight& weight, int64_t first_row, int64_t last_row, float* out, int threads) {
    const FourBitLayout& l = weight.layout;
    check_rows("four_bit dequantize", first_row, last_row, l.N);
    const Codebook& book = codebook(weight.format);
    for_each_row(last_row - first_row, threads, [&](int64_t row) {
        const int64_t n = first_row + row;
        for (int64_t k = 0; k < l.K; ++k) {
            const int64_t g = k / l.group_k;
            const int code = code_at(weight, n, k);
            const float value =
                weight.zero_points == nullptr ? book.value[code] : static_cast<float>(code - weight.zero_points[scale_index(l, n, g)]);
            out[row * l.K + k] = value * scale_at(weight, n, g);
        }
    });
}

}  // namespace gossamer
