// Bindings of svd.h. Pointers arrive as integers from _ops_svd.py, which has checked the tensors; the GIL is released for as long as
// anything is computed.
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "gossamer/cpu.h"
#include "gossamer/svd.h"

namespace py = pybind11;

namespace gossamer {
namespace {

using Address = uintptr_t;

SvdLane svd_lane(const std::string& name) {
    if (name == "f32") return SvdLane::f32;
    if (name == "bf16") return SvdLane::bf16;
    throw std::invalid_argument("lane: got '" + name + "', wanted 'f32' or 'bf16'");
}

Isa isa_of(const std::string& name) { return name.empty() ? isa_active() : isa_from_name(name); }

struct Passes {
    SvdPass pass;

    Passes(Address W, int w_dtype, int64_t m, int64_t n, int64_t w_row_stride, const std::string& lane, const std::string& isa, int threads)
        : pass{} {
        if (w_dtype < 0 || w_dtype > 2) throw std::invalid_argument("W: dtype: got code " + std::to_string(w_dtype) + ", wanted 0 to 2");
        pass.W = reinterpret_cast<const void*>(W);
        pass.w_dtype = static_cast<DType>(w_dtype);
        pass.m = m;
        pass.n = n;
        pass.w_row_stride = w_row_stride;
        pass.lane = svd_lane(lane);
        pass.isa = isa_of(isa);
        pass.threads = threads;
    }

    // Each factor is an address and a row stride.
    SvdPass with(int64_t l, Address X, int64_t x_row_stride, Address Y, int64_t y_row_stride, Address Z, int64_t z_row_stride) const {
        SvdPass all = pass;
        all.l = l;
        all.X = reinterpret_cast<const float*>(X);
        all.x_row_stride = x_row_stride;
        all.Y = reinterpret_cast<float*>(Y);
        all.y_row_stride = y_row_stride;
        all.Z = reinterpret_cast<float*>(Z);
        all.z_row_stride = z_row_stride;
        return all;
    }
    void sketch(int64_t l, Address X, int64_t x_row_stride, Address Y) const {
        const py::gil_scoped_release release;
        gossamer::sketch(with(l, X, x_row_stride, Y, l, 0, 0));
    }
    void project(int64_t l, Address Y, int64_t y_row_stride, Address Z) const {
        const py::gil_scoped_release release;
        gossamer::project(with(l, 0, 0, Y, y_row_stride, Z, l));
    }
    void power_step(int64_t l, Address X, int64_t x_row_stride, Address Y, Address Z) const {
        const py::gil_scoped_release release;
        gossamer::power_step(with(l, X, x_row_stride, Y, l, Z, l));
    }
};

bool has_lane(const std::string& lane, const std::string& isa) { return svd_has_lane(svd_lane(lane), isa_of(isa)); }

}  // namespace

void bind_svd(py::module_& module) {
    module.def("svd_has_lane", &has_lane, py::arg("lane"), py::arg("isa"));
    py::class_<Passes>(module, "SvdPasses")
        .def(py::init<Address, int, int64_t, int64_t, int64_t, const std::string&, const std::string&, int>(), py::arg("W"),
             py::arg("w_dtype"), py::arg("m"), py::arg("n"), py::arg("w_row_stride"), py::arg("lane"), py::arg("isa"), py::arg("threads"))
        .def("sketch", &Passes::sketch, py::arg("l"), py::arg("X"), py::arg("x_row_stride"), py::arg("Y"))
        .def("project", &Passes::project, py::arg("l"), py::arg("Y"), py::arg("y_row_stride"), py::arg("Z"))
        .def("power_step", &Passes::power_step, py::arg("l"), py::arg("X"), py::arg("x_row_stride"), py::arg("Y"), py::arg("Z"));
}

}  // namespace gossamer
