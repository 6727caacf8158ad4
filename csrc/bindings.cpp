// The module tilegrad._C: the only file that includes pybind11. Signatures for people are in engine/_C.pyi.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "cpu/pool.h"
#include "cuda/cublaslt_module.h"
#ifdef TILEGRAD_CUDA
#include "cuda/module.h"
#endif
#include "memory.h"
#include "numpy.h"
#include "operations.h"
#include "tape.h"

namespace py = pybind11;

namespace tilegrad::cpu {

Unlocked::Unlocked() : state_(PyEval_SaveThread()) {}
Unlocked::~Unlocked() { PyEval_RestoreThread(static_cast<PyThreadState*>(state_)); }

}  // namespace tilegrad::cpu

namespace pybind11::detail {

template <> struct type_caster<tilegrad::cpu::Array> {
    PYBIND11_TYPE_CASTER(tilegrad::cpu::Array, const_name("numpy.ndarray | None"));

    bool load(handle source, bool) {
        if (!source.is_none() && !isinstance<array>(source)) return false;
        value = tilegrad::array_of(source.ptr());
        return true;
    }
};

}  // namespace pybind11::detail

namespace tilegrad::cpu {
namespace {

// --- optimisers ------------------------------------------------------------------------------------------------------

// Of tuples (value, grad, first, second, largest, step); nothing if there are arrays of another library among them.
std::vector<Updated> parameters_of(const py::list& tuples) {
    std::vector<Updated> found(tuples.size());
    for (size_t i = 0; i < found.size(); i++) {
        py::tuple tuple = py::reinterpret_borrow<py::tuple>(tuples[i]);
        for (size_t j = 0; j < 5; j++) {
            py::handle object = tuple[j];
            if (object.is_none()) continue;
            if (!py::isinstance<py::array>(object)) return {};
            found[i].arrays[j] = array_of(object.ptr());
        }
        found[i].step = py::cast<int64_t>(tuple[5]);
    }
    return found;
}

bool sgd(const py::list& parameters, double lr, double momentum, double dampening, double weight_decay, bool nesterov, bool maximize) {
    return run_sgd(parameters_of(parameters), {lr, momentum, dampening, weight_decay, nesterov, maximize});
}

bool adam(const py::list& parameters, double lr, double beta1, double beta2, double eps, double weight_decay, bool decoupled,
          bool maximize) {
    return run_adam(parameters_of(parameters), {lr, beta1, beta2, eps, weight_decay, decoupled, maximize});
}

}  // namespace
}  // namespace tilegrad::cpu

PYBIND11_MODULE(_C, m) {
    using namespace tilegrad::cpu;
    for (auto add : {tilegrad::tape::add_to, tilegrad::tape::add_plain_to, tilegrad::memory::add_to, tilegrad::cublaslt::add_to})
        if (!add(m.ptr())) throw py::error_already_set();
#ifdef TILEGRAD_CUDA  // what csrc/cuda was compiled for
    if (!tilegrad::cuda::add_to(m.ptr())) throw py::error_already_set();
    m.attr("cuda_architectures") = py::make_tuple(TILEGRAD_CUDA);
#else
    m.attr("cuda_architectures") = py::tuple();
#endif
    m.doc() = "The compiled kernels of tilegrad, for the use of tilegrad.cpu.";
    py::enum_<Reduction>(m, "Reduction").value("none", Reduction::none).value("sum", Reduction::sum).value("mean", Reduction::mean);
    py::class_<LossArguments>(m, "LossArguments")
        .def(py::init<Reduction, int64_t, double, double, double, double, double>(), py::arg("reduction"), py::arg("ignore_index"),
             py::arg("label_smoothing"), py::arg("z_loss"), py::arg("softcap"), py::arg("by_share") = -1.0, py::arg("by_count") = -1.0);
    m.def("know_bfloat16", [](const py::dtype& of) { tilegrad::know_bfloat16(of.num()); }, py::arg("dtype"));
    m.def("isa", [] { return std::string(kernels().name); }, "The instruction set that the kernels use here.");
    m.def("num_threads", &num_threads);
    m.def("set_num_threads", &set_num_threads, py::arg("threads"));  // at least 1
    m.def("softmax", &run_softmax, py::arg("x"), py::arg("y"), py::arg("axis"), py::arg("log"), py::arg("out"));
    m.def("cross_entropy", &run_cross_entropy);
    m.def("cross_entropy_backward", &run_cross_entropy_backward);
    m.def("multiplies_bfloat16", &multiplies_bfloat16);
    m.def("product", &run_product);
    m.def("epilogue", &run_epilogue);
    m.def("epilogue_backward", &run_epilogue_backward);
    m.def("first_bad_index", &first_bad_index);
    m.def("small_linear", &run_small_linear);
    m.def("small_linear_backward", &run_small_linear_backward);
    m.def("activation", &run_activation);
    m.def("activation_backward", &run_activation_backward);
    m.def("convert", &run_convert);
    m.def("scale", &run_scale);
    m.def("sgd", &sgd);
    m.def("adam", &adam);
}
