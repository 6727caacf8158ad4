// The loop that every recorded operation goes through, ArrayFunction.apply, for what a training step on the CPU consists
// of: NumPy arrays and kernels that do not warn. Like walk.cpp, it is here for speed alone. What it means is said in
// graph.py, whose function is called for everything else.

#include "tape.h"

#include <structmember.h>

#include <vector>

namespace tilegrad::tape {

Engine engine;
Names names;

// --- ArrayFunction.apply ---------------------------------------------------------------------------------------------

bool is_plain(PyObject* argument) {
    if (!is_tensor(argument)) return true;
    if (!is_array(slot(argument, engine.array))) return false;
    if (slot(argument, engine.base) == Py_None) return true;
    return integer(slot(argument, engine.seen)) == integer(PyList_GET_ITEM(slot(argument, engine.history), 1));
}

bool is_recording() { return static_cast<PyObject*>(attribute(engine.mode, names.enabled)) == Py_True; }

namespace {

struct Argument {
    PyObject* given;
    Ref array;  // of a tensor; else what was given
    Ref edge;   // None for what needs no gradient
};

Ref wrapped(PyObject* result, const std::vector<Argument>& arguments) {
    Ref converted;  // of NumPy's scalars
    if (!is_array(result)) result = converted = call(engine.asarray, result);
    Ref out = new_tensor(result);
    PyObject* base = as_array(result)->base;
    for (auto& a : arguments) {
        if (!is_tensor(a.given)) continue;
        PyObject* x = a.array;
        if (x != result && !(base && (x == base || as_array(x)->base == base))) continue;
        PyObject* of = slot(a.given, engine.base);
        put(out, engine.base, of == Py_None ? a.given : of);
        put(out, engine.history, slot(a.given, engine.history));
        put(out, engine.seen, PyList_GET_ITEM(slot(a.given, engine.history), 1));
        break;
    }
    return out;
}

Ref saved(PyObject* array, PyObject* tensor, PyObject* edge, PyObject* output) {
    PyObject* history = slot(tensor, engine.history);
    Ref kept = checked(engine.saved->tp_alloc(engine.saved, 5));
    PyObject* fields[] = {array, history, written(history), edge, output};
    for (int i = 0; i < 5; i++) PyTuple_SET_ITEM(static_cast<PyObject*>(kept), i, Py_NewRef(fields[i]));
    return kept;
}

// One of what forward saved, with the write counter of the tensor that it belongs to.
Ref remembered(PyObject* ctx, PyObject* s, const std::vector<Argument>& arguments, PyObject* results, PyObject* outputs) {
    if (s == Py_None) return Ref::to(s);
    for (auto& a : arguments)
        if (static_cast<PyObject*>(a.array) == s && is_tensor(a.given)) return saved(s, a.given, a.edge, Py_None);
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(results); i++)
        if (PyTuple_GET_ITEM(results, i) == s && is_array(s))
            return saved(s, PyTuple_GET_ITEM(outputs, i), Py_None, checked(PyLong_FromSsize_t(i)));
    return checked(PyObject_CallMethodObjArgs(ctx, names.saved_output, s, results, outputs, nullptr));
}

void remember(PyObject* cls, PyObject* ctx, const std::vector<Argument>& arguments, PyObject* like, PyObject* results, PyObject* outputs) {
    if (!engine.numpy_stand_in) engine.numpy_stand_in = call(engine.stand_in, like).release();
    set_attribute(ctx, names.like, engine.numpy_stand_in);
    Py_ssize_t count = PyTuple_GET_SIZE(outputs);
    Ref described = checked(PyTuple_New(count));
    for (Py_ssize_t i = 0; i < count; i++) {
        NumpyArray* array = as_array(slot(PyTuple_GET_ITEM(outputs, i), engine.array));
        Ref shape = checked(PyTuple_New(array->ndim));
        for (int d = 0; d < array->ndim; d++) PyTuple_SET_ITEM(static_cast<PyObject*>(shape), d, checked(PyLong_FromSsize_t(array->shape[d])).release());
        PyTuple_SET_ITEM(static_cast<PyObject*>(described), i, checked(PyTuple_Pack(2, static_cast<PyObject*>(shape), array->dtype)).release());
    }
    set_attribute(ctx, names.outputs, described);
    int64_t differentiable = integer(attribute(cls, names.differentiable));
    for (Py_ssize_t i = 0; i < count && i < differentiable; i++) {
        PyObject* out = PyTuple_GET_ITEM(outputs, i);
        int floating = PySet_Contains(engine.floats, as_array(slot(out, engine.array))->dtype);
        check(floating);
        if (!floating) continue;
        put(out, engine.grad_fn, ctx);
        put(out, engine.output, checked(PyLong_FromSsize_t(i)));
        put(out, engine.requires_grad, Py_True);
        put(out, engine.seen, PyList_GET_ITEM(slot(out, engine.history), 1));
    }
    Ref saved = attribute(ctx, names.saved);
    Py_ssize_t number = PyTuple_Size(saved);
    if (number <= 0) return check(static_cast<int>(number));
    Ref kept = checked(PyTuple_New(number));
    for (Py_ssize_t i = 0; i < number; i++)
        PyTuple_SET_ITEM(static_cast<PyObject*>(kept), i, remembered(ctx, PyTuple_GET_ITEM(static_cast<PyObject*>(saved), i), arguments, results, outputs).release());
    set_attribute(ctx, names.saved, kept);
}

}  // namespace

