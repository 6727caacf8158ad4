// The two loops that every recorded operation goes through, ArrayFunction.apply and the backward pass, for what a training
// step on the CPU consists of: NumPy arrays and kernels that do not warn. They are here for speed alone. What they mean is
// said in graph.py and autograd.py, whose functions are called for everything else.

#include "tape.h"

#include <structmember.h>

#include <queue>
#include <unordered_map>
#include <utility>
#include <vector>

namespace tilegrad::tape {
namespace {

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

Ref checked(PyObject* made) {
    if (!made) throw Raised{};
    return Ref(made);
}

void check(int result) {
    if (result < 0) throw Raised{};
}

Ref attribute(PyObject* of, PyObject* name) { return checked(PyObject_GetAttr(of, name)); }
void set_attribute(PyObject* of, PyObject* name, PyObject* value) { check(PyObject_SetAttr(of, name, value)); }

int64_t integer(PyObject* object) {
    long long value = PyLong_AsLongLong(object);
    if (value == -1 && PyErr_Occurred()) throw Raised{};
    return value;
}

template <class... Args> Ref call(PyObject* function, Args... args) {
    PyObject* list[] = {args...};
    return checked(PyObject_Vectorcall(function, list, sizeof...(args), nullptr));
}

template <class F> PyObject* guarded(F f) {
    try {
        return f();
    } catch (const Raised&) {
        return nullptr;
    } catch (const std::bad_alloc&) {
        return PyErr_NoMemory();
    }
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
} engine;

struct Names {
    PyObject *warns, *enabled, *edges, *number, *needs_input_grad, *forward, *backward, *saved, *like, *outputs, *differentiable;
    PyObject *base, *flags, *size, *c_contiguous, *saved_output, *plain_apply, *freed, *kept, *retained, *run_backward, *free;
} names;

NumpyArray* as_array(PyObject* object) { return reinterpret_cast<NumpyArray*>(object); }
bool is_array(PyObject* object) { return object && Py_TYPE(object) == engine.ndarray; }
bool is_tensor(PyObject* object) { return PyObject_TypeCheck(object, engine.variable); }

PyObject* slot(PyObject* tensor, Py_ssize_t at) { return *reinterpret_cast<PyObject**>(reinterpret_cast<char*>(tensor) + at); }

void put(PyObject* tensor, Py_ssize_t at, PyObject* value) {
    PyObject*& place = *reinterpret_cast<PyObject**>(reinterpret_cast<char*>(tensor) + at);
    Ref before(std::exchange(place, Py_NewRef(value)));
}

Ref new_tensor(PyObject* array) {
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

PyObject* written(PyObject* history) { return PyList_GET_ITEM(history, 0); }

// --- ArrayFunction.apply ---------------------------------------------------------------------------------------------

// Whether an argument is a plain value, or a tensor over a NumPy array that knows all that was recorded on its memory.
bool is_plain(PyObject* a) {
    if (!is_tensor(a)) return true;
    if (!is_array(slot(a, engine.array))) return false;
    return slot(a, engine.base) == Py_None || integer(slot(a, engine.seen)) == integer(PyList_GET_ITEM(slot(a, engine.history), 1));
}

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

Ref apply_plain(PyObject* cls, PyObject* const* args, Py_ssize_t count, PyObject* like, bool recording) {
    std::vector<Argument> arguments(count);
    std::vector<PyObject*> handed{nullptr};
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
    handed[0] = ctx;
    Ref forward = attribute(cls, names.forward);
    Ref result = checked(PyObject_Vectorcall(forward, handed.data(), handed.size(), nullptr));
    bool several = PyTuple_Check(static_cast<PyObject*>(result));
    Ref results = several ? Ref::to(result) : checked(PyTuple_Pack(1, static_cast<PyObject*>(result)));
    Py_ssize_t made = PyTuple_GET_SIZE(static_cast<PyObject*>(results));
    Ref outputs = checked(PyTuple_New(made));
    for (Py_ssize_t i = 0; i < made; i++)
        PyTuple_SET_ITEM(static_cast<PyObject*>(outputs), i, wrapped(PyTuple_GET_ITEM(static_cast<PyObject*>(results), i), arguments).release());
    if (recording) remember(cls, ctx, arguments, like, results, outputs);
    return several ? std::move(outputs) : Ref::to(PyTuple_GET_ITEM(static_cast<PyObject*>(outputs), 0));
}

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
        bool recording = needed && static_cast<PyObject*>(attribute(engine.mode, names.enabled)) == Py_True;
        return apply_plain(cls, args + 1, count - 1, like, recording).release();
    });
}

// --- the backward pass -----------------------------------------------------------------------------------------------

bool same_shape(NumpyArray* a, PyObject* shape) {
    if (a->ndim != PyTuple_GET_SIZE(shape)) return false;
    for (int i = 0; i < a->ndim; i++)
        if (PyLong_AsSsize_t(PyTuple_GET_ITEM(shape, i)) != a->shape[i]) return false;
    return true;
}

