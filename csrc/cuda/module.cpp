// tilegrad._C.cuda: the kernels as functions of addresses. An array is a tuple (address, dtype, shape, strides in
// bytes), or None; `engine/cuda_kernels.py` makes them, of whatever library. Every function takes the number of the
// device and the stream last.

#include "module.h"

#include <deque>
#include <vector>

#include "../objects.h"
#include "matmul.h"
#include "operations.h"

namespace tilegrad::cuda {
namespace {

using tape::checked;
using tape::guarded;
using tape::integer;
using tape::Raised;
using tape::Ref;

// --- arguments -------------------------------------------------------------------------------------------------------

constexpr int64_t FIRST_INDEX = 8;  // dtypes are numbered as DType, and from here on as Index

class Arguments {
  public:
    Arguments(PyObject* const* args, Py_ssize_t count) : args_(args), end_(args + count) {}

    int64_t number() { return integer(next()); }
    bool flag() { return next() == Py_True; }
    double real() {
        double value = PyFloat_AsDouble(next());
        if (value == -1.0 && PyErr_Occurred()) throw Raised{};
        return value;
    }
    char* address() { return reinterpret_cast<char*>(number()); }

    Array array() {
        PyObject* given = next();
        if (given == Py_None) return {};
        if (!PyTuple_Check(given) || PyTuple_GET_SIZE(given) != 4)
            throw std::invalid_argument("expected an array as a tuple of 4, or None");
        Array a;
        a.data = reinterpret_cast<char*>(integer(PyTuple_GET_ITEM(given, 0)));
        int64_t dtype = integer(PyTuple_GET_ITEM(given, 1));
        if (dtype < FIRST_INDEX)
            a.floating = static_cast<DType>(dtype);
        else
            a.integer = static_cast<Index>(dtype - FIRST_INDEX);
        a.shape = sizes(PyTuple_GET_ITEM(given, 2), a.ndim);
        a.strides = sizes(PyTuple_GET_ITEM(given, 3), a.ndim);
        return a;
    }

    LossOptions options() {
        LossOptions o{};
        o.reduction = static_cast<Reduction>(number());
        o.ignore_index = number();
        o.label_smoothing = real();
        o.z_loss = real();
        o.softcap = real();
        return o;
    }

    // The address of the buffer that `loss_workspace_bytes` counts the bytes of, or 0; and of a loss that several
    // launches make, this one's first block, and the blocks and the rows that there are in all (blocks 0: there is one
    // launch).
    LossWorkspace workspace() {
        char* buffer = address();
        LossWorkspace w{};
        w.first = static_cast<int>(number());
        w.blocks = static_cast<int>(number());
        w.rows = number();
        w.shared = w.blocks > 0;
        if (buffer == nullptr) return w;
        w.counted = reinterpret_cast<double*>(buffer);
        w.counter = reinterpret_cast<unsigned*>(buffer + 4 * sizeof(double));
        w.parts = reinterpret_cast<double*>(buffer + HEAD);
        return w;
    }
    static constexpr int64_t HEAD = 64;  // bytes of the workspace before the parts

  private:
    PyObject* next() {
        if (args_ == end_) throw std::invalid_argument("expected more arguments");
        return *args_++;
    }

    const ssize_t* sizes(PyObject* tuple, int& count) {
        if (!PyTuple_Check(tuple)) throw std::invalid_argument("expected a shape and strides as tuples");
        count = static_cast<int>(PyTuple_GET_SIZE(tuple));
        std::vector<ssize_t>& made = sizes_.emplace_back(count);
        for (int i = 0; i < count; i++) made[i] = integer(PyTuple_GET_ITEM(tuple, i));
        return made.data();
    }

    PyObject* const* args_;
    PyObject* const* end_;
    std::deque<std::vector<ssize_t>> sizes_;  // that the arrays point to
};

// Where a launch goes. Python's lock is released while one exists.
class Place {
  public:
    explicit Place(Arguments& args)
        : device_(static_cast<int>(args.number())), stream_(reinterpret_cast<cudaStream_t>(args.address())) {
        check(cudaGetDevice(&before_), "finding a CUDA device");
        if (device_ != before_) check(cudaSetDevice(device_), "choosing a CUDA device");
        state_ = PyEval_SaveThread();
    }
    ~Place() {
        PyEval_RestoreThread(state_);
        if (device_ != before_) cudaSetDevice(before_);
    }
    Place(const Place&) = delete;

    operator cudaStream_t() const { return stream_; }

