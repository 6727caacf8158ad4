// Large outputs take over the memory of those before them. A training step makes arrays of the same sizes again and again;
// fresh memory would be cleared by the operating system, page by page, which takes longer than many a kernel.

#include "memory.h"

#include "objects.h"

#define NPY_NO_DEPRECATED_API NPY_1_22_API_VERSION
#define NPY_TARGET_VERSION NPY_1_22_API_VERSION
#include <numpy/arrayobject.h>
#include <pthread.h>
#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <new>
#include <unordered_map>
#include <vector>

namespace tilegrad::memory {
namespace {

constexpr npy_intp LEAST = 256 << 10;               // bytes; below that malloc is as good
constexpr size_t HUGE_PAGE = size_t{2} << 20;       // bytes
constexpr size_t MOST_KEPT = size_t{1} << 30;  // bytes that nobody uses

// Sizes are rounded up to an eighth of their power of two, so that nearly equal ones can share.
size_t rounded(size_t size) {
    size_t step = 4096;
    while (step * 16 <= size) step *= 2;
    return (size + step - 1) / step * step;
}

class Cache {
  public:
    void* take(size_t size) {
        size = rounded(size);
        std::lock_guard<std::mutex> lock(mutex_);
        auto found = free_.find(size);
        if (found != free_.end()) {
            void* block = found->second;
            free_.erase(found);
            kept_ -= size;
            used_.emplace(block, size);
            return block;
        }
        void* block = made(size);
        if (!block) {  // what is kept may be what is missing
            release();
            block = made(size);
        }
        if (block) used_.emplace(block, size);
        return block;
    }

    void give_back(void* block) {
        std::lock_guard<std::mutex> lock(mutex_);
        auto found = used_.find(block);
        size_t size = found->second;
        used_.erase(found);
        if (size > MOST_KEPT) return std::free(block);
        free_.emplace(size, block);
        kept_ += size;
        while (kept_ > MOST_KEPT) {  // the largest first: they are the fewest
            auto largest = std::prev(free_.end());
            kept_ -= largest->first;
            std::free(largest->second);
            free_.erase(largest);
        }
    }

    size_t size_of(void* block) {
        std::lock_guard<std::mutex> lock(mutex_);
        return used_.at(block);
    }

    void release_all() {
        std::lock_guard<std::mutex> lock(mutex_);
        release();
    }

    // Around a fork, so that the child never finds it locked by a thread that it has not.
    void lock() { mutex_.lock(); }
    void unlock() { mutex_.unlock(); }

  private:
    static void* made(size_t size) {
        bool huge = size >= 2 * HUGE_PAGE;
        void* block = std::aligned_alloc(huge ? HUGE_PAGE : 64, huge ? (size + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE : size);
        if (block && huge) madvise(block, size, MADV_HUGEPAGE);
        return block;
    }

    void release() {
        for (auto& [size, block] : free_) std::free(block);
        free_.clear();
        kept_ = 0;
    }

    std::mutex mutex_;
    std::multimap<size_t, void*> free_;
    std::unordered_map<void*, size_t> used_;
    size_t kept_ = 0;
};

Cache& cache() {
    static Cache* made = new Cache;  // never freed: arrays may outlive everything else
    return *made;
}

}  // namespace

void* take(size_t bytes) {
    try {
        return cache().take(bytes);
    } catch (const std::bad_alloc&) {
        return nullptr;
    }
}

void give_back(void* block) { cache().give_back(block); }

namespace {

// --- as NumPy asks for memory ----------------------------------------------------------------------------------------

void* handler_malloc(void*, size_t size) { return take(size); }

void* handler_calloc(void*, size_t count, size_t size) {
    void* block = handler_malloc(nullptr, count * size);
    return block ? std::memset(block, 0, count * size) : nullptr;
}

void handler_free(void*, void* block, size_t) {
    if (block) cache().give_back(block);
}

void* handler_realloc(void*, void* block, size_t size) {
    void* next = handler_malloc(nullptr, size);
    if (!next || !block) return next;
    size_t before = cache().size_of(block);
    std::memcpy(next, block, before < size ? before : size);
    cache().give_back(block);
    return next;
}

PyDataMem_Handler handler = {
    "tilegrad", 1, {nullptr, handler_malloc, handler_calloc, handler_realloc, handler_free},
};
PyObject* handler_capsule = nullptr;

// empty(shape, dtype): as NumPy's.
PyObject* empty_of_shape(PyObject*, PyObject* const* args, Py_ssize_t count) {
    if (count != 2 || !PyTuple_Check(args[0]) || PyTuple_GET_SIZE(args[0]) > NPY_MAXDIMS || !PyArray_DescrCheck(args[1])) {
        PyErr_SetString(PyExc_TypeError, "empty: expected a tuple of sizes and a NumPy dtype");
        return nullptr;
    }
    npy_intp shape[NPY_MAXDIMS];
    int dims = static_cast<int>(PyTuple_GET_SIZE(args[0]));
    for (int i = 0; i < dims; i++) {
        shape[i] = PyLong_AsSsize_t(PyTuple_GET_ITEM(args[0], i));
        if (shape[i] == -1 && PyErr_Occurred()) return nullptr;
    }
    return memory::empty(dims, shape, args[1]);
}

PyObject* release_memory(PyObject*, PyObject*) {
    cache().release_all();
    Py_RETURN_NONE;
}

PyMethodDef functions[] = {
    {"empty", tape::fastcall(empty_of_shape), METH_FASTCALL, "An array in memory that was used before, if there is some."},
    {"release_memory", release_memory, METH_NOARGS, "Give the memory that is kept for later arrays back to the system."},
    {nullptr, nullptr, 0, nullptr},
};

int import_numpy() {
    import_array1(-1);
    return 0;
}

}  // namespace

PyObject* empty(int dims, const Py_ssize_t* shape, PyObject* dtype) {
    auto* sizes = const_cast<npy_intp*>(shape);
    auto* descr = reinterpret_cast<PyArray_Descr*>(dtype);
    npy_intp bytes = PyDataType_ELSIZE(descr);
    for (int i = 0; i < dims; i++) bytes = shape[i] > 0 && bytes < LEAST ? bytes * shape[i] : bytes * (shape[i] != 0);
    Py_INCREF(dtype);  // NumPy takes it over
    if (bytes < LEAST) return PyArray_Empty(dims, sizes, descr, 0);
    PyObject* before = PyDataMem_SetHandler(handler_capsule);
    if (!before) {
        Py_DECREF(dtype);
        return nullptr;
    }
    PyObject* array = PyArray_Empty(dims, sizes, descr, 0);
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    Py_XDECREF(PyDataMem_SetHandler(before));
    Py_DECREF(before);
    PyErr_Restore(type, value, trace);
    return array;
}

bool add_to(PyObject* module) {
    if (import_numpy() < 0) return false;
    pthread_atfork([] { cache().lock(); }, [] { cache().unlock(); }, [] { cache().unlock(); });
    handler_capsule = PyCapsule_New(&handler, "mem_handler", nullptr);
    return handler_capsule && PyModule_AddFunctions(module, functions) == 0;
}

}  // namespace tilegrad::memory
