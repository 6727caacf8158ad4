#include <algorithm>

#include "cublaslt.h"

namespace tilegrad::cublaslt {
namespace {

using std::to_string;

int64_t size_of(DataType type) { return type == DataType::float64 ? 8 : type == DataType::float32 ? 4 : 2; }

std::string name_of(DataType type) {
    switch (type) {
        case DataType::float16: return "float16";
        case DataType::bfloat16: return "bfloat16";
        case DataType::float32: return "float32";
        default: return "float64";
    }
}

std::string shape(int64_t rows, int64_t columns) { return "(" + to_string(rows) + ", " + to_string(columns) + ")"; }

std::string wrong_sizes(const Matmul& c) {
    for (int64_t size : {c.m, c.n, c.k})
        if (size < 1 || size > INT32_MAX)
            return "(m, n, k) = (" + to_string(c.m) + ", " + to_string(c.n) + ", " + to_string(c.k) +
                   ") are not all from 1 to 2147483647";
    return {};
}

std::string wrong_types(const Matmul& c) {
    bool narrow = c.type == DataType::float16 || c.type == DataType::bfloat16;
    if (c.out_type != c.type && !(narrow && c.out_type == DataType::float32))
        return "a product of " + name_of(c.type) + " cannot be stored as " + name_of(c.out_type);
    if (c.tf32 && c.type != DataType::float32) return "TF32 is for float32, and this is " + name_of(c.type);
    if (c.type == DataType::float64 && !c.epilogue->in_float64)
        return std::string("epilogue ") + c.epilogue->name + " does not exist for float64";
    return {};
}

// About a matrix that is stored (…, columns).
std::string wrong_matrix(const std::string& name, const void* data, int64_t ld, int64_t columns, DataType type) {
    if (!data) return name + " is a null pointer";
    if (ld < columns)
        return name + " has " + to_string(columns) + " columns and a leading dimension of " + to_string(ld);
    if (reinterpret_cast<uintptr_t>(data) % size_of(type))
        return name + " is not aligned to its elements of " + to_string(size_of(type)) + " bytes";
    return {};
}

std::string wrong_c(const Matmul& c) {
    if (c.beta == 0) return {};
    if (c.c == c.d && c.ldc != c.ldd) return "C is D, and has another leading dimension";
    return wrong_matrix("C", c.c, c.ldc, c.n, c.out_type);
}

std::string wrong_bias(const Matmul& c) {
    return c.epilogue->bias ? wrong_matrix("bias", c.bias, 1, 1, c.out_type) : std::string();
}

// cublasLt.h says at CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD which multiples are taken.
std::string wrong_aux(const Matmul& c) {
    if (c.epilogue->aux == Aux::none) return {};
    int64_t multiple = c.epilogue->aux == Aux::mask ? 128 : 8;
    const char* unit = c.epilogue->aux == Aux::mask ? " bits" : " elements";
    if (!c.aux || reinterpret_cast<uintptr_t>(c.aux) % 16) return "aux is not a pointer aligned to 16 bytes";
    if (c.ld_aux < c.n || c.ld_aux % multiple)
        return "aux has a leading dimension of " + to_string(c.ld_aux) + unit + ", and " + to_string(c.n) +
               " columns need a multiple of " + to_string(multiple) + " that is no less";
    return {};
}

std::string wrong_workspace(const Matmul& c) {
    if (!c.workspace_bytes || (c.workspace && reinterpret_cast<uintptr_t>(c.workspace) % 256 == 0)) return {};
    return "workspace is not a pointer aligned to 256 bytes";
}

}  // namespace

std::string refusal(const Matmul& c) {
    for (const std::string& why : {
             wrong_sizes(c),
             wrong_types(c),
             wrong_matrix("A", c.a.data, c.a.ld, c.a.transposed ? c.m : c.k, c.type),
             wrong_matrix("B", c.b.data, c.b.ld, c.b.transposed ? c.k : c.n, c.type),
             wrong_c(c),
             wrong_matrix("D", c.d, c.ldd, c.n, c.out_type),
             wrong_bias(c),
             wrong_aux(c),
             wrong_workspace(c),
         })
        if (!why.empty()) return why;
    return {};
}

std::string description(const Matmul& c) {
    std::string types = name_of(c.type);
    if (c.out_type != c.type) types += " to " + name_of(c.out_type);
    return "for " + shape(c.m, c.k) + "·" + shape(c.k, c.n) + " of " + types + " with epilogue " + c.epilogue->name;
}

uint32_t alignment(const void* pointer) {
    auto address = reinterpret_cast<uintptr_t>(pointer);
    return address ? static_cast<uint32_t>(std::min<uintptr_t>(256, address & -address)) : 256;
}

}  // namespace tilegrad::cublaslt
