// Bindings of format.h and of the format_*.h. Pointers arrive as integers from _ops.py, which has checked the tensors; the GIL is released
// for as long as anything is packed or unpacked.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <variant>
#include <vector>

#include "gossamer/linear.h"
#include "gossamer/round_int4.h"
#include "names.h"

namespace py = pybind11;

namespace gossamer {
namespace {

using Address = uintptr_t;

template <class T>
T* at(Address address) {
    return reinterpret_cast<T*>(address);
}

void pack_four_bit(const std::string& format_name, Address codes, Address scales, Address zero_points, int64_t N, int64_t K,
                   int64_t group_size, const std::string& scale_type_name, const std::string& activations, Address packed, int threads) {
    const FormatId format = format_from(format_name);
    const ScaleType scale_type = scale_type_from(scale_type_name);
    const FourBitLayout layout = four_bit_layout(format, N, K, group_size, scale_type, zero_points != 0);
    const FourBitTensors tensors{at<uint8_t>(codes), at<void>(scales), at<uint8_t>(zero_points)};
    four_bit_pack(format, tensors, layout, scale_type, activations_from(activations), at<void>(packed), threads);
}

py::dict codebook_dict(const std::string& format) {
    const Codebook& book = codebook(format_from(format));
    py::dict dict;
    dict["value"] = std::vector<float>(book.value, book.value + 16);
    dict["s8"] = std::vector<int>(book.s8, book.s8 + 16);
    dict["offset"] = book.offset;
    dict["unit"] = book.unit;
    return dict;
}

std::vector<std::string> part_names(const SparseWeight& weight) {
    std::vector<std::string> names;
    if (weight.has(kPartBitmask)) names.emplace_back("bitmask");
    if (weight.has(kPartSpmm)) names.emplace_back("spmm");
    return names;
}

py::dict packed_info(Address packed, int64_t packed_bytes) {
    const Weight weight = weight_view(at<void>(packed), packed_bytes);  // checks more than the header
    const PackedHeader header = read_header(at<void>(packed), packed_bytes);
    if (header.format == FormatId::sum) {  // what its base says, and the rank
        const PackedPart base = read_parts(at<void>(packed), packed_bytes).first;
        py::dict info = packed_info(packed + static_cast<Address>(base.offset), base.size_bytes);
        info["rank"] = header.rank;
        return info;
    }
    py::dict info;
    info["format"] = name(header.format);
    info["N"] = header.N;
    info["K"] = header.K;
    info["group_size"] = header.G;
    info["activations"] = name(header.activations);
    info["scale_type"] = name(header.scale_type);
    info["zero_points"] = header.has_zero_points != 0;
    info["input_scale"] = header.input_scale;
    if (const auto* sparse = std::get_if<SparseWeight>(&weight.form)) {
        info["nnz"] = sparse->nnz;
        info["pattern"] = name(sparse->spec.pattern);
        info["parts"] = part_names(*sparse);
        info["value_bytes"] = sparse->has(kPartBitmask) ? sparse->value_bytes() : 0;
    }
    if (header.format == FormatId::low_rank) info["rank"] = header.rank;
    return info;
}

// Canonical tensors of any format; a format leaves alone what it does not have.
struct Tensors {
    void* values;
    void* scales;
    void* zero_points;
    uint8_t* mask;
};

void unpack_form(const Int8Weight& weight, const Tensors& to, int threads) {
    int8_unpack(weight, static_cast<int8_t*>(to.values), static_cast<float*>(to.scales), threads);
}
void unpack_form(const FourBitWeight& weight, const Tensors& to, int threads) {
    four_bit_unpack(weight, static_cast<uint8_t*>(to.values), to.scales, static_cast<uint8_t*>(to.zero_points), threads);
}
void unpack_form(const Fp8Weight& weight, const Tensors& to, int threads) {
    fp8_unpack(weight, static_cast<uint8_t*>(to.values), static_cast<float*>(to.scales), threads);
}
void unpack_form(const Bf16Weight& weight, const Tensors& to, int threads) {
    bf16_unpack(weight, static_cast<uint16_t*>(to.values), threads);
}
void unpack_form(const F32Weight& weight, const Tensors& to, int threads) { f32_unpack(weight, static_cast<float*>(to.values), threads); }
void unpack_form(const SparseWeight& weight, const Tensors& to, int threads) {
    sparse_unpack(weight, to.mask, to.values, to.scales, threads);
}

[[noreturn]] void refuse_parts() { throw std::invalid_argument("unpack: packed: is made of two weights; unpack its parts"); }
void unpack_form(const LowRankWeight&, const Tensors&, int) { refuse_parts(); }
void unpack_form(const SumWeight&, const Tensors&, int) { refuse_parts(); }

void unpack(Address packed, int64_t packed_bytes, Address values, Address scales, Address zero_points, int threads, Address mask) {
    const Weight weight = weight_view(at<void>(packed), packed_bytes);
    const Tensors tensors{at<void>(values), at<void>(scales), at<void>(zero_points), at<uint8_t>(mask)};
    std::visit([&](const auto& form) { unpack_form(form, tensors, threads); }, weight.form);
}

void bind_int8(py::module_& module) {
    module.def(
        "int8_packed_bytes", [](int64_t N, int64_t K, int64_t group_size) { return int8_layout(N, K, group_size).size_bytes; },
        py::arg("N"), py::arg("K"), py::arg("group_size"));
    module.def(
        "int8_pack",
        [](Address values, Address scales, int64_t N, int64_t K, int64_t group_size, const std::string& activations, Address packed,
           int threads) {
            int8_pack(at<int8_t>(values), at<float>(scales), int8_layout(N, K, group_size), activations_from(activations), at<void>(packed),
                      threads);
        },
        py::arg("values"), py::arg("scales"), py::arg("N"), py::arg("K"), py::arg("group_size"), py::arg("activations"), py::arg("packed"),
        py::arg("threads"), py::call_guard<py::gil_scoped_release>());
}

void bind_four_bit(py::module_& module) {
    module.def(
        "four_bit_packed_bytes",
        [](const std::string& format, int64_t N, int64_t K, int64_t group_size, const std::string& scale_type, bool zero_points) {
            return four_bit_layout(format_from(format), N, K, group_size, scale_type_from(scale_type), zero_points).size_bytes;
        },
        py::arg("format"), py::arg("N"), py::arg("K"), py::arg("group_size"), py::arg("scale_type"), py::arg("zero_points"));
    module.def("four_bit_pack", &pack_four_bit, py::arg("format"), py::arg("codes"), py::arg("scales"), py::arg("zero_points"),
               py::arg("N"), py::arg("K"), py::arg("group_size"), py::arg("scale_type"), py::arg("activations"), py::arg("packed"),
               py::arg("threads"), py::call_guard<py::gil_scoped_release>());
    module.def("codebook", &codebook_dict, py::arg("format"));
    const auto release = py::call_guard<py::gil_scoped_release>();
    module.def(
        "int4_best_scales",
        [](Address W, int64_t N, int64_t K, int64_t row_stride, int64_t group_size, Address scales, int threads) {
            int4_best_scales({at<float>(W), N, K, row_stride, group_size, threads}, at<float>(scales));
        },
        py::arg("W"), py::arg("N"), py::arg("K"), py::arg("row_stride"), py::arg("group_size"), py::arg("scales"), py::arg("threads"),
        release);
    module.def(
        "int4_codes",
        [](Address W, int64_t N, int64_t K, int64_t row_stride, int64_t group_size, Address scales, Address zero_points, Address codes,
           int threads) {
            int4_codes({at<float>(W), N, K, row_stride, group_size, threads}, at<float>(scales), at<uint8_t>(zero_points),
                       at<uint8_t>(codes));
        },
        py::arg("W"), py::arg("N"), py::arg("K"), py::arg("row_stride"), py::arg("group_size"), py::arg("scales"), py::arg("zero_points"),
        py::arg("codes"), py::arg("threads"), release);
}

void bind_fp8(py::module_& module) {
    module.def(
        "fp8_packed_bytes", [](int64_t N, int64_t K, int64_t group_size) { return fp8_layout(N, K, group_size).size_bytes; }, py::arg("N"),
        py::arg("K"), py::arg("group_size"));
    module.def(
        "fp8_pack",
        [](const std::string& format, Address codes, Address scales, int64_t N, int64_t K, int64_t group_size, Address packed,
           int threads) {
            fp8_pack(format_from(format), at<uint8_t>(codes), at<float>(scales), fp8_layout(N, K, group_size), at<void>(packed), threads);
        },
        py::arg("format"), py::arg("codes"), py::arg("scales"), py::arg("N"), py::arg("K"), py::arg("group_size"), py::arg("packed"),
        py::arg("threads"), py::call_guard<py::gil_scoped_release>());
}

void bind_bf16(py::module_& module) {
    module.def("bf16_packed_bytes", [](int64_t N, int64_t K) { return bf16_layout(N, K).size_bytes; }, py::arg("N"), py::arg("K"));
    module.def(
        "bf16_pack",
        [](Address values, int64_t N, int64_t K, Address packed, int threads) {
            bf16_pack(at<uint16_t>(values), bf16_layout(N, K), at<void>(packed), threads);
        },
        py::arg("values"), py::arg("N"), py::arg("K"), py::arg("packed"), py::arg("threads"), py::call_guard<py::gil_scoped_release>());
}

void bind_f32(py::module_& module) {
    module.def("fp32_packed_bytes", [](int64_t N, int64_t K) { return f32_layout(N, K).size_bytes; }, py::arg("N"), py::arg("K"));
    module.def(
        "fp32_pack",
        [](Address values, int64_t N, int64_t K, Address packed, int threads) {
            f32_pack(at<float>(values), f32_layout(N, K), at<void>(packed), threads);
        },
        py::arg("values"), py::arg("N"), py::arg("K"), py::arg("packed"), py::arg("threads"), py::call_guard<py::gil_scoped_release>());
}

// Offset and bytes of each.
std::vector<std::pair<int64_t, int64_t>> packed_parts(Address packed, int64_t packed_bytes) {
    const TwoParts parts = read_parts(at<void>(packed), packed_bytes);
    return {{parts.first.offset, parts.first.size_bytes}, {parts.second.offset, parts.second.size_bytes}};
}

void bind_low_rank(py::module_& module) {
    const auto release = py::call_guard<py::gil_scoped_release>();
    module.def(
        "two_parts_bytes", [](int64_t first_bytes, int64_t second_bytes) { return two_parts(first_bytes, second_bytes).size_bytes; },
        py::arg("first_bytes"), py::arg("second_bytes"));
    module.def("packed_parts", &packed_parts, py::arg("packed"), py::arg("packed_bytes"));
    module.def(
        "low_rank_pack",
        [](Address V, int64_t V_bytes, Address U, int64_t U_bytes, Address packed, int64_t packed_bytes) {
            low_rank_pack({at<void>(V), V_bytes}, {at<void>(U), U_bytes}, at<void>(packed), packed_bytes);
        },
        py::arg("V"), py::arg("V_bytes"), py::arg("U"), py::arg("U_bytes"), py::arg("packed"), py::arg("packed_bytes"), release);
    module.def(
        "sum_pack",
        [](Address base, int64_t base_bytes, Address low_rank, int64_t low_rank_bytes, Address packed, int64_t packed_bytes) {
            sum_pack({at<void>(base), base_bytes}, {at<void>(low_rank), low_rank_bytes}, at<void>(packed), packed_bytes);
        },
        py::arg("base"), py::arg("base_bytes"), py::arg("low_rank"), py::arg("low_rank_bytes"), py::arg("packed"), py::arg("packed_bytes"),
        release);
}

}  // namespace

void bind_formats(py::module_& module) {
    const auto release = py::call_guard<py::gil_scoped_release>();
    module.def("packed_info", &packed_info, py::arg("packed"), py::arg("packed_bytes"));
    module.def(
        "set_input_scale",
        [](Address packed, int64_t packed_bytes, float input_scale) { set_input_scale(at<void>(packed), packed_bytes, input_scale); },
        py::arg("packed"), py::arg("packed_bytes"), py::arg("input_scale"));
    module.def("unpack", &unpack, py::arg("packed"), py::arg("packed_bytes"), py::arg("values"), py::arg("scales"), py::arg("zero_points"),
               py::arg("threads"), py::arg("mask") = 0, release);
    bind_int8(module);
    bind_four_bit(module);
    bind_fp8(module);
    bind_bf16(module);
    bind_f32(module);
    bind_low_rank(module);
}

}  // namespace gossamer
