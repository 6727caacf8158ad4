// What is done to each element of a product: bias and activation, their derivative with the sums over the rows, and a
// factor.
#pragma once

#include "vec.h"
#include "activations.h"

namespace tilegrad::cpu::TG_ISA {

// --- forward ---------------------------------------------------------------------------------------------------------

// z + bias at column i, which also goes to `pre`. The activation takes it as it was before it is rounded there.
template <class Z, class S, class Part>
TG_INLINE vec<compute<S>> with_bias(const Z* z, const S* bias, S* pre, int64_t i, Part part) {
    vec<compute<S>> sum = load(z + i, part);
    if (bias) sum += load(bias + i, part);
    if (pre) store(pre + i, sum, part);
    return sum;
}

template <class Z, class S, class Act>
static void epilogue_of(Z*, S*, Act, const Epilogue& e, int64_t first, int64_t last) {
    using T = compute<S>;
    const S* bias = (const S*)e.bias;
    for (int64_t row = first; row < last; row++) {
        const Z* z = (const Z*)(e.z + row * e.z_row);
        S* pre = e.pre ? (S*)(e.pre + row * e.pre_row) : nullptr;
        S* out = (S*)(e.out + row * e.out_row);
        for_vectors<T>(e.columns, [&](int64_t i, auto part) {
            vec<T> y = Act::of(with_bias(z, bias, pre, i, part));
            if constexpr (Act::gated) y *= with_bias(z, bias, pre, e.columns + i, part);
            store(out + i, y, part);
        });
    }
}

static void epilogue(const Epilogue& e, int64_t first, int64_t last) {
    of_dtype(e.dtype, [&](auto* type) {
        of_activation(e.activation, [&](auto act) {
            if (e.z_dtype == e.dtype) return epilogue_of(type, type, act, e, first, last);
            if constexpr (sizeof *type == 2) epilogue_of((float*)nullptr, type, act, e, first, last);
        });
    });
}

// --- backward --------------------------------------------------------------------------------------------------------

// Column sums are added up in the computing type over a block of rows, and then in double. They are kept for a strip of
// columns at a time, as wide as this much memory, since rows are read fastest from end to end.
constexpr int64_t SUM_ROWS = 32, SUM_BYTES = 32768;

// Elements that lie `step` bytes apart, copied to `room`.
template <class S> TG_INLINE const S* copied_dense(const char* from, int64_t step, int64_t count, S* room) {
    for (int64_t i = 0; i < count; i++) memcpy(room + i, from + i * step, sizeof(S));
    return room;
}

template <class S, class Act>
static void epilogue_backward_of(S*, Act, const EpilogueBackward& e, int64_t first, int64_t last) {
    using T = compute<S>;
    constexpr int halves = Act::gated ? 2 : 1;
    constexpr int64_t width = SUM_BYTES / sizeof(T) / halves;
    alignas(TG_BYTES) T sums[halves][width];
    S room[width];
    bool wants_sums = e.bias_sums, dense = e.grad_column == sizeof(S);
    bool in_place = Act::linear && e.dz == e.grad;
    int64_t strip = wants_sums || !dense ? width : e.columns;

    for (int64_t row0 = first; row0 < last; row0 += SUM_ROWS) {
        for (int64_t column0 = 0; column0 < e.columns; column0 += strip) {
            int64_t count = least(strip, e.columns - column0);
            int64_t covered = (count + W<T> - 1) / W<T> * W<T>;  // the last vector may hold fewer columns
            for (int half = 0; wants_sums && half < halves; half++) memset(sums[half], 0, covered * sizeof(T));
            const S* grad = nullptr;
            for (int64_t row = row0; row < least(row0 + SUM_ROWS, last); row++) {
                const char* there = e.grad + row * e.grad_row + column0 * e.grad_column;
                if (dense)
                    grad = (const S*)there;
                else if (row == row0 || e.grad_row != 0)
                    grad = copied_dense(there, e.grad_column, count, room);
                const S* saved = Act::linear ? nullptr : (const S*)(e.saved + row * e.saved_row) + column0;
                S* dz = e.dz && !in_place ? (S*)(e.dz + row * e.dz_row) + column0 : nullptr;
                for_vectors<T>(count, [&](int64_t i, auto part) {
                    auto put = [&](int half, vec<T> value) {
                        if (dz) store(dz + half * e.columns + i, value, part);
                        if (wants_sums) store(sums[half] + i, load(sums[half] + i) + value);
                    };
                    vec<T> g = load(grad + i, part);
                    if constexpr (Act::gated) {
                        vec<T> gate = load(saved + i, part), up = load(saved + e.columns + i, part);
                        put(0, g * up * Act::grad(gate));
                        put(1, g * Act::of(gate));
                    } else if constexpr (Act::linear) {
                        put(0, g);
                    } else {
                        put(0, g * Act::grad(load(saved + i, part)));
                    }
                });
            }
            for (int half = 0; wants_sums && half < halves; half++)
                for (int64_t i = 0; i < count; i++) e.bias_sums[half * e.columns + column0 + i] += sums[half][i];
        }
    }
}

static void epilogue_backward(const EpilogueBackward& e, int64_t first, int64_t last) {
    of_dtype(e.dtype, [&](auto* type) {
        of_activation(e.activation, [&](auto act) { epilogue_backward_of(type, act, e, first, last); });
    });
}

// --- a factor --------------------------------------------------------------------------------------------------------

template <class S> static void scale_of(S* data, int64_t count, double factor) {
    using T = compute<S>;
    for_vectors<T>(count, [&](int64_t i, auto part) {
        store(data + i, load(data + i, part) * static_cast<T>(factor), part);
    });
}

static void scale(DType dtype, char* data, int64_t count, double factor) {
    of_dtype(dtype, [&](auto* type) { scale_of((decltype(type))data, count, factor); });
}

}  // namespace tilegrad::cpu::TG_ISA
