// Bindings of obs.h and gram.h. Pointers arrive as integers from _ops_calibration.py, which has checked the tensors; the GIL is released
// for as long as anything is computed.
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "gossamer/cpu.h"
#include "gossamer/gram.h"
#include "gossamer/obs.h"

namespace py = pybind11;

namespace gossamer {
namespace {

using Address = uintptr_t;

template <class T>
T* pointer(Address address) {
    return reinterpret_cast<T*>(address);
}

// The state of a whole layer, of which blocks of columns are updated.
class ObsColumns {
public:
    ObsColumns(Address W, Address E, Address loss, int64_t rows, Address L, int64_t K) : all_{}, K_(K) {
        if (rows < 1 || rows % kObsRows != 0) {
            throw std::invalid_argument("ObsColumns: rows: got " + std::to_string(rows) + ", wanted a multiple of 32");
        }
        all_.W = pointer<float>(W);
        all_.E = pointer<float>(E);
        all_.loss = pointer<double>(loss);
        all_.L = pointer<const float>(L);
        all_.l_stride = K;
        all_.rows = rows;
    }

    void set_mask(Address keep, int64_t n, int64_t m) {
        if (n < 0 || m < 0 || m > kObsColumns) {
            throw std::invalid_argument("ObsColumns: got " + std::to_string(n) + ":" + std::to_string(m) + ", wanted m <= 128");
        }
        all_.keep = pointer<uint8_t>(keep);
        all_.keep_n = n;
        all_.of_m = m;
    }
    void set_grid(Address codes, Address scales, Address zeros, Address groups) {
        all_.grid.codes = pointer<uint8_t>(codes);
        all_.grid.scales = pointer<const float>(scales);
        all_.grid.zeros = pointer<const float>(zeros);
        all_.grid.groups = pointer<const int32_t>(groups);
    }
    void set_uniform(float lowest, float highest) {
        all_.grid.lowest = lowest;
        all_.grid.highest = highest;
        all_.grid.thresholds = nullptr;
    }
    void set_codebook(Address levels, Address thresholds, int64_t count) {
        if (count < 2 || count > 256) {
            throw std::invalid_argument("ObsColumns: levels: got " + std::to_string(count) + ", wanted 2 to 256");
        }
        all_.grid.levels = pointer<const float>(levels);
        all_.grid.thresholds = pointer<const float>(thresholds);
        all_.grid.count = count;
    }

    void update(int64_t first, int64_t last, int threads) const {
        if (first < 0 || last <= first || last > K_ || last - first > kObsColumns) {
            throw std::invalid_argument("ObsColumns: update: got columns " + std::to_string(first) + " to " + std::to_string(last));
        }
        const py::gil_scoped_release release;
        ObsBlock block = all_;
        block.columns = last - first;
        block.W += first * all_.rows;
        block.E += first * all_.rows;
        block.L += first * (K_ + 1);
        if (block.keep != nullptr) block.keep += first * all_.rows;
        if (block.grid.codes != nullptr) {
            block.grid.codes += first * all_.rows;
            block.grid.groups += first;
        }
        obs_update(block, isa_active(), threads);
    }

private:
    ObsBlock all_;
    int64_t K_;
};

void gram_of(Address x, int x_dtype, int64_t T, int64_t K, int64_t row_stride, Address G, bool bf16, int threads) {
    const py::gil_scoped_release release;
    gram({pointer<const void>(x), static_cast<DType>(x_dtype), T, K, row_stride, pointer<float>(G), bf16 ? SvdLane::bf16 : SvdLane::f32,
          isa_active(), threads});
}

}  // namespace

void bind_obs(py::module_& module) {
    module.def("gram", &gram_of, py::arg("x"), py::arg("x_dtype"), py::arg("T"), py::arg("K"), py::arg("row_stride"), py::arg("G"),
               py::arg("bf16"), py::arg("threads"));
    py::class_<ObsColumns>(module, "ObsColumns")
        .def(py::init<Address, Address, Address, int64_t, Address, int64_t>(), py::arg("W"), py::arg("E"), py::arg("loss"), py::arg("rows"),
             py::arg("L"), py::arg("K"))
        .def("set_mask", &ObsColumns::set_mask, py::arg("keep"), py::arg("n"), py::arg("m"))
        .def("set_grid", &ObsColumns::set_grid, py::arg("codes"), py::arg("scales"), py::arg("zeros"), py::arg("groups"))
        .def("set_uniform", &ObsColumns::set_uniform, py::arg("lowest"), py::arg("highest"))
        .def("set_codebook", &ObsColumns::set_codebook, py::arg("levels"), py::arg("thresholds"), py::arg("count"))
        .def("update", &ObsColumns::update, py::arg("first"), py::arg("last"), py::arg("threads"));
}

}  // namespace gossamer
