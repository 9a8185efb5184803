// Bindings of embedding.h. Pointers arrive as integers from _ops_embedding.py, which has checked the tensors; the GIL is released for as
// long as anything is computed.
#include <pybind11/pybind11.h>

#include "gossamer/embedding.h"

namespace py = pybind11;

namespace gossamer {
namespace {

using Address = uintptr_t;

template <class T>
T* at(Address address) {
    return reinterpret_cast<T*>(address);
}

void embedding_from(Address packed, int64_t packed_bytes, Address indices, int64_t count, Address out, int out_dtype, int threads) {
    const Weight weight = weight_view(at<void>(packed), packed_bytes);
    embedding({weight, at<int64_t>(indices), count, at<void>(out), static_cast<DType>(out_dtype), threads});
}

void embedding_bag_from(Address packed, int64_t packed_bytes, Address indices, int64_t count, Address offsets, int64_t bags,
                        Address sample_weights, int mode, int64_t padding_idx, Address out, int out_dtype, int threads) {
    const Weight weight = weight_view(at<void>(packed), packed_bytes);
    embedding_bag({weight, at<int64_t>(indices), count, at<int64_t>(offsets), bags, at<float>(sample_weights), static_cast<BagMode>(mode),
                   padding_idx, at<void>(out), static_cast<DType>(out_dtype), threads});
}

}  // namespace

void bind_embedding(py::module_& module) {
    const auto release = py::call_guard<py::gil_scoped_release>();
    module.def("embedding", &embedding_from, py::arg("packed"), py::arg("packed_bytes"), py::arg("indices"), py::arg("count"),
               py::arg("out"), py::arg("out_dtype"), py::arg("threads"), release);
    module.def("embedding_bag", &embedding_bag_from, py::arg("packed"), py::arg("packed_bytes"), py::arg("indices"), py::arg("count"),
               py::arg("offsets"), py::arg("bags"), py::arg("sample_weights"), py::arg("mode"), py::arg("padding_idx"), py::arg("out"),
               py::arg("out_dtype"), py::arg("threads"), release);
}

}  // namespace gossamer
