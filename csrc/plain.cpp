// The plainest calls of the fused operations, from tensors to what is recorded with no Python in between: small training
// steps consist of them. Each does as the functions of the same name in nn/functional.py, fused.py and backends.py, and
// returns None where a call is not plain: those look at it then, and say what is wrong with it.

#include "memory.h"
#include "numpy.h"
#include "operations.h"
#include "tape.h"

namespace tilegrad::tape {
namespace {

using cpu::Array;
using cpu::Index;

// A tensor's array, if it is there to be read.
Array plain_array(PyObject* tensor) {
    if (!is_tensor(tensor) || !is_plain(tensor)) return {};
    return array_of(slot(tensor, engine.array));
}

PyObject* dtype_of(PyObject* tensor) { return as_array(slot(tensor, engine.array))->dtype; }

bool needs_grad(PyObject* tensor) { return slot(tensor, engine.requires_grad) == Py_True && is_recording(); }

Ref tuple(std::initializer_list<PyObject*> items) {
    Ref made = checked(PyTuple_New(items.size()));
    Py_ssize_t i = 0;
    for (PyObject* item : items) PyTuple_SET_ITEM(static_cast<PyObject*>(made), i++, Py_NewRef(item));
    return made;
}

// --- softmax ---------------------------------------------------------------------------------------------------------

// plain_softmax(cls, input, dim): cls.apply(input, dim, None), of Softmax or LogSoftmax.
PyObject* softmax(PyObject*, PyObject* const* args, Py_ssize_t) {
    return guarded([&]() -> PyObject* {
        PyObject *cls = args[0], *input = args[1], *dim = args[2];
        Array x = plain_array(input);
        if (!x || !x.floating || x.size() == 0 || x.ndim == 0 || x.ndim > cpu::MAX_DIMS || !PyLong_CheckExact(dim)) return Py_NewRef(Py_None);
        int64_t axis = integer(dim);
        if (axis < -x.ndim || axis >= x.ndim) return Py_NewRef(Py_None);
        if (axis < 0) axis += x.ndim;
        bool log = static_cast<PyObject*>(attribute(cls, names.log)) == Py_True, recording = needs_grad(input);
        Ref number = checked(PyLong_FromLongLong(axis));
        auto forward = [&](PyObject* ctx, PyObject* const*) {
            Ref out = checked(memory::empty(x.ndim, x.shape, dtype_of(input)));
            cpu::run_softmax(x, {}, static_cast<int>(axis), log, array_of(out));
            if (recording) {
                set_attribute(ctx, names.dim, number);
                set_attribute(ctx, names.was, dtype_of(input));
                set_attribute(ctx, names.saved, tuple({out}));
            }
            return out;
        };
        PyObject* arguments[] = {input, number, Py_None};
        return apply_plain(cls, arguments, 3, input, recording, forward).release();
    });
}

// --- cross-entropy ---------------------------------------------------------------------------------------------------

bool is_of_classes(const Array& target) {
    if (!target || !target.integer) return false;
    Index type = *target.integer;
    return type == Index::int64 || type == Index::int32 || type == Index::int16 || type == Index::int8 || type == Index::uint8;
}

// Whether these are logits (N, C, d…) and a target (N, d…).
bool fit(const Array& logits, const Array& target) {
    if (logits.ndim < 2 || logits.ndim > cpu::MAX_DIMS || target.ndim != logits.ndim - 1 || logits.size() == 0 || target.shape[0] != logits.shape[0]) return false;
    for (int i = 2; i < logits.ndim; i++)
        if (target.shape[i - 1] != logits.shape[i]) return false;
    return true;
}

// plain_cross_entropy(cls, input, target, options, mean): CrossEntropy.apply(input, target, None, options, False), of options
// that ask for no more than a mean or a sum of the rows.
PyObject* cross_entropy(PyObject*, PyObject* const* args, Py_ssize_t) {
    return guarded([&]() -> PyObject* {
        PyObject *cls = args[0], *input = args[1], *target = args[2], *options = args[3];
        cpu::LossArguments o{args[4] == Py_True ? cpu::Reduction::mean : cpu::Reduction::sum, -100, 0, 0, 0, -1, -1};
        Array logits = plain_array(input), classes = plain_array(target);
        if (!logits || !logits.floating || !is_of_classes(classes) || !fit(logits, classes)) return Py_NewRef(Py_None);
        if (cpu::first_bad_index(classes, logits.shape[1], o.ignore_index)) return Py_NewRef(Py_None);
        bool recording = needs_grad(input);
        auto forward = [&](PyObject* ctx, PyObject* const* arrays) {
            Ref loss = checked(memory::empty(0, nullptr, dtype_of(input)));
            Ref grad = recording ? checked(memory::empty(logits.ndim, logits.shape, dtype_of(input))) : Ref::to(Py_None);
            cpu::run_cross_entropy(logits, classes, {}, o, array_of(loss), {}, {}, array_of(grad));
            if (recording) {
                set_attribute(ctx, names.o, options);
                set_attribute(ctx, names.saved, tuple({arrays[0], arrays[1], Py_None}));
                set_attribute(ctx, names.kept, tuple({grad, Py_None}));
            }
            return loss;
        };
        PyObject* arguments[] = {input, target, Py_None, options, Py_False};
        return apply_plain(cls, arguments, 5, input, recording, forward).release();
    });
}

PyMethodDef functions[] = {
    {"plain_softmax", fastcall(softmax), METH_FASTCALL, "Softmax.apply, if the call is plain."},
    {"plain_cross_entropy", fastcall(cross_entropy), METH_FASTCALL,
     "CrossEntropy.apply, if the call is plain."},
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace

bool add_plain_to(PyObject* module) { return PyModule_AddFunctions(module, functions) == 0; }

}  // namespace tilegrad::tape
