// What the targets of a loss over classes say of its rows.
#pragma once

#include "team.cuh"

namespace tilegrad::cuda {

// The weights of the classes, or 1 for each of them.
struct Weights {
    const char* data;
    int64_t step;  // bytes
    DType dtype;

    template <class A> __device__ A at(int64_t c) const {
        return data == nullptr ? A(1) : load<A>(data + c * step, dtype);
    }
};

// Class indices, one a row.
struct Indices {
    cpu::Lines lines;
    Index dtype;
    int64_t classes, ignored;
    Weights weights;
    bool* flag;  // set if one is out of range; or null
};

// What the index of a row says. One that is out of range makes the row NaN.
template <class A> struct Target {
    int64_t index;  // −1 if no class of the row is meant
    bool valid;     // not to be ignored
    bool bad;
    A weight;  // of the class; 0 if there is none
};

template <class A> __device__ Target<A> read_target(const Indices& indices, const cpu::Rows& rows, int64_t row) {
    int64_t index = load_index(row_of(rows, indices.lines, row), indices.dtype);
    bool valid = index != indices.ignored;
    bool there = valid && static_cast<uint64_t>(index) < static_cast<uint64_t>(indices.classes);
    if (valid && !there && indices.flag != nullptr) *indices.flag = true;  // racing threads store the same
    return {there ? index : -1, valid, valid && !there, there ? indices.weights.template at<A>(index) : A(0)};
}

}  // namespace tilegrad::cuda
