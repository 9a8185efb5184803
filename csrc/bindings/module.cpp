// gossamer._C: one bind_*.cpp per part of the contract. The types are in python/gossamer/_C.pyi.
#include <pybind11/pybind11.h>

namespace gossamer {
void bind_conv(pybind11::module_& module);
void bind_cpu(pybind11::module_& module);
void bind_embedding(pybind11::module_& module);
void bind_formats(pybind11::module_& module);
void bind_linear(pybind11::module_& module);
void bind_obs(pybind11::module_& module);
void bind_sparse(pybind11::module_& module);
void bind_svd(pybind11::module_& module);
}  // namespace gossamer

PYBIND11_MODULE(_C, module) {
    gossamer::bind_conv(module);
    gossamer::bind_cpu(module);
    gossamer::bind_embedding(module);
    gossamer::bind_formats(module);
    gossamer::bind_linear(module);
    gossamer::bind_obs(module);
    gossamer::bind_sparse(module);
    gossamer::bind_svd(module);
}