Ref apply_plain(PyObject* cls, PyObject* const* args, Py_ssize_t count, PyObject* like, bool recording, const Forward& forward) {
    std::vector<Argument> arguments(count);
    std::vector<PyObject*> handed;
    for (Py_ssize_t i = 0; i < count; i++) {
        Argument& a = arguments[i];
        a.given = args[i];
        bool tensor = is_tensor(a.given);
        a.array = Ref::to(tensor ? slot(a.given, engine.array) : a.given);
        handed.push_back(a.array);
        if (tensor && slot(a.given, engine.requires_grad) == Py_True) {
            PyObject* made_by = slot(a.given, engine.grad_fn);
            bool leaf = made_by == Py_None;
            a.edge = checked(PyTuple_Pack(2, leaf ? a.given : made_by, leaf ? engine.zero : slot(a.given, engine.output)));
        } else {
            a.edge = Ref::to(Py_None);
        }
    }
    Ref ctx = checked(PyObject_CallNoArgs(cls));
    if (recording) {
        Ref edges = checked(PyTuple_New(count)), needs = checked(PyTuple_New(count));
        for (Py_ssize_t i = 0; i < count; i++) {
            PyObject* edge = arguments[i].edge;
            PyTuple_SET_ITEM(static_cast<PyObject*>(edges), i, Py_NewRef(edge));
            PyTuple_SET_ITEM(static_cast<PyObject*>(needs), i, PyBool_FromLong(edge != Py_None));
        }
        set_attribute(ctx, names.edges, edges);
        set_attribute(ctx, names.needs_input_grad, needs);
        set_attribute(ctx, names.number, checked(PyIter_Next(engine.numbers)));
    }
    Ref result = forward(ctx, handed.data());
    bool several = PyTuple_Check(static_cast<PyObject*>(result));
    Ref results = several ? Ref::to(result) : checked(PyTuple_Pack(1, static_cast<PyObject*>(result)));
    Py_ssize_t made = PyTuple_GET_SIZE(static_cast<PyObject*>(results));
    Ref outputs = checked(PyTuple_New(made));
    for (Py_ssize_t i = 0; i < made; i++)
        PyTuple_SET_ITEM(static_cast<PyObject*>(outputs), i, wrapped(PyTuple_GET_ITEM(static_cast<PyObject*>(results), i), arguments).release());
    if (recording) remember(cls, ctx, arguments, like, results, outputs);
    return several ? std::move(outputs) : Ref::to(PyTuple_GET_ITEM(static_cast<PyObject*>(outputs), 0));
}

