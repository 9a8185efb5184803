// Bindings of conv.h. Pointers arrive as integers from _ops_conv.py, which has checked the tensors; the GIL is released for as long as
// anything is computed.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <stdexcept>
#include <string>

#include "gossamer/conv.h"
#include "gossamer/cpu.h"

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

// As conv.h orders them: batch to dilation_w.
ConvShape shape_of(const std::array<int64_t, 14>& s) {
    return {s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7], s[8], s[9], s[10], s[11], s[12], s[13]};
}

class PackedConv {
public:
    PackedConv(Address packed, int64_t packed_bytes, int64_t groups, bool depthwise)
        : weight_(at<void>(packed), packed_bytes, groups, depthwise) {}

    int64_t N() const { return weight_.N(); }
    int64_t K() const { return weight_.K(); }

    void run(Address x, int x_dtype, const std::array<int64_t, 14>& shape, float input_scale, Address bias, int bias_dtype, Address out,
             int out_dtype, int threads, const char* isa) const {
        const Isa chosen = *isa == '\0' ? isa_active() : isa_from_name(isa);
        const ConvCall call{at<void>(x),          dtype_of(x_dtype), shape_of(shape),     weight_, input_scale, at<void>(bias),
                            dtype_of(bias_dtype), at<void>(out),     dtype_of(out_dtype), threads, chosen};
        const py::gil_scoped_release release;
        conv2d(call);
    }

private:
    ConvWeight weight_;
};

}  // namespace

void bind_conv(py::module_& module) {
    py::class_<PackedConv>(module, "PackedConv")
        .def(py::init<Address, int64_t, int64_t, bool>(), py::arg("packed"), py::arg("packed_bytes"), py::arg("groups"),
             py::arg("depthwise"))
        .def_property_readonly("N", &PackedConv::N)
        .def_property_readonly("K", &PackedConv::K)
        .def("run", &PackedConv::run, py::arg("x"), py::arg("x_dtype"), py::arg("shape"), py::arg("input_scale"), py::arg("bias"),
             py::arg("bias_dtype"), py::arg("out"), py::arg("out_dtype"), py::arg("threads"), py::arg("isa") = "");
}

}  // namespace gossamer
