// Bindings of cpu.h and roofline.h.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "gossamer/cpu.h"
#include "gossamer/roofline.h"

namespace py = pybind11;

namespace gossamer {

void bind_cpu(py::module_& module) {
    const auto release = py::call_guard<py::gil_scoped_release>();
    module.def("isa_names", &isa_names);
    module.def("isa_available", [] {
        std::vector<std::string> names;
        for (int i = 0; i < kIsaCount; ++i) {
            if (isa_available(static_cast<Isa>(i))) names.emplace_back(isa_name(static_cast<Isa>(i)));
        }
        return names;
    });
    module.def("isa_active", [] { return std::string(isa_name(isa_active())); });
    module.def("isa_force", [](const std::string& name) { isa_force(name); }, py::arg("name"));
    module.def("cpu_info", &cpu_info);
    module.def("peak_instructions", &peak_instructions);
    module.def("peak_ops", &peak_ops, py::arg("instruction"), py::arg("threads"), py::arg("seconds"), release);
    module.def("read_bandwidth", &read_bandwidth, py::arg("buffer_bytes"), py::arg("threads"), py::arg("seconds"), release);
}

}  // namespace gossamer