namespace {

PyObject* apply(PyObject*, PyObject* const* args, Py_ssize_t count) {
    return guarded([&]() -> PyObject* {
        PyObject *cls = args[0], *like = nullptr;
        bool plain = static_cast<PyObject*>(attribute(cls, names.warns)) == Py_False, needed = false;
        for (Py_ssize_t i = 1; i < count && plain; i++) {
            plain = is_plain(args[i]);
            if (!is_tensor(args[i])) continue;
            like = args[i];
            needed = needed || slot(like, engine.requires_grad) == Py_True;
        }
        if (!plain || !like) {
            Ref in_python = attribute(cls, names.plain_apply);
            return PyObject_Vectorcall(in_python, args + 1, count - 1, nullptr);
        }
        auto forward = [&](PyObject* ctx, PyObject* const* arrays) {
            std::vector<PyObject*> handed{ctx};
            handed.insert(handed.end(), arrays, arrays + count - 1);
            return checked(PyObject_Vectorcall(attribute(cls, names.forward), handed.data(), handed.size(), nullptr));
        };
        return apply_plain(cls, args + 1, count - 1, like, needed && is_recording(), forward).release();
    });
}

// --- the beginning ---------------------------------------------------------------------------------------------------

Py_ssize_t place_of(const char* name) {
    Ref descriptor = checked(PyObject_GetAttrString(reinterpret_cast<PyObject*>(engine.variable), name));
    if (Py_TYPE(static_cast<PyObject*>(descriptor)) != &PyMemberDescr_Type) {
        PyErr_Format(PyExc_TypeError, "expected a slot called %s", name);
        throw Raised{};
    }
    return reinterpret_cast<PyMemberDescrObject*>(static_cast<PyObject*>(descriptor))->d_member->offset;
}

PyObject* begin(PyObject*, PyObject* of) {  // a dict with all of Engine's objects
    return guarded([&]() -> PyObject* {
        auto taken = [&](const char* name) {
            PyObject* found = PyDict_GetItemString(of, name);
            if (!found) {
                PyErr_Format(PyExc_KeyError, "begin: expected %s", name);
                throw Raised{};
            }
            return Py_NewRef(found);
        };
        auto type = [&](const char* name) { return reinterpret_cast<PyTypeObject*>(taken(name)); };
        engine.variable = type("Variable");
        engine.tensor = type("Tensor");
        engine.array_function = type("ArrayFunction");
        engine.saved = type("Saved");
        engine.ndarray = type("ndarray");
        engine.mode = taken("mode");
        engine.numbers = taken("numbers");
        engine.stand_in = taken("stand_in");
        engine.floats = taken("floats");
        engine.accumulate = taken("accumulate");
        engine.add = taken("add");
        engine.fitted = taken("fitted");
        engine.retain = taken("retain");
        engine.enter_quiet = taken("enter_quiet");
        engine.leave_quiet = taken("leave_quiet");
        engine.asarray = taken("asarray");
        engine.array = place_of("_array");
        engine.base = place_of("_base");
        engine.grad = place_of("_grad");
        engine.history = place_of("_history");
        engine.output = place_of("_output");
        engine.seen = place_of("_seen");
        engine.grad_fn = place_of("grad_fn");
        engine.requires_grad = place_of("requires_grad");
        engine.zero = checked(PyLong_FromLong(0)).release();
        engine.nothing = checked(PyTuple_New(0)).release();
        return Py_NewRef(Py_None);
    });
}

PyMethodDef functions[] = {
    {"begin_tape", begin, METH_O, "Tell the tape the engine's types and functions."},
    {"apply", fastcall(apply), METH_FASTCALL, "ArrayFunction.apply, of a class and its arguments."},
    {"backward", fastcall(backward), METH_FASTCALL, "The backward pass from one tensor of one element, if it is plain."},
    {"walk", fastcall(walk), METH_FASTCALL, "The backward pass from (edge, gradient) pairs."},
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace

bool add_to(PyObject* module) {
    struct {
        PyObject** name;
        const char* text;
    } all[] = {
        {&names.warns, "warns"}, {&names.enabled, "enabled"}, {&names.edges, "edges"}, {&names.number, "number"},
        {&names.needs_input_grad, "needs_input_grad"}, {&names.forward, "forward"}, {&names.backward, "backward"},
        {&names.saved, "_saved"}, {&names.like, "_like"}, {&names.outputs, "_outputs"}, {&names.differentiable, "differentiable"},
        {&names.base, "base"}, {&names.flags, "flags"}, {&names.size, "size"}, {&names.c_contiguous, "c_contiguous"},
        {&names.saved_output, "_saved_output"}, {&names.plain_apply, "_apply"}, {&names.freed, "_freed"}, {&names.kept, "_kept"},
        {&names.retained, "_retained"}, {&names.run_backward, "_run_backward"}, {&names.free, "_free"},
        {&names.log, "log"}, {&names.dim, "dim"}, {&names.was, "was"}, {&names.o, "o"}, {&names.hands_over, "hands_over"},
    };
    for (auto& entry : all)
        if (!(*entry.name = PyUnicode_InternFromString(entry.text))) return false;
    return PyModule_AddFunctions(module, functions) == 0;
}

}  // namespace tilegrad::tape
