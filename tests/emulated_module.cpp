// The CUDA C++ kernels as an extension of their own, compiled with the emulator: what tilegrad._C.cuda is on a GPU.
#include "cuda/module.h"

static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "emulated_cuda", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};

PyMODINIT_FUNC PyInit_emulated_cuda() {
    PyObject* module = PyModule_Create(&definition);
    return module != nullptr && tilegrad::cuda::add_to(module) ? module : nullptr;
}