bool same_shape(NumpyArray* a, NumpyArray* b) {
    if (a->ndim != b->ndim) return false;
    for (int i = 0; i < a->ndim; i++)
        if (a->shape[i] != b->shape[i]) return false;
    return true;
}

bool fits_leaf(PyObject* grad, PyObject* leaf) {
    PyObject* array = slot(leaf, engine.array);
    return is_array(grad) && is_array(array) && as_array(grad)->dtype == as_array(array)->dtype && same_shape(as_array(grad), as_array(array));
}

bool fits_output(PyObject* grad, PyObject* described) {  // (shape, dtype)
    return is_array(grad) && as_array(grad)->dtype == PyTuple_GET_ITEM(described, 1) &&
           same_shape(as_array(grad), PyTuple_GET_ITEM(described, 0));
}

// Whether the memory belongs to this one reference, as autograd._is_alone says.
bool is_alone(PyObject* grad) {
    if (Py_REFCNT(grad) != 1 || is_tensor(grad)) return false;
    if (is_array(grad)) {
        NumpyArray* array = as_array(grad);
        if (!array->base) return true;
        return is_array(array->base) && Py_REFCNT(array->base) == 1 && as_array(array->base)->size() == array->size() &&
               (array->flags & NumpyArray::C_CONTIGUOUS);
    }
    Ref base = attribute(grad, names.base);  // CuPy's
    if (static_cast<PyObject*>(base) == Py_None) return true;
    if (Py_TYPE(static_cast<PyObject*>(base)) != Py_TYPE(grad) || Py_REFCNT(static_cast<PyObject*>(base)) != 2) return false;
    Ref flags = attribute(grad, names.flags);
    return integer(attribute(base, names.size)) == integer(attribute(grad, names.size)) &&
           static_cast<PyObject*>(attribute(flags, names.c_contiguous)) == Py_True;
}

class Walk {
  public:
    explicit Walk(bool keep_graph) : keep_graph_(keep_graph) {}

    void deliver(PyObject* edge, PyObject* node, Ref grad, bool from_here) {
        PyObject* target = PyTuple_GET_ITEM(edge, 0);
        if (is_tensor(target)) return to_leaf(target, edge, node, std::move(grad), from_here);
        auto found = pending_.find(target);
        if (found == pending_.end()) {
            Ref outputs = attribute(target, names.outputs);
            found = pending_.emplace(target, std::vector<Ref>(PyTuple_Size(outputs))).first;
            latest_.push({integer(attribute(target, names.number)), target});
        }
        size_t i = integer(PyTuple_GET_ITEM(edge, 1));
        Ref& place = found->second.at(i);
        if (from_here) {
            Ref outputs = attribute(target, names.outputs);
            if (!fits_output(grad, PyTuple_GetItem(outputs, i))) grad = call(engine.fitted, edge, static_cast<PyObject*>(grad), node);
        }
        place = place ? call(engine.add, static_cast<PyObject*>(place), static_cast<PyObject*>(grad)) : std::move(grad);
    }

    void run() {
        while (!latest_.empty()) {
            PyObject* node = latest_.top().second;
            latest_.pop();
            auto found = pending_.find(node);
            std::vector<Ref> grads = std::move(found->second);
            pending_.erase(found);
            run(node, std::move(grads));
        }
    }

    ~Walk() {
        if (!quiet_) return;
        PyObject *type, *value, *trace;  // an exception may be on its way
        PyErr_Fetch(&type, &value, &trace);
        Ref left(PyObject_CallOneArg(engine.leave_quiet, quiet_));
        PyErr_Restore(type, value, trace);
    }

  private:
    void to_leaf(PyObject* leaf, PyObject* edge, PyObject* node, Ref grad, bool from_here) {
        if (from_here && !fits_leaf(grad, leaf)) grad = call(engine.fitted, edge, static_cast<PyObject*>(grad), node);
        bool alone = from_here && is_alone(grad);
        if (alone && slot(leaf, engine.grad) == Py_None)
            put(leaf, engine.grad, new_tensor(grad));
        else
            call(engine.accumulate, leaf, static_cast<PyObject*>(grad), alone ? Py_True : Py_False, Py_False);
    }

    static Ref listed(const std::vector<Ref>& grads) {
        Ref list = checked(PyList_New(grads.size()));
        for (size_t i = 0; i < grads.size(); i++)
            PyList_SET_ITEM(static_cast<PyObject*>(list), i, Py_NewRef(grads[i] ? static_cast<PyObject*>(grads[i]) : Py_None));
        return list;
    }

