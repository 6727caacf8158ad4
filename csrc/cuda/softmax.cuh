// Softmax and log-softmax of rows, and their gradients.
//
// With m = max x and s = Σ exp(x − m) over a row,
//
//     log softmax(x) = (x − m) − log s         dx = dy − exp(y)·Σ dy
//     softmax(x) = exp(x − m) / s              dx = y·(dy − Σ dy·y)
//
// The maximum comes first and the sum after it: kept together from element to element, as an online softmax does, they
// cost twice the instructions. A NaN or +inf in a row, or nothing but −inf, makes the row NaN by the arithmetic itself.
#pragma once

#include "cells.cuh"

namespace tilegrad::cuda {

struct SoftmaxCall {
    cpu::Rows rows;
    int columns;
    bool log, holds_y;
    cpu::Lines x;  // forward: the input; backward: the gradient of the output
    cpu::Lines y;  // backward: the output of the forward
    cpu::Lines out;
    DType in_dtype, out_dtype;
    Plan plan;
};

// --- the sum of a row's exponentials ---------------------------------------------------------------------------------

// The maximum of some elements, and the sum of their exponentials above it.
template <class A> struct LogSum {
    A top, sum;
};

// A maximum as it may be subtracted: that of nothing but −inf as 0, since −inf − (−inf) would be NaN.
template <class A> __device__ A finite(A top) { return top == -infinity<A>() ? A(0) : top; }

struct Joined {
    template <class A> __device__ LogSum<A> operator()(const LogSum<A>& a, const LogSum<A>& b) const {
        A top = Larger()(a.top, b.top);
        return {top, a.sum * exp(finite(a.top) - finite(top)) + b.sum * exp(finite(b.top) - finite(top))};
    }
};

// --- forward ---------------------------------------------------------------------------------------------------------

template <class Cells>
__device__ void softmax_of_row(Cells& cells, const SoftmaxCall& call, const Team& team, const OutRow& out,
                               char* scratch) {
    using A = typename Cells::A;
    constexpr int W = Cells::W;
    const Teams& teams = call.plan.teams;
    cells.ask();
    cells.wait();
    A top = -infinity<A>();
    cells.each([&](const A(&x)[W], const A(&)[W], int) {
#pragma unroll
        for (int j = 0; j < W; j++) top = Larger()(top, x[j]);
    });
    top = reduce(top, Larger(), teams, scratch);
    A origin = finite(top), sum = 0;
    Exp<typename Cells::Element> above(origin);
    bool kept = !call.log && cells.keeps();
    if (kept) {
        cells.replace([&](A(&x)[W], const A(&)[W], int) {
#pragma unroll
            for (int j = 0; j < W; j++) sum += x[j] = above(x[j]);
        });
    } else {
        cells.each([&](const A(&x)[W], const A(&)[W], int) {
#pragma unroll
            for (int j = 0; j < W; j++) sum += above(x[j]);
        });
    }
    sum = above.corrected(reduce(sum, Plus(), teams, scratch + call.plan.scratch));
    LogSum<A> all = reduce_over_cluster(LogSum<A>{top, sum}, Joined(), teams, team, scratch + 2 * call.plan.scratch);
    Exp<typename Cells::Element> above_all(finite(all.top));
    A log_sum = log(all.sum),
      scale = (kept ? above.corrected(exp(origin - finite(all.top))) : above_all.corrected(A(1))) / all.sum;
    if (call.log) {
        cells.write(out, {}, [&](const A(&x)[W], const A(&)[W], int, A(&to)[W], A(&)[W]) {
#pragma unroll
            for (int j = 0; j < W; j++) to[j] = (x[j] - all.top) - log_sum;
        });
    } else {
        cells.write(out, {}, [&](const A(&x)[W], const A(&)[W], int, A(&to)[W], A(&)[W]) {
#pragma unroll
            for (int j = 0; j < W; j++) to[j] = (kept ? x[j] : above_all(x[j])) * scale;
        });
    }
    leave(teams);
}

// --- backward --------------------------------------------------------------------------------------------------------

// x is the gradient of the output, y the output.
template <class Cells>
__device__ void softmax_backward_of_row(Cells& cells, const SoftmaxCall& call, const Team& team, const OutRow& out,
                                        char* scratch) {
    using A = typename Cells::A;
    constexpr int W = Cells::W;
    const Teams& teams = call.plan.teams;
    cells.ask();
    cells.wait();
    A sum = 0;
    if (call.log) {
        cells.each([&](const A(&x)[W], const A(&)[W], int) {
#pragma unroll
            for (int j = 0; j < W; j++) sum += x[j];
        });
    } else {
        cells.each([&](const A(&x)[W], const A(&y)[W], int) {
#pragma unroll
            for (int j = 0; j < W; j++) sum = fma(x[j], y[j], sum);
        });
    }
    sum = reduce(sum, Plus(), teams, scratch);
    sum = reduce_over_cluster(sum, Plus(), teams, team, scratch + 2 * call.plan.scratch);
    Exp<typename Cells::Element> exp_of(0);
    if (call.log) {
        cells.write(out, {}, [&](const A(&x)[W], const A(&y)[W], int, A(&to)[W], A(&)[W]) {
#pragma unroll
            for (int j = 0; j < W; j++) to[j] = x[j] - exp_of(y[j]) * sum;
        });
    } else {
        cells.write(out, {}, [&](const A(&x)[W], const A(&y)[W], int, A(&to)[W], A(&)[W]) {
#pragma unroll
            for (int j = 0; j < W; j++) to[j] = y[j] * (x[j] - sum);
        });
    }
    leave(teams);
}

// --- the kernels -----------------------------------------------------------------------------------------------------

template <class T, bool BACKWARD>
__global__ void __launch_bounds__(MAX_THREADS, 2) softmax_vectors(const __grid_constant__ SoftmaxCall call) {
    EXTERN_SHARED(char, memory);
    Team team(call.plan.teams);
    bool exists = team.row < call.rows.count;
    int64_t row = exists ? team.row : 0;
    InRow in[2] = {{row_of(call.rows, call.x, row), 0, call.in_dtype, true, nullptr},
                   {row_of(call.rows, call.y, row), 0, call.in_dtype, BACKWARD && call.holds_y, nullptr}};
    OutRow out = {row_of(call.rows, call.out, row), 0, call.out_dtype, nullptr};
    T filler = rounded<T>(BACKWARD ? Compute<T>(0) : -infinity<Compute<T>>());
    VectorCells<T, T> cells(in, in[0].data, exists ? call.columns : 0, filler, call.plan, team,
                            memory + call.plan.before_cells());
    if constexpr (BACKWARD)
        softmax_backward_of_row(cells, call, team, out, memory);
    else
        softmax_of_row(cells, call, team, out, memory);
}

template <class A, bool BACKWARD>
__global__ void __launch_bounds__(MAX_THREADS, 2) softmax_tiles(const __grid_constant__ SoftmaxCall call) {
    EXTERN_SHARED(char, memory);
    Team team(call.plan.teams);
    bool exists = team.row < call.rows.count;
    int64_t row = exists ? team.row : 0, first = team.row - team.index;
    InRow in[2] = {
        {row_of(call.rows, call.x, row), call.x.column, call.in_dtype, true, row_of(call.rows, call.x, first)},
        {row_of(call.rows, call.y, row), call.y.column, call.in_dtype, BACKWARD && call.holds_y,
         row_of(call.rows, call.y, first)}};
    OutRow out = {row_of(call.rows, call.out, row), call.out.column, call.out_dtype,
                  row_of(call.rows, call.out, first)};
    TileCells<A> cells(in, call.columns, call.rows.count, call.plan, team, memory + call.plan.before_cells());
    if constexpr (BACKWARD)
        softmax_backward_of_row(cells, call, team, out, memory);
    else
        softmax_of_row(cells, call, team, out, memory);
}

}  // namespace tilegrad::cuda
