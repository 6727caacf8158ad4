// What Python sees of the CUDA C++ kernels.
#pragma once

#include <Python.h>

namespace tilegrad::cuda {

// Adds the submodule `cuda`; false with a Python exception set.
bool add_to(PyObject* module);

}  // namespace tilegrad::cuda
