// Bindings of obs.h, gram.h and column_stats.h. Pointers arrive as integers from _ops_calibration.py, which has checked the tensors; the
// GIL is released for as long as anything is computed.
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "gossamer/column_stats.h"
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

void check_block(const char* what, int64_t first, int64_t last, int64_t K) {
    if (first < 0 || last <= first || last > K || last - first > kObsColumns) {
        throw std::invalid_argument(std::string(what) + ": got columns " + std::to_string(first) + " to " + std::to_string(last));
    }
}

void check_rows(const char* what, int64_t rows) {
    if (rows < 1 || rows % kObsRows != 0) {
        throw std::invalid_argument(std::string(what) + ": rows: got " + std::to_string(rows) + ", wanted a multiple of 32");
    }
}

// What the weights of a whole layer may be rounded to.
class ObsRounding {
public:
    void set_grid(Address codes, Address scales, Address zeros, Address groups) {
        grid_.codes = pointer<uint8_t>(codes);
        grid_.scales = pointer<const float>(scales);
        grid_.zeros = pointer<const float>(zeros);
        grid_.groups = pointer<const int32_t>(groups);
    }
    void set_uniform(float lowest, float highest) {
        grid_.lowest = lowest;
        grid_.highest = highest;
        grid_.thresholds = nullptr;
    }
    void set_codebook(Address levels, Address thresholds, int64_t count) {
        if (count < 2 || count > 256) {
            throw std::invalid_argument("ObsRounding: levels: got " + std::to_string(count) + ", wanted 2 to 256");
        }
        grid_.levels = pointer<const float>(levels);
        grid_.thresholds = pointer<const float>(thresholds);
        grid_.count = count;
    }

protected:
    // Of a block of columns.
    ObsGrid grid(int64_t first, int64_t rows) const {
        ObsGrid part = grid_;
        if (part.codes != nullptr) {
            part.codes += first * rows;
            part.groups += first;
        }
        return part;
    }

private:
    ObsGrid grid_{};
};

// The state of the update of a whole layer.
class ObsColumns : public ObsRounding {
public:
    ObsColumns(Address W, Address E, Address loss, int64_t rows, Address L, int64_t K) : all_{}, K_(K) {
        check_rows("ObsColumns", rows);
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
    void update(int64_t first, int64_t last, int threads) const {
        check_block("ObsColumns: update", first, last, K_);
        const py::gil_scoped_release release;
        ObsBlock block = all_;
        block.columns = last - first;
        block.W += first * all_.rows;
        block.E += first * all_.rows;
        block.L += first * (K_ + 1);
        if (block.keep != nullptr) block.keep += first * all_.rows;
        block.grid = grid(first, all_.rows);
        obs_update(block, isa_active(), threads);
    }

private:
    ObsBlock all_;
    int64_t K_;
};

// The state of the descent of a whole layer.
class ObsDescent : public ObsRounding {
public:
    ObsDescent(Address E, Address levels, Address keep, int64_t rows, Address H, int64_t K) : all_{}, K_(K) {
        check_rows("ObsDescent", rows);
        all_.E = pointer<float>(E);
        all_.levels = pointer<float>(levels);
        all_.keep = pointer<const uint8_t>(keep);
        all_.H = pointer<const float>(H);
        all_.h_stride = K;
        all_.rows = rows;
    }

    void descend(Address G, int64_t first, int64_t last, int threads) const {
        check_block("ObsDescent: descend", first, last, K_);
        const py::gil_scoped_release release;
        DescentBlock block = all_;
        block.columns = last - first;
        block.G = pointer<const float>(G);
        block.E += first * all_.rows;
        block.levels += first * all_.rows;
        block.H += first * (K_ + 1);
        if (block.keep != nullptr) block.keep += first * all_.rows;
        block.grid = grid(first, all_.rows);
        obs_descend(block, isa_active(), threads);
    }

private:
    DescentBlock all_;
    int64_t K_;
};

void gram_of(Address x, int x_dtype, int64_t T, int64_t K, int64_t row_stride, Address G, bool bf16, int threads) {
    const py::gil_scoped_release release;
    gram({pointer<const void>(x), static_cast<DType>(x_dtype), T, K, row_stride, pointer<float>(G), bf16 ? SvdLane::bf16 : SvdLane::f32,
          isa_active(), threads});
}

// The four that are added to are rows of one array: sum and squares of fp64, low and high of fp32.
void add_columns(Address x, int x_dtype, int64_t M, int64_t K, int64_t row_stride, Address sums, Address bounds, int threads) {
    const py::gil_scoped_release release;
    add_column_stats({pointer<const void>(x), static_cast<DType>(x_dtype), M, K, row_stride, pointer<double>(sums),
                      pointer<double>(sums) + K, pointer<float>(bounds), pointer<float>(bounds) + K},
                     isa_active(), threads);
}

}  // namespace

void bind_obs(py::module_& module) {
    module.def("gram", &gram_of, py::arg("x"), py::arg("x_dtype"), py::arg("T"), py::arg("K"), py::arg("row_stride"), py::arg("G"),
               py::arg("bf16"), py::arg("threads"));
    module.def("add_column_stats", &add_columns, py::arg("x"), py::arg("x_dtype"), py::arg("M"), py::arg("K"), py::arg("row_stride"),
               py::arg("sums"), py::arg("bounds"), py::arg("threads"));
    py::class_<ObsRounding>(module, "ObsRounding")
        .def("set_grid", &ObsRounding::set_grid, py::arg("codes"), py::arg("scales"), py::arg("zeros"), py::arg("groups"))
        .def("set_uniform", &ObsRounding::set_uniform, py::arg("lowest"), py::arg("highest"))
        .def("set_codebook", &ObsRounding::set_codebook, py::arg("levels"), py::arg("thresholds"), py::arg("count"));
    py::class_<ObsColumns, ObsRounding>(module, "ObsColumns")
        .def(py::init<Address, Address, Address, int64_t, Address, int64_t>(), py::arg("W"), py::arg("E"), py::arg("loss"), py::arg("rows"),
             py::arg("L"), py::arg("K"))
        .def("set_mask", &ObsColumns::set_mask, py::arg("keep"), py::arg("n"), py::arg("m"))
        .def("update", &ObsColumns::update, py::arg("first"), py::arg("last"), py::arg("threads"));
    py::class_<ObsDescent, ObsRounding>(module, "ObsDescent")
        .def(py::init<Address, Address, Address, int64_t, Address, int64_t>(), py::arg("E"), py::arg("levels"), py::arg("keep"),
             py::arg("rows"), py::arg("H"), py::arg("K"))
        .def("descend", &ObsDescent::descend, py::arg("G"), py::arg("first"), py::arg("last"), py::arg("threads"));
}

}  // namespace gossamer
