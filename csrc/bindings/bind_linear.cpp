// Bindings of quantize.h and linear.h. Pointers arrive as integers from _ops.py, which has checked the tensors; the GIL is released for as
// long as anything is computed.
#include <pybind11/pybind11.h>

#include "dispatch/lists.h"
#include "gossamer/linear.h"
#include "names.h"

namespace py = pybind11;

namespace gossamer {
namespace {

using Address = uintptr_t;

template <class T>
T* at(Address address) {
    return reinterpret_cast<T*>(address);
}

DType dtype_of(int code) {
    if (code < 0 || code > 2) throw std::invalid_argument("dtype: got code " + std::to_string(code) + ", wanted 0 to 2");
    return static_cast<DType>(code);
}

Activation activation_of(int code) {
    if (code < 0 || code >= kActivationCount)
        throw std::invalid_argument("activation: got code " + std::to_string(code) + ", wanted 0 to 4");
    return static_cast<Activation>(code);
}

Isa isa_of(const char* name) { return *name == '\0' ? isa_active() : isa_from_name(name); }

struct PackedLinear {
    Weight weight;
    SparsePath path = SparsePath::automatic;

    PackedLinear(Address packed, int64_t packed_bytes) : weight(weight_view(at<void>(packed), packed_bytes)) {}

    void run(Address x, int x_dtype, int64_t M, int64_t x_row_stride, Address bias, int bias_dtype, int activation, Address addend,
             Address out, int out_dtype, int threads, const char* isa) const {
        const int64_t N = weight.N;
        const Epilogue epilogue{
            at<void>(bias), dtype_of(bias_dtype), activation_of(activation), at<float>(addend), N, at<void>(out), dtype_of(out_dtype), N};
        const LinearCall call{at<void>(x), dtype_of(x_dtype), M, x_row_stride, weight, epilogue, threads, isa_of(isa), path};
        const py::gil_scoped_release release;
        linear(call);
    }

    void dequantize(int64_t first_row, int64_t last_row, Address out, int threads) const {
        const py::gil_scoped_release release;
        std::visit([&](const auto& form) { gossamer::dequantize(form, first_row, last_row, at<float>(out), threads); }, weight.form);
    }

    const SparseWeight& sparse() const {
        const auto* sum = std::get_if<SumWeight>(&weight.form);
        const auto* form = std::get_if<SparseWeight>(sum == nullptr ? &weight.form : &sum->base->form);
        if (form == nullptr) throw std::invalid_argument("path: weight: is dense; only sparse weights have paths");
        return *form;
    }

    void set_path(const std::string& wanted) {
        const SparsePath found = path_from(wanted);
        if (found != SparsePath::automatic) sparse();
        path = found;
    }

    const char* path_of(int64_t M, int x_dtype, const char* isa) const {
        const Isa chosen = isa_of(isa);
        return name(sparse_path(sparse(), lane_of(weight, dtype_of(x_dtype), chosen), M, chosen, path));
    }

    void accumulate(Address x, int64_t M, int64_t x_row_stride, Address out, int threads, const char* isa) const {
        const auto* int8 = std::get_if<Int8Weight>(&weight.form);
        if (int8 == nullptr) throw std::invalid_argument("accumulate: weight: only int8 has integer sums of its own");
        const AccumulateCall call{at<int8_t>(x), M, x_row_stride, *int8, at<int64_t>(out), threads, isa_of(isa)};
        const py::gil_scoped_release release;
        gossamer::accumulate(call);
    }
};

void quantize_to_rows(Address x, int x_dtype, int64_t M, int64_t K, int64_t x_row_stride, int64_t group_size, Address values,
                      Address scales, const char* isa, float input_scale) {
    const QuantizeKernels& kernels = select_kernels(quantize_list(), isa_of(isa));
    const DType dtype = dtype_of(x_dtype);
    const py::gil_scoped_release release;
    const int64_t G = group_size == 0 ? padded_k(K) : group_size, groups = (K + G - 1) / G, padded_groups = (padded_k(K) + G - 1) / G;
    // With one row to a panel, a panel is a plain row.
    const auto panels = std::make_unique<uint8_t[]>(static_cast<size_t>(M * padded_k(K)));
    const auto padded_scales = std::make_unique<float[]>(static_cast<size_t>(M * padded_groups));
    kernels.run({at<void>(x), dtype, x_row_stride, 0, M, K, 1, panels.get(), padded_scales.get(), group_size, input_scale});
    for (int64_t m = 0; m < M; ++m) {
        for (int64_t g = 0; g < groups; ++g) at<float>(scales)[m * groups + g] = padded_scales[static_cast<size_t>(m * padded_groups + g)];
        for (int64_t k = 0; k < K; ++k) {
            at<int8_t>(values)[m * K + k] = static_cast<int8_t>(panels[static_cast<size_t>(m * padded_k(K) + k)] - 128);
        }
    }
}

}  // namespace

void bind_linear(py::module_& module) {
    module.def("quantize_rows", &quantize_to_rows, py::arg("x"), py::arg("x_dtype"), py::arg("M"), py::arg("K"), py::arg("x_row_stride"),
               py::arg("group_size"), py::arg("values"), py::arg("scales"), py::arg("isa"), py::arg("input_scale") = 0.0f);
    py::class_<PackedLinear>(module, "PackedLinear")
        .def(py::init<Address, int64_t>(), py::arg("packed"), py::arg("packed_bytes"))
        .def_property_readonly("N", [](const PackedLinear& p) { return p.weight.N; })
        .def_property_readonly("K", [](const PackedLinear& p) { return p.weight.K; })
        .def_property(
            "path", [](const PackedLinear& p) { return name(p.path); }, &PackedLinear::set_path)
        .def("path_of", &PackedLinear::path_of, py::arg("M"), py::arg("x_dtype"), py::arg("isa"))
        .def("dequantize", &PackedLinear::dequantize, py::arg("first_row"), py::arg("last_row"), py::arg("out"), py::arg("threads"))
        .def("accumulate", &PackedLinear::accumulate, py::arg("x"), py::arg("M"), py::arg("x_row_stride"), py::arg("out"),
             py::arg("threads"), py::arg("isa"))
        .def("run", &PackedLinear::run, py::arg("x"), py::arg("x_dtype"), py::arg("M"), py::arg("x_row_stride"), py::arg("bias"),
             py::arg("bias_dtype"), py::arg("activation"), py::arg("addend"), py::arg("out"), py::arg("out_dtype"), py::arg("threads"),
             py::arg("isa") = "");
}

}  // namespace gossamer
