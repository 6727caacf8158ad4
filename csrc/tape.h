// The tape's inner loops, compiled: see tape.cpp.
#pragma once

#include <functional>

#include "objects.h"

namespace tilegrad::tape {

// Makes the result of a Function's forward of its ctx and its arguments, arrays in the place of tensors.
using Forward = std::function<Ref(PyObject* ctx, PyObject* const* arguments)>;

// Whether an argument is a plain value, or a tensor over a NumPy array that knows all that was recorded on its memory.
bool is_plain(PyObject* argument);

// Whether operations are recorded now, in this thread.
bool is_recording();

// ArrayFunction.apply of plain arguments; `like` is one of their tensors.
Ref apply_plain(PyObject* cls, PyObject* const* arguments, Py_ssize_t count, PyObject* like, bool recording, const Forward& forward);

// walk(roots, keep_graph): autograd._walk into the .grad of the leaves, not recorded.
PyObject* walk(PyObject*, PyObject* const* args, Py_ssize_t);
// backward(tensor, keep_graph): the same from one plain tensor of one element; False, and nothing is done, of others.
PyObject* backward(PyObject*, PyObject* const* args, Py_ssize_t);

// Add functions to a module; false with a Python exception set.
bool add_to(PyObject* module);        // begin_tape, apply, walk and backward
bool add_plain_to(PyObject* module);  // plain.cpp's

}  // namespace tilegrad::tape
