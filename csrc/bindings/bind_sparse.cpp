// Bindings of format_sparse.h: packing. Unpacking is that of every format (bind_formats.cpp). Pointers arrive as integers from
// _ops_packing.py, which has checked the tensors and keeps them alive; the GIL is released for as long as anything is computed.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "gossamer/format_sparse.h"
#include "names.h"

namespace py = pybind11;

namespace gossamer {
namespace {

using Address = uintptr_t;

template <class T>
T* at(Address address) {
    return reinterpret_cast<T*>(address);
}

uint8_t parts_from(const std::vector<std::string>& names) {
    uint8_t parts = 0;
    for (const std::string& part : names) {
        if (part != "bitmask" && part != "spmm") throw std::invalid_argument("parts: unknown name '" + part + "'");
        parts |= part == "bitmask" ? kPartBitmask : kPartSpmm;
    }
    return parts;
}

// Canonical tensors that have been checked; it does not own them.
class SparseSource {
public:
    SparseSource(const std::string& format, int64_t N, int64_t K, int64_t group_size, const std::string& scale_type,
                 const std::string& activations, Address mask, Address values, int64_t value_count, Address scales) {
        const SparseSpec spec{format_from(format), N,           K, group_size, scale_type_from(scale_type), activations_from(activations),
                              SparsePattern::any,  kPartBitmask};
        const py::gil_scoped_release release;
        rows_ = sparse_rows(spec, {at<uint8_t>(mask), at<void>(values), at<void>(scales)}, value_count);
    }

    std::string best() const { return name(best_pattern(rows_)); }

    int64_t packed_bytes(const std::string& pattern, const std::vector<std::string>& parts) const {
        const SparseRows wanted = with(pattern, parts);
        const py::gil_scoped_release release;
        return sparse_packed_bytes(wanted);
    }

    void pack(const std::string& pattern, const std::vector<std::string>& parts, Address packed, int64_t packed_bytes, int threads) const {
        const SparseRows wanted = with(pattern, parts);
        const py::gil_scoped_release release;
        sparse_pack(wanted, at<void>(packed), packed_bytes, threads);
    }

private:
    SparseRows with(const std::string& pattern, const std::vector<std::string>& parts) const {
        SparseRows rows = rows_;
        rows.spec.pattern = pattern_from(pattern);
        rows.spec.parts = parts_from(parts);
        return rows;
    }

    SparseRows rows_;
};

}  // namespace

void bind_sparse(py::module_& module) {
    py::class_<SparseSource>(module, "SparseSource")
        .def(py::init<const std::string&, int64_t, int64_t, int64_t, const std::string&, const std::string&, Address, Address, int64_t,
                      Address>(),
             py::arg("format"), py::arg("N"), py::arg("K"), py::arg("group_size"), py::arg("scale_type"), py::arg("activations"),
             py::arg("mask"), py::arg("values"), py::arg("value_count"), py::arg("scales"))
        .def("best_pattern", &SparseSource::best, py::call_guard<py::gil_scoped_release>())
        .def("packed_bytes", &SparseSource::packed_bytes, py::arg("pattern"), py::arg("parts"))
        .def("pack", &SparseSource::pack, py::arg("pattern"), py::arg("parts"), py::arg("packed"), py::arg("packed_bytes"),
             py::arg("threads"));
}

}  // namespace gossamer
