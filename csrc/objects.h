// Python's objects as the tape sees them: references, tensors and NumPy's arrays, read where they keep what they have.
#pragma once

#include <Python.h>

#include <exception>
#include <new>
#include <stdexcept>
#include <utility>

namespace tilegrad::tape {

// --- Python's objects ------------------------------------------------------------------------------------------------

struct Raised {};  // a Python exception is set

class Ref {  // a reference of our own
  public:
    Ref() = default;
    explicit Ref(PyObject* owned) : object_(owned) {}
    Ref(Ref&& other) noexcept : object_(std::exchange(other.object_, nullptr)) {}
    Ref& operator=(Ref&& other) noexcept {
        std::swap(object_, other.object_);
        return *this;
    }
    ~Ref() { Py_XDECREF(object_); }
    static Ref to(PyObject* borrowed) { return Ref(Py_NewRef(borrowed)); }

    operator PyObject*() const { return object_; }
    PyObject* release() { return std::exchange(object_, nullptr); }

  private:
    PyObject* object_ = nullptr;
};

inline Ref checked(PyObject* made) {
    if (!made) throw Raised{};
    return Ref(made);
}

inline void check(int result) {
    if (result < 0) throw Raised{};
}

inline Ref attribute(PyObject* of, PyObject* name) { return checked(PyObject_GetAttr(of, name)); }
inline void set_attribute(PyObject* of, PyObject* name, PyObject* value) { check(PyObject_SetAttr(of, name, value)); }

inline int64_t integer(PyObject* object) {
    long long value = PyLong_AsLongLong(object);
    if (value == -1 && PyErr_Occurred()) throw Raised{};
    return value;
}

template <class... Args> Ref call(PyObject* function, Args... args) {
    PyObject* list[] = {args...};
    return checked(PyObject_Vectorcall(function, list, sizeof...(args), nullptr));
}

// A function of (arguments, their number) as an entry of PyMethodDef with METH_FASTCALL takes it.
inline PyCFunction fastcall(PyObject* (*function)(PyObject*, PyObject* const*, Py_ssize_t)) {
    return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

template <class F> PyObject* guarded(F f) {
    try {
        return f();
    } catch (const Raised&) {  // all is said
    } catch (const std::bad_alloc& error) {
        PyErr_SetString(PyExc_MemoryError, error.what());  // the kernels say how many bytes there were not
    } catch (const std::runtime_error& error) {  // the machine's fault
        PyErr_SetString(PyExc_RuntimeError, error.what());
    } catch (const std::exception& error) {
        PyErr_SetString(PyExc_ValueError, error.what());
    }
    return nullptr;
}

// The beginning of every NumPy array, the same since NumPy 1.
struct NumpyArray {
    PyObject_HEAD
    char* data;
    int ndim;
    Py_ssize_t* shape;
    Py_ssize_t* strides;
    PyObject* base;
    PyObject* dtype;
    int flags;

    static constexpr int C_CONTIGUOUS = 1;

    Py_ssize_t size() const {
        Py_ssize_t count = 1;
        for (int i = 0; i < ndim; i++) count *= shape[i];
        return count;
    }
};

// --- what the engine tells at its start ------------------------------------------------------------------------------

struct Engine {
    PyTypeObject *variable, *tensor, *array_function, *saved, *ndarray;
    PyObject *mode, *numbers, *stand_in, *floats;                             // graph.py
    PyObject *accumulate, *add, *fitted, *retain, *enter_quiet, *leave_quiet;  // autograd.py
    PyObject* asarray;                                                        // NumPy's
    Py_ssize_t array, base, grad, history, output, seen, grad_fn, requires_grad;  // where a Variable has its slots
    PyObject *zero, *nothing;  // 0 and ()
    PyObject* numpy_stand_in;  // made when first needed
};
extern Engine engine;  // of tape.cpp

struct Names {
    PyObject *warns, *enabled, *edges, *number, *needs_input_grad, *forward, *backward, *saved, *like, *outputs, *differentiable;
    PyObject *base, *flags, *size, *c_contiguous, *saved_output, *plain_apply, *freed, *kept, *retained, *run_backward, *free;
    PyObject *log, *dim, *was, *o, *hands_over;  // of fused.py
};
extern Names names;

inline NumpyArray* as_array(PyObject* object) { return reinterpret_cast<NumpyArray*>(object); }
inline bool is_array(PyObject* object) { return object && Py_TYPE(object) == engine.ndarray; }
inline bool is_tensor(PyObject* object) { return PyObject_TypeCheck(object, engine.variable); }

inline PyObject* slot(PyObject* tensor, Py_ssize_t at) { return *reinterpret_cast<PyObject**>(reinterpret_cast<char*>(tensor) + at); }

inline void put(PyObject* tensor, Py_ssize_t at, PyObject* value) {
    PyObject*& place = *reinterpret_cast<PyObject**>(reinterpret_cast<char*>(tensor) + at);
    Ref before(std::exchange(place, Py_NewRef(value)));
}

inline Ref new_tensor(PyObject* array) {
    Ref t = checked(engine.tensor->tp_alloc(engine.tensor, 0));
    Ref history = checked(PyList_New(2));
    PyList_SET_ITEM(static_cast<PyObject*>(history), 0, Py_NewRef(engine.zero));
    PyList_SET_ITEM(static_cast<PyObject*>(history), 1, Py_NewRef(engine.zero));
    put(t, engine.array, array);
    put(t, engine.base, Py_None);
    put(t, engine.grad, Py_None);
    put(t, engine.history, history);
    put(t, engine.output, engine.zero);
    put(t, engine.seen, engine.zero);
    put(t, engine.grad_fn, Py_None);
    put(t, engine.requires_grad, Py_False);
    return t;
}

inline PyObject* written(PyObject* history) { return PyList_GET_ITEM(history, 0); }

}  // namespace tilegrad::tape
