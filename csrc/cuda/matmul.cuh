// What the kernels of the matrix product share: the order of the tiles, and what becomes of a sum.
#pragma once

#include "activation.cuh"
#include "elements.cuh"
#include "matmul.h"

namespace tilegrad::cuda {

// Results of 16 bits need no more than rough activations.
template <class T> struct MathOf { using type = Rough; };
template <> struct MathOf<float> { using type = Accurate; };
template <> struct MathOf<double> { using type = Accurate; };

// --- the order of the tiles ------------------------------------------------------------------------------------------

// Tiles go down GROUP rows of tiles and then on to the next column of tiles, so that those which run at the same time
// form a block that is about as wide as it is high: what they read is then least, and comes out of L2.
struct TileAt { int64_t row, column; };

template <int GROUP> __device__ inline TileAt tile_at(int64_t tile, int64_t tiles_down, int64_t tiles_across) {
    int64_t group = tile / (GROUP * tiles_across), in_group = tile - group * GROUP * tiles_across;
    int64_t left = tiles_down - group * GROUP, height = left < GROUP ? left : GROUP;
    return {group * GROUP + in_group % height, in_group / height};
}

// --- what becomes of the sums ----------------------------------------------------------------------------------------

// As in Matmul, of kernels for operands of type T.
template <class T> struct Epilogue {
    int64_t rows, columns;
    const T* bias;
    int64_t bias_stride;
    T* pre;
    int64_t pre_row, pre_column;
    void* out;
    int64_t out_row, out_column;
    bool out_float;  // though T has 16 bits
    bool accumulate;
    int activation;

    Epilogue() = default;
    explicit Epilogue(const Matmul& m)
        : rows(m.rows), columns(m.columns), bias(static_cast<const T*>(m.bias)), bias_stride(m.bias_stride),
          pre(static_cast<T*>(m.pre)), pre_row(m.pre_row), pre_column(m.pre_column), out(m.out), out_row(m.out_row),
          out_column(m.out_column), out_float(m.out_dtype == DType::float32 && m.dtype != DType::float32),
          accumulate(m.accumulate), activation(m.activation) {}

    // Of a column of B, that is: of z.
    __device__ Compute<T> bias_of(int64_t column) const {
        return bias == nullptr ? Compute<T>(0) : widened(bias[column * bias_stride]);
    }

    __device__ void store_pre(int64_t row, int64_t column, Compute<T> z) const {
        pre[row * pre_row + column * pre_column] = rounded<T>(z);
    }

    __device__ void store(int64_t row, int64_t column, Compute<T> y) const {
        int64_t at = row * out_row + column * out_column;
        if (out_float) {
            store(static_cast<float*>(out) + at, y);
        } else {
            store(static_cast<T*>(out) + at, y);
        }
    }

    template <class O> __device__ void store(O* to, Compute<T> y) const {
        *to = rounded<O>(accumulate ? widened(*to) + y : y);
    }

    // Two neighbours of a row in one access.
    __device__ void store_pair(int64_t row, int64_t column, float first, float second) const {
        int64_t at = row * out_row + column;
        if (out_float) {
            store_pair(static_cast<float*>(out) + at, first, second);
        } else {
            store_pair(static_cast<T*>(out) + at, first, second);
        }
    }

    template <class O> __device__ void store_pair(O* to, float first, float second) const {
        auto* pair = reinterpret_cast<Pack<O, 2>*>(to);
        Pack<O, 2> before = accumulate ? *pair : Pack<O, 2>{};
        if (accumulate) first += widened(before.x[0]), second += widened(before.x[1]);
        *pair = {rounded<O>(first), rounded<O>(second)};
    }
};

// Registers cannot be indexed by a variable. A loop that works on the first STEP of them and then moves the others down
// is as good, and its body, with all the activations, is there once instead of once for each step.
template <int STEP, int N, class T> __device__ inline void move_down(T (&x)[N]) {
#pragma unroll
    for (int i = 0; i + STEP < N; i++) x[i] = x[i + STEP];
}

template <class Math, int N, class T> __device__ inline void activate(int activation, T (&z)[N]) {
    of_activation(activation, [&](auto act) {
#pragma unroll
        for (int i = 0; i < N; i++) z[i] = act.of(Math{}, z[i]);
    });
}

}  // namespace tilegrad::cuda