    void run(PyObject* node, std::vector<Ref> grads) {
        if (static_cast<PyObject*>(attribute(node, names.retained)) != Py_None)
            call(engine.retain, node, static_cast<PyObject*>(listed(grads)));
        bool warns = static_cast<PyObject*>(attribute(node, names.warns)) != Py_False;
        if (warns && !quiet_) quiet_ = checked(PyObject_CallNoArgs(engine.enter_quiet));
        bool plain = !warns && PyObject_TypeCheck(node, engine.array_function) && is_ready(node, grads);
        Ref result = plain ? run_plain(node, grads) : checked(PyObject_CallMethodObjArgs(node, names.run_backward, static_cast<PyObject*>(listed(grads)), Py_False, nullptr));
        grads.clear();
        Ref edges = attribute(node, names.edges);
        std::vector<Ref> results;
        if (PyTuple_Check(static_cast<PyObject*>(result)) || PyList_Check(static_cast<PyObject*>(result)))
            for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(static_cast<PyObject*>(result)); i++)
                results.push_back(Ref::to(PySequence_Fast_GET_ITEM(static_cast<PyObject*>(result), i)));
        else
            results.push_back(Ref::to(result));
        result = Ref();
        if (!keep_graph_) free(node, plain);
        for (size_t i = 0; i < results.size() && static_cast<Py_ssize_t>(i) < PyTuple_GET_SIZE(static_cast<PyObject*>(edges)); i++) {
            PyObject* edge = PyTuple_GET_ITEM(static_cast<PyObject*>(edges), i);
            if (edge != Py_None && static_cast<PyObject*>(results[i]) != Py_None) deliver(edge, node, std::move(results[i]), true);
        }
    }

    static void free(PyObject* node, bool plain) {
        if (!plain) return static_cast<void>(checked(PyObject_CallMethodNoArgs(node, names.free)));
        set_attribute(node, names.saved, engine.nothing);
        set_attribute(node, names.kept, engine.nothing);
        set_attribute(node, names.freed, Py_True);
    }

    // Whether all is there that backward needs, and unchanged. If not, Python says so.
    static bool is_ready(PyObject* node, const std::vector<Ref>& grads) {
        if (static_cast<PyObject*>(attribute(node, names.freed)) != Py_False || !grads[0]) return false;
        if (integer(attribute(node, names.differentiable)) > 1 || !is_array(grads[0])) return false;
        Ref saved = attribute(node, names.saved);
        for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(static_cast<PyObject*>(saved)); i++) {
            PyObject* s = PyTuple_GET_ITEM(static_cast<PyObject*>(saved), i);
            if (Py_TYPE(s) != engine.saved) continue;
            if (integer(written(PyTuple_GET_ITEM(s, 1))) != integer(PyTuple_GET_ITEM(s, 2))) return false;
        }
        return true;
    }

    static Ref run_plain(PyObject* node, const std::vector<Ref>& grads) {
        std::vector<PyObject*> args{node};
        for (auto& g : grads) args.push_back(g ? static_cast<PyObject*>(g) : Py_None);
        Ref backward = attribute(reinterpret_cast<PyObject*>(Py_TYPE(node)), names.backward);
        return checked(PyObject_Vectorcall(backward, args.data(), args.size(), nullptr));
    }

    bool keep_graph_;
    Ref quiet_;
    std::unordered_map<PyObject*, std::vector<Ref>> pending_;  // the gradients of a node's outputs
    std::priority_queue<std::pair<int64_t, PyObject*>> latest_;
};

// Sets _mode.enabled, and sets it back.
class Mode {
  public:
    explicit Mode(PyObject* enabled) : before_(attribute(engine.mode, names.enabled)) { set_attribute(engine.mode, names.enabled, enabled); }
    ~Mode() {
        PyObject *type, *value, *trace;
        PyErr_Fetch(&type, &value, &trace);
        PyObject_SetAttr(engine.mode, names.enabled, before_);
        PyErr_Restore(type, value, trace);
    }

  private:
    Ref before_;
};

// walk(roots, keep_graph): autograd._walk into the .grad of the leaves, not recorded.
PyObject* walk(PyObject*, PyObject* const* args, Py_ssize_t) {
    return guarded([&]() -> PyObject* {
        Walk all(args[1] == Py_True);
        for (Py_ssize_t i = 0; i < PyList_GET_SIZE(args[0]); i++) {
            PyObject* root = PyList_GET_ITEM(args[0], i);  // (edge, gradient)
            all.deliver(PyTuple_GET_ITEM(root, 0), Py_None, Ref::to(PyTuple_GET_ITEM(root, 1)), false);
        }
        Mode off(Py_False);
        all.run();
        return Py_NewRef(Py_None);
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
    {"apply", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(apply)), METH_FASTCALL, "ArrayFunction.apply, of a class and its arguments."},
    {"walk", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(walk)), METH_FASTCALL, "The backward pass from (edge, gradient) pairs."},
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
    };
    for (auto& entry : all)
        if (!(*entry.name = PyUnicode_InternFromString(entry.text))) return false;
    return PyModule_AddFunctions(module, functions) == 0;
}

}  // namespace tilegrad::tape
