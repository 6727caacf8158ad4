#include "numpy.h"

#define NPY_NO_DEPRECATED_API NPY_1_22_API_VERSION
#define NPY_TARGET_VERSION NPY_1_22_API_VERSION
#define NO_IMPORT_ARRAY
#include <numpy/arrayobject.h>

namespace tilegrad {
namespace {

using cpu::DType;
using cpu::Index;

int bfloat16_number = -1;

std::optional<DType> floating_of(int number) {
    switch (number) {
        case NPY_FLOAT: return DType::float32;
        case NPY_DOUBLE: return DType::float64;
        case NPY_HALF: return DType::float16;
        default: break;
    }
    if (number == bfloat16_number) return DType::bfloat16;
    return std::nullopt;
}

std::optional<Index> integer_of(int number) {
    constexpr bool wide = sizeof(long) == 8;
    switch (number) {
        case NPY_BYTE: return Index::int8;
        case NPY_SHORT: return Index::int16;
        case NPY_INT: return Index::int32;
        case NPY_LONG: return wide ? Index::int64 : Index::int32;
        case NPY_LONGLONG: return Index::int64;
        case NPY_UBYTE: return Index::uint8;
        case NPY_USHORT: return Index::uint16;
        case NPY_UINT: return Index::uint32;
        case NPY_ULONG: return wide ? Index::uint64 : Index::uint32;
        case NPY_ULONGLONG: return Index::uint64;
        default: return std::nullopt;
    }
}

}  // namespace

cpu::Array array_of(PyObject* object) {
    if (!object || object == Py_None) return {};
    auto* array = reinterpret_cast<PyArrayObject*>(object);
    int number = PyArray_ISNOTSWAPPED(array) ? PyArray_TYPE(array) : NPY_NOTYPE;
    return {static_cast<char*>(PyArray_DATA(array)), PyArray_NDIM(array), PyArray_DIMS(array), PyArray_STRIDES(array),
            floating_of(number), integer_of(number)};
}

void know_bfloat16(int number) { bfloat16_number = number; }

}  // namespace tilegrad
