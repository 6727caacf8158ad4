// The tape's inner loops, compiled: see tape.cpp.
#pragma once

#include <Python.h>

namespace tilegrad::tape {

// Adds begin_tape, apply and walk to a module; false with a Python exception set.
bool add_to(PyObject* module);

}  // namespace tilegrad::tape
