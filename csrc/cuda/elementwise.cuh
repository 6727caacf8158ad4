// What is done to one element at a time.
#pragma once

#include "targets.cuh"

namespace tilegrad::cuda {

// x *= factor, a number of the device; where it is 1, x is not gone over. x begins on a multiple of its own size.
template <class T> __global__ void scale_elements(T* x, int64_t count, const char* factor, DType factor_dtype) {
    constexpr int W = PER_VECTOR<T>;
    Compute<T> by = load<Compute<T>>(factor, factor_dtype);
    if (by == 1) return;
    int shift = static_cast<int>(reinterpret_cast<uintptr_t>(x) / sizeof(T) % W);
    int64_t vectors = (shift + count + W - 1) / W, step = static_cast<int64_t>(gridDim.x) * blockDim.x;
    for (int64_t v = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; v < vectors; v += step) {
        int64_t at = v * W - shift;
        if (at >= 0 && at + W <= count) {
            Vector<T> found = *reinterpret_cast<const Vector<T>*>(x + at);
#pragma unroll
            for (int j = 0; j < W; j++) found.x[j] = rounded<T>(widened(found.x[j]) * by);
            *reinterpret_cast<Vector<T>*>(x + at) = found;
        } else {
            for (int64_t i = max(at, int64_t{0}); i < min(at + W, count); i++) x[i] = rounded<T>(widened(x[i]) * by);
        }
    }
}

// One array into another of the same shape, perhaps of another dtype. Rows whose index is to be ignored become 0: they
// may hold NaN, which no factor of 0 would take out of a product.
struct CopyCall {
    cpu::Rows rows;
    int64_t columns;
    cpu::Lines from, to, index;  // no index: all rows count
    DType from_dtype, to_dtype;
    Index index_dtype;
    int64_t ignored;
};

template <class A> __global__ void copy_elements(const __grid_constant__ CopyCall call) {
    int64_t count = call.rows.count * call.columns, step = static_cast<int64_t>(gridDim.x) * blockDim.x;
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
        int64_t row = i / call.columns, column = i - row * call.columns;
        bool counts = call.index.data == nullptr ||
                      load_index(row_of(call.rows, call.index, row), call.index_dtype) != call.ignored;
        A x = counts ? load<A>(row_of(call.rows, call.from, row) + column * call.from.column, call.from_dtype) : A(0);
        store(row_of(call.rows, call.to, row) + column * call.to.column, call.to_dtype, x);
    }
}

}  // namespace tilegrad::cuda
