#pragma once

#include <Python.h>

namespace tilegrad::cublaslt {

// Adds the functions cublaslt_… to a module; false with a Python exception set.
bool add_to(PyObject* module);

}  // namespace tilegrad::cublaslt
