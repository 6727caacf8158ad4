// The backward pass into the .grad of leaves, not recorded: what autograd.py's _walk does, for the nodes of a training step
// on the CPU. What it means is said there; its functions are called for whatever is unusual.

#include <queue>
#include <unordered_map>
#include <vector>

#include "arrays.h"
#include "memory.h"
#include "numpy.h"
#include "tape.h"

namespace tilegrad::tape {
namespace {

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

    // The gradient of its one input that a node has made in its forward already, if it is wanted as it is; else nothing.
    static Ref handed_over(PyObject* node, PyObject* upstream) {
        PyObject* cls = reinterpret_cast<PyObject*>(Py_TYPE(node));
        if (static_cast<PyObject*>(attribute(cls, names.hands_over)) != Py_True || !is_one(array_of(upstream))) return Ref();
        Ref needs = attribute(node, names.needs_input_grad), kept = attribute(node, names.kept);
        for (Py_ssize_t i = 1; i < PyTuple_GET_SIZE(static_cast<PyObject*>(needs)); i++)
            if (PyTuple_GET_ITEM(static_cast<PyObject*>(needs), i) != Py_False) return Ref();
        PyObject* made = PyTuple_GetItem(kept, 0);
        if (!made) throw Raised{};
        if (made == Py_None) return Ref();
        Ref grads = checked(PyTuple_Pack(1, made));
        set_attribute(node, names.kept, checked(PyTuple_Pack(2, Py_None, PyTuple_GET_ITEM(static_cast<PyObject*>(kept), 1))));
        return grads;
    }

    static bool is_one(const cpu::Array& x) {
        if (x.ndim != 0) return false;
        return x.floating == cpu::DType::float32 ? *reinterpret_cast<const float*>(x.data) == 1
                                                 : x.floating == cpu::DType::float64 && *reinterpret_cast<const double*>(x.data) == 1;
    }

    static Ref run_plain(PyObject* node, const std::vector<Ref>& grads) {
        if (Ref made = handed_over(node, grads[0])) return made;
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

}  // namespace

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

PyObject* backward(PyObject*, PyObject* const* args, Py_ssize_t) {
    return guarded([&]() -> PyObject* {
        PyObject* of = args[0];
        if (!is_tensor(of) || !is_plain(of) || slot(of, engine.grad_fn) == Py_None) return Py_NewRef(Py_False);
        cpu::Array array = array_of(slot(of, engine.array));
        if (array.floating != cpu::DType::float32 && array.floating != cpu::DType::float64) return Py_NewRef(Py_False);
        if (array.size() != 1) return Py_NewRef(Py_False);
        Ref ones = checked(memory::empty(array.ndim, array.shape, as_array(slot(of, engine.array))->dtype));
        char* one = as_array(ones)->data;
        array.floating == cpu::DType::float32 ? *reinterpret_cast<float*>(one) = 1 : *reinterpret_cast<double*>(one) = 1;
        Walk all(args[1] == Py_True);
        Ref edge = checked(PyTuple_Pack(2, slot(of, engine.grad_fn), slot(of, engine.output)));
        all.deliver(edge, Py_None, std::move(ones), false);
        Mode off(Py_False);
        all.run();
        return Py_NewRef(Py_True);
    });
}

}  // namespace tilegrad::tape
