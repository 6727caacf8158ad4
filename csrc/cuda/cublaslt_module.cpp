// cuBLASLt for Python: pointers are integers, matrices tuples of a pointer and a leading dimension.

#include "cublaslt_module.h"

#include <cstring>
#include <iterator>

#include "../objects.h"
#include "../operations.h"
#include "cublaslt.h"
#include "cublaslt_libraries.h"

namespace tilegrad::cublaslt {
namespace {

using tape::Raised;
using tape::Ref;

template <class F> PyObject* guarded(F f) {
    return tape::guarded([&]() -> PyObject* {
        try {
            return f();
        } catch (const NoKernel& error) {
            PyErr_SetString(PyExc_NotImplementedError, error.what());
            return nullptr;
        }
    });
}

DataType type_called(const char* name) {
    if (!std::strcmp(name, "float16")) return DataType::float16;
    if (!std::strcmp(name, "bfloat16")) return DataType::bfloat16;
    if (!std::strcmp(name, "float32")) return DataType::float32;
    if (!std::strcmp(name, "float64")) return DataType::float64;
    throw std::invalid_argument("cuBLASLt multiplies float16, bfloat16, float32 and float64, not " + std::string(name));
}

const Traits* epilogue_called(const char* name) {
    for (const Traits& traits : EPILOGUES)
        if (!std::strcmp(name, traits.name)) return &traits;
    throw std::invalid_argument("cuBLASLt has no epilogue " + std::string(name));
}

using Address = unsigned long long;
void* pointer(Address address) { return reinterpret_cast<void*>(static_cast<uintptr_t>(address)); }

struct Arguments {
    Matmul call;
    void* scratch;
};

Arguments arguments_of(PyObject* positional, PyObject* named) {
    static const char* names[] = {
        "shape", "dtype", "a", "b", "d",
        "out_dtype", "c", "alpha", "beta", "epilogue", "bias", "aux", "tf32", "workspace", "device", "stream",
        "scratch", nullptr,
    };
    const char *dtype = nullptr, *out_dtype = nullptr, *epilogue = "none";
    long long m, n, k, lda, ldb, ldd, ldc = 0, ld_aux = 0;
    Address a, b, d, c = 0, bias = 0, aux = 0, workspace = 0, bytes = 0, stream = 0, scratch = 0;
    int transpose_a, transpose_b, tf32 = 0, device = 0;
    double alpha = 1, beta = 0;
    if (!PyArg_ParseTupleAndKeywords(
            positional, named, "(LLL)s(KLp)(KLp)(KL)|$z(KL)ddsK(KL)p(KK)iKK", const_cast<char**>(names),
            &m, &n, &k, &dtype, &a, &lda, &transpose_a, &b, &ldb, &transpose_b, &d, &ldd,
            &out_dtype, &c, &ldc, &alpha, &beta, &epilogue, &bias, &aux, &ld_aux, &tf32, &workspace, &bytes, &device,
            &stream, &scratch))
        throw Raised{};
    DataType type = type_called(dtype);
    Matmul call{};
    call.m = m, call.n = n, call.k = k;
    call.type = type;
    call.out_type = out_dtype ? type_called(out_dtype) : type;
    call.tf32 = tf32;
    call.a = {pointer(a), lda, transpose_a != 0};
    call.b = {pointer(b), ldb, transpose_b != 0};
    call.c = pointer(c), call.ldc = ldc;
    call.d = pointer(d), call.ldd = ldd;
    call.alpha = alpha, call.beta = beta;
    call.epilogue = epilogue_called(epilogue);
    call.bias = pointer(bias);
    call.aux = pointer(aux), call.ld_aux = ld_aux;
    call.workspace = pointer(workspace), call.workspace_bytes = bytes;
    call.device = device, call.stream = pointer(stream);
    return {call, pointer(scratch)};
}

// load(paths): (version, file)
PyObject* load_python(PyObject*, PyObject* sequence) {
    return guarded([&]() -> PyObject* {
        Ref list = tape::checked(PySequence_Fast(sequence, "cublaslt_load: expected a sequence of paths"));
        std::vector<std::string> paths;
        for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(static_cast<PyObject*>(list)); i++) {
            const char* path = PyUnicode_AsUTF8(PySequence_Fast_GET_ITEM(static_cast<PyObject*>(list), i));
            if (!path) throw Raised{};
            paths.emplace_back(path);
        }
        const Loaded* found;
        {
            cpu::Unlocked unlocked;
            found = &load(paths);
        }
        return Py_BuildValue("ns", static_cast<Py_ssize_t>(found->version), found->path.c_str());
    });
}

PyObject* takes_python(PyObject*, PyObject* positional, PyObject* named) {
    return guarded([&] { return PyBool_FromLong(refusal(arguments_of(positional, named).call).empty()); });
}

PyObject* matmul_python(PyObject*, PyObject* positional, PyObject* named) {
    return guarded([&] {
        Arguments arguments = arguments_of(positional, named);
        {
            cpu::Unlocked unlocked;
            run(arguments.call);
        }
        return Py_NewRef(Py_None);
    });
}

PyObject* tune_python(PyObject*, PyObject* positional, PyObject* named) {
    return guarded([&] {
        Arguments arguments = arguments_of(positional, named);
        if (!arguments.scratch) throw std::invalid_argument("tuning needs scratch to write D to");
        float microseconds;
        {
            cpu::Unlocked unlocked;
            microseconds = tune(arguments.call, arguments.scratch);
        }
        return PyFloat_FromDouble(microseconds);
    });
}

PyObject* workspace_bytes_python(PyObject*, PyObject* index) {
    return guarded([&] { return PyLong_FromSize_t(workspace_bytes(static_cast<int>(tape::integer(index)))); });
}

PyCFunction with_names(PyObject* (*function)(PyObject*, PyObject*, PyObject*)) {
    return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

constexpr int NAMED = METH_VARARGS | METH_KEYWORDS;

PyMethodDef functions[] = {
    {"cublaslt_load", load_python, METH_O, "Find cuBLASLt, the paths last: its version (130002 for 13.0.2) and file."},
    {"cublaslt_takes", with_names(takes_python), NAMED, "Whether the rules allow a call."},
    {"cublaslt_matmul", with_names(matmul_python), NAMED, "D = epilogue(alpha·op(A)·op(B) + beta·C)."},
    {"cublaslt_tune", with_names(tune_python), NAMED, "Time the kernels for a call, keep the best: its microseconds."},
    {"cublaslt_workspace_bytes", workspace_bytes_python, METH_O, "The workspace that is recommended for a device."},
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace

bool add_to(PyObject* module) {
    Ref names(PyTuple_New(std::size(EPILOGUES)));
    if (!names) return false;
    for (size_t i = 0; i < std::size(EPILOGUES); i++) {
        PyObject* name = PyUnicode_FromString(EPILOGUES[i].name);
        if (!name) return false;
        PyTuple_SET_ITEM(static_cast<PyObject*>(names), i, name);
    }
    if (PyModule_AddObjectRef(module, "CUBLASLT_EPILOGUES", names) < 0) return false;
    return PyModule_AddFunctions(module, functions) == 0;
}

}  // namespace tilegrad::cublaslt
