// NumPy arrays in memory that was used before.
#pragma once

#include <Python.h>

namespace tilegrad::memory {

// A new reference to an array like np.empty's, as large ones in memory that was used before; null with a Python exception set.
PyObject* empty(int dims, const Py_ssize_t* shape, PyObject* dtype);

// Adds empty and release_memory to a module; false with a Python exception set.
bool add_to(PyObject* module);

// The same memory for workspace: null if there is none. Aligned to a cache line.
void* take(size_t bytes);
void give_back(void* block);

}  // namespace tilegrad::memory