  private:
    int device_, before_ = 0;
    cudaStream_t stream_;
    PyThreadState* state_;
};

template <class F> PyObject* launched(PyObject* const* args, Py_ssize_t count, F run) {
    return guarded([&] {
        Arguments arguments(args, count);
        run(arguments);
        return Py_NewRef(Py_None);
    });
}

// --- what can be run -------------------------------------------------------------------------------------------------

std::string version(int number) { return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10); }

// why_not(): None, or the sentence that says what is missing.
PyObject* why_not(PyObject*, PyObject* const*, Py_ssize_t) {
    return guarded([]() -> PyObject* {
        int devices = 0, driver = 0, runtime = 0;
        cudaError_t status = cudaGetDeviceCount(&devices);
        if (status == cudaSuccess && devices > 0) return Py_NewRef(Py_None);
        cudaGetLastError();
        cudaDriverGetVersion(&driver);
        cudaRuntimeGetVersion(&runtime);
        std::string needed = "a GPU with a driver for CUDA " + version(runtime) + " or newer is needed, ";
        std::string found =
            driver == 0        ? "and no driver was found"
            : driver < runtime ? "and the driver found is for CUDA " + version(driver)
            : status == cudaSuccess || status == cudaErrorNoDevice
                ? "and no GPU was found"
                : std::string("and CUDA says ") + cudaGetErrorName(status) + " (" + cudaGetErrorString(status) + ")";
        return PyUnicode_FromString((needed + found).c_str());
    });
}

// --- rows ------------------------------------------------------------------------------------------------------------

// softmax(x, y or None, axis, log, out, device, stream)
PyObject* softmax(PyObject*, PyObject* const* args, Py_ssize_t count) {
    return launched(args, count, [](Arguments& a) {
        Array x = a.array(), y = a.array();
        int axis = static_cast<int>(a.number());
        bool log = a.flag();
        Array out = a.array();
        cuda::softmax(x, y, axis, log, out, Place(a));
    });
}

// --- losses ----------------------------------------------------------------------------------------------------------

// cross_entropy_blocks(logits, target, grad or None): how many blocks the forward takes.
PyObject* cross_entropy_blocks(PyObject*, PyObject* const* args, Py_ssize_t count) {
    return guarded([&] {
        Arguments a(args, count);
        Array logits = a.array(), target = a.array(), grad = a.array();
        return PyLong_FromLongLong(cuda::cross_entropy_blocks(logits, target, grad));
    });
}

// loss_workspace_bytes(blocks): for losses of so many blocks.
PyObject* loss_workspace_bytes(PyObject*, PyObject* const* args, Py_ssize_t count) {
    return guarded([&] {
        int64_t blocks = std::max<int64_t>(Arguments(args, count).number(), GATHERING_BLOCKS);
        return PyLong_FromLongLong(Arguments::HEAD + (3 * COUNTING_BLOCKS + 2 * blocks) * sizeof(double));
    });
}

// count_targets(target, weight, classes, *options, *workspace, device, stream)
PyObject* count_targets(PyObject*, PyObject* const* args, Py_ssize_t count) {
    return launched(args, count, [](Arguments& a) {
        Array target = a.array(), weight = a.array();
        int64_t classes = a.number();
        LossOptions o = a.options();
        LossWorkspace workspace = a.workspace();
        cuda::count_targets(target, weight, classes, o, workspace, Place(a));
    });
}

// cross_entropy(upstream, logits, target, weight, *options, loss, lse, argmax, grad, grad_target, flag, *workspace,
// device, stream)
PyObject* cross_entropy(PyObject*, PyObject* const* args, Py_ssize_t count) {
    return launched(args, count, [](Arguments& a) {
        Array upstream = a.array(), logits = a.array(), target = a.array(), weight = a.array();
        LossOptions o = a.options();
        Array loss = a.array(), lse = a.array(), argmax = a.array(), grad = a.array(), grad_target = a.array(),
              flag = a.array();
        LossWorkspace workspace = a.workspace();
        cuda::cross_entropy(upstream, logits, target, weight, o, loss, lse, argmax, grad, grad_target, flag, workspace,
                            Place(a));
    });
}

// cross_entropy_backward(upstream, logits, target, weight, lse, *options, grad, grad_target, *workspace, device,
// stream)
PyObject* cross_entropy_backward(PyObject*, PyObject* const* args, Py_ssize_t count) {
    return launched(args, count, [](Arguments& a) {
        Array upstream = a.array(), logits = a.array(), target = a.array(), weight = a.array(), lse = a.array();
        LossOptions o = a.options();
        Array grad = a.array(), grad_target = a.array();
        LossWorkspace workspace = a.workspace();
        cuda::cross_entropy_backward(upstream, logits, target, weight, lse, o, grad, grad_target, workspace, Place(a));
    });
}

// nll_loss(logp, target, weight, *options, loss, flag, *workspace, device, stream)
PyObject* nll_loss(PyObject*, PyObject* const* args, Py_ssize_t count) {
    return launched(args, count, [](Arguments& a) {
        Array logp = a.array(), target = a.array(), weight = a.array();
        LossOptions o = a.options();
        Array loss = a.array(), flag = a.array();
        LossWorkspace workspace = a.workspace();
        cuda::nll_loss(logp, target, weight, o, loss, flag, workspace, Place(a));
    });
}

// nll_loss_backward(upstream, logp, target, weight, *options, grad, *workspace, device, stream)
PyObject* nll_loss_backward(PyObject*, PyObject* const* args, Py_ssize_t count) {
    return launched(args, count, [](Arguments& a) {
        Array upstream = a.array(), logp = a.array(), target = a.array(), weight = a.array();
        LossOptions o = a.options();
        Array grad = a.array();
        LossWorkspace workspace = a.workspace();
        cuda::nll_loss_backward(upstream, logp, target, weight, o, grad, workspace, Place(a));
    });
}

// --- elements --------------------------------------------------------------------------------------------------------

// scale(x, factor, device, stream)
PyObject* scale(PyObject*, PyObject* const* args, Py_ssize_t count) {
    return launched(args, count, [](Arguments& a) {
        Array x = a.array(), factor = a.array();
        cuda::scale(x, factor, Place(a));
    });
}

// put(to, x, device, stream)
PyObject* put(PyObject*, PyObject* const* args, Py_ssize_t count) {
    return launched(args, count, [](Arguments& a) {
        Array to = a.array();
        double x = a.real();
        cuda::put(to, x, Place(a));
    });
}

// copy(from, to, index or None, ignored, device, stream)
PyObject* copy(PyObject*, PyObject* const* args, Py_ssize_t count) {
    return launched(args, count, [](Arguments& a) {
        Array from = a.array(), to = a.array(), index = a.array();
        int64_t ignored = a.number();
        cuda::copy(from, to, index, ignored, Place(a));
    });
}

// --- matrices --------------------------------------------------------------------------------------------------------

// An array of so many dimensions, or none.
Array of_dimensions(int count, const Array& a) {
    if (a.shape != nullptr && a.ndim != count)
        throw std::invalid_argument("expected an array of " + std::to_string(count) + " dimensions, got " + std::to_string(a.ndim));
    return a;
}

int64_t stride(const Array& a, int dim) { return a.strides[dim] / cpu::bytes_of(a.dtype()); }

Matmul product_of(Arguments& arguments) {
    Array a = of_dimensions(2, arguments.array()), b = of_dimensions(2, arguments.array());
    Array bias = of_dimensions(1, arguments.array()), pre = of_dimensions(2, arguments.array());
    Array out = of_dimensions(2, arguments.array());
    Matmul m{};
    m.rows = out.shape[0];
    m.columns = out.shape[1];
    m.depth = a.shape[1];
    m.dtype = a.dtype();
    m.a = a.data;
    m.a_row = stride(a, 0);
    m.a_depth = stride(a, 1);
    m.b = b.data;
    m.b_column = stride(b, 0);
    m.b_depth = stride(b, 1);
    m.bias = bias.data;
    m.bias_stride = bias ? stride(bias, 0) : 0;
    m.pre = pre.data;
    m.pre_row = pre ? stride(pre, 0) : 0;
    m.pre_column = pre ? stride(pre, 1) : 0;
    m.out = out.data;
    m.out_row = stride(out, 0);
    m.out_column = stride(out, 1);
    m.out_dtype = out.dtype();
    m.activation = static_cast<int>(arguments.number());
    m.accumulate = arguments.flag();
    return m;
}

// matmul(a (rows, depth), b (columns, depth), bias, pre, out, activation, accumulate, device, stream)
PyObject* matmul(PyObject*, PyObject* const* args, Py_ssize_t count) {
    return launched(args, count, [](Arguments& arguments) {
        Matmul m = product_of(arguments);
        Place place(arguments);
        if (cuda::hopper_takes(m, chip().capability))
            matmul_hopper(m, place);
        else
            matmul_tiles(m, place);
    });
}

// hopper_takes(the same): whether matmul would be the kernel for Hopper.
PyObject* hopper_takes(PyObject*, PyObject* const* args, Py_ssize_t count) {
    return guarded([&] {
        Arguments arguments(args, count);
        Matmul m = product_of(arguments);
        bool takes;
        {
            Place place(arguments);
            takes = cuda::hopper_takes(m, chip().capability);
        }
        return PyBool_FromLong(takes);
    });
}

DZ described(Arguments& a) {
    Array grad = of_dimensions(2, a.array()), saved = of_dimensions(2, a.array());
    Array dz = of_dimensions(2, a.array()), bias_grad = of_dimensions(1, a.array());
    DZ d{};
    d.rows = grad.shape[0];
    d.columns = grad.shape[1];
    d.dtype = grad.dtype();
    d.grad = grad.data;
    d.grad_row = stride(grad, 0);
    d.grad_column = stride(grad, 1);
    d.saved = saved.data;
    d.saved_row = saved ? stride(saved, 0) : 0;
    d.saved_column = saved ? stride(saved, 1) : 0;
    d.dz = dz.data;
    d.dz_row = dz ? stride(dz, 0) : 0;
    d.bias_grad = bias_grad.data;
    d.activation = static_cast<int>(a.number());
    return d;
}

// dz(grad, saved or None, dz or None, bias_grad or None, activation, workspace, device, stream)
PyObject* dz(PyObject*, PyObject* const* args, Py_ssize_t count) {
    return launched(args, count, [](Arguments& a) {
        DZ d = described(a);
        d.workspace = a.address();
        cuda::dz(d, Place(a));
    });
}

// dz_workspace_bytes(grad, saved or None, dz or None, bias_grad or None, activation)
PyObject* dz_workspace_bytes(PyObject*, PyObject* const* args, Py_ssize_t count) {
    return guarded([&] {
        Arguments a(args, count);
        return PyLong_FromLongLong(workspace_bytes(described(a)));
    });
}

// --- the module ------------------------------------------------------------------------------------------------------

PyMethodDef functions[] = {
    {"why_not", tape::fastcall(why_not), METH_FASTCALL, "What is missing to run a kernel; None: nothing."},
    {"softmax", tape::fastcall(softmax), METH_FASTCALL, nullptr},
    {"cross_entropy_blocks", tape::fastcall(cross_entropy_blocks), METH_FASTCALL, nullptr},
    {"loss_workspace_bytes", tape::fastcall(loss_workspace_bytes), METH_FASTCALL, nullptr},
    {"count_targets", tape::fastcall(count_targets), METH_FASTCALL, nullptr},
    {"cross_entropy", tape::fastcall(cross_entropy), METH_FASTCALL, nullptr},
    {"cross_entropy_backward", tape::fastcall(cross_entropy_backward), METH_FASTCALL, nullptr},
    {"nll_loss", tape::fastcall(nll_loss), METH_FASTCALL, nullptr},
    {"nll_loss_backward", tape::fastcall(nll_loss_backward), METH_FASTCALL, nullptr},
    {"scale", tape::fastcall(scale), METH_FASTCALL, nullptr},
    {"put", tape::fastcall(put), METH_FASTCALL, nullptr},
    {"copy", tape::fastcall(copy), METH_FASTCALL, nullptr},
    {"matmul", tape::fastcall(matmul), METH_FASTCALL, nullptr},
    {"hopper_takes", tape::fastcall(hopper_takes), METH_FASTCALL, nullptr},
    {"dz", tape::fastcall(dz), METH_FASTCALL, nullptr},
    {"dz_workspace_bytes", tape::fastcall(dz_workspace_bytes), METH_FASTCALL, nullptr},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef definition = {PyModuleDef_HEAD_INIT,
                          "tilegrad._C.cuda",
                          "The CUDA C++ kernels, for the use of tilegrad.cuda_kernels.",
                          -1,
                          functions,
                          nullptr,
                          nullptr,
                          nullptr,
                          nullptr};

}  // namespace

bool add_to(PyObject* module) {
    PyObject* cuda = PyModule_Create(&definition);
#ifdef CUDA_EMULATOR
    bool emulated = true;  // the arrays are in the memory of the CPU
#else
    bool emulated = false;
#endif
    return cuda != nullptr && PyModule_AddObject(cuda, "emulated", PyBool_FromLong(emulated)) == 0 &&
           PyModule_AddObject(module, "cuda", cuda) == 0;
}

}  // namespace tilegrad::cuda
