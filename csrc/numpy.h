// NumPy's arrays as the kernels' callers see them, and new ones.
#pragma once

#include <Python.h>

#include "arrays.h"

namespace tilegrad {

// Of what is known to be an array; None is none.
cpu::Array array_of(PyObject* object);

// NumPy gives the numbers of other packages' types out at run time.
void know_bfloat16(int number);

}  // namespace tilegrad
