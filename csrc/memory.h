// NumPy arrays in memory that was used before.
#pragma once

#include <Python.h>

namespace tilegrad::memory {

// Adds empty and release_memory to a module; false with a Python exception set.
bool add_to(PyObject* module);

}  // namespace tilegrad::memory
