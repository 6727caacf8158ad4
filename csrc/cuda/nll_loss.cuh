// The negative log-likelihood of log-probabilities: −w[t]·logp[t] of each row, and its gradient; and what targets alone
// say, which a mean divides by.
#pragma once

#include "cells.cuh"
#include "finish.cuh"
#include "targets.cuh"

namespace tilegrad::cuda {

constexpr int ROW_THREADS = 256;  // of the kernels that read one element a row

// Of the rows: the weights of the targets and their number; and the weights of all classes.
struct CountCall {
    cpu::Rows rows;
    Indices indices;  // or none
    bool of_classes;
    Gathering gathering;
    double* counted;  // 3
};

__global__ void __launch_bounds__(ROW_THREADS) count_targets(const __grid_constant__ CountCall call) {
    EXTERN_SHARED(char, memory);
    Sums<double, 3> sums{};
    int64_t first = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x,
            step = static_cast<int64_t>(gridDim.x) * blockDim.x;
    if (call.indices.lines.data != nullptr) {
        for (int64_t row = first; row < call.rows.count; row += step) {
            Target<double> target = read_target<double>(call.indices, call.rows, row);
            sums.x[0] += target.weight;
            sums.x[1] += target.valid;
        }
    }
    int64_t classes = call.of_classes ? call.indices.classes : 0;
    for (int64_t c = first; c < classes; c += step) sums.x[2] += call.indices.weights.at<double>(c);
    sums = reduce(sums, Plus(), {1, static_cast<int>(blockDim.x), 1, 1}, memory);
    if (!gather(sums, call.gathering, blockIdx.x, memory + blockDim.x / 32 * sizeof sums) || threadIdx.x > 0) return;
    for (int i = 0; i < 3; i++) call.counted[i] = sums.x[i];
}

struct NllLossCall {
    cpu::Rows rows;
    Indices indices;
    DType dtype;  // of log-probabilities, weights, loss and gradient
    cpu::Lines logp;
    cpu::Lines loss;  // the rows'; or
    char* total;      // their sum, over that of the weights for a
    bool mean;
    Gathering gathering;

    cpu::Lines upstream;  // backward
    DType upstream_dtype;
    const double* counted;  // of a mean
    cpu::Lines grad;
    Plan plan;
};

template <class A>
__global__ void __launch_bounds__(ROW_THREADS) nll_loss_rows(const __grid_constant__ NllLossCall call) {
    EXTERN_SHARED(char, memory);
    Sums<double, 2> sums{};
    int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
    for (int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; row < call.rows.count;
         row += step) {
        Target<A> target = read_target<A>(call.indices, call.rows, row);
        A loss = target.bad ? A(not_a_number()) : A(0);
        if (target.weight != 0)  // a class without weight takes no part, whatever its log-probability is
            loss = -target.weight *
                   load<A>(row_of(call.rows, call.logp, row) + target.index * call.logp.column, call.dtype);
        if (call.loss.data != nullptr) store(row_of(call.rows, call.loss, row), call.dtype, loss);
        sums.x[0] += loss;
        sums.x[1] += target.weight;
    }
    if (call.total == nullptr) return;
    sums = reduce(sums, Plus(), {1, static_cast<int>(blockDim.x), 1, 1}, memory);
    if (!gather(sums, call.gathering, blockIdx.x, memory + blockDim.x / 32 * sizeof sums) || threadIdx.x > 0) return;
    store(call.total, call.dtype, call.mean ? sums.x[0] / sums.x[1] : sums.x[0]);
}

// The gradient at a row's target, and elsewhere.
template <class A> struct NllGradient {
    int64_t target;  // −1: there is none
    A at_target, others;
};

template <class Cells>
__device__ void nll_loss_backward_of_row(const Cells& cells, const NllLossCall& call, const Team& team,
                                         const OutRow& grad, char* scratch) {
    using A = typename Cells::A;
    constexpr int W = Cells::W;
    auto d = once(call.plan.teams, team, scratch, [&]() -> NllGradient<A> {
        if (team.row >= call.rows.count) return {-1, A(0), A(0)};
        Target<A> target = read_target<A>(call.indices, call.rows, team.row);
        A f = load<A>(row_of(call.rows, call.upstream, team.row), call.upstream_dtype);
        if (call.counted != nullptr) f /= static_cast<A>(call.counted[0]);
        return {target.weight != 0 ? target.index : -1, -target.weight * f, target.bad ? A(not_a_number()) : A(0)};
    });
    cells.write(grad, {}, [&](const A(&)[W], const A(&)[W], int column, A(&to)[W], A(&)[W]) {
#pragma unroll
        for (int j = 0; j < W; j++) to[j] = column + j == d.target && d.target >= 0 ? d.at_target : d.others;
    });
}

template <class T>
__global__ void __launch_bounds__(MAX_THREADS, 2) nll_loss_backward_vectors(const __grid_constant__ NllLossCall call) {
    EXTERN_SHARED(char, memory);
    Team team(call.plan.teams);
    bool exists = team.row < call.rows.count;
    OutRow grad = {row_of(call.rows, call.grad, exists ? team.row : 0), 0, call.dtype, nullptr};
    InRow none[2] = {};
    VectorCells<T, T> cells(none, grad.data, exists ? static_cast<int>(call.indices.classes) : 0, T(0.f), call.plan,
                            team, nullptr);
    nll_loss_backward_of_row(cells, call, team, grad, memory);
}

template <class A>
__global__ void __launch_bounds__(MAX_THREADS, 2) nll_loss_backward_tiles(const __grid_constant__ NllLossCall call) {
    EXTERN_SHARED(char, memory);
    Team team(call.plan.teams);
    bool exists = team.row < call.rows.count;
    char* block = row_of(call.rows, call.grad, team.row - team.index);
    OutRow grad = {row_of(call.rows, call.grad, exists ? team.row : 0), call.grad.column, call.dtype, block};
    InRow in[2] = {{nullptr, 0, call.dtype, false, block}, {}};
    TileCells<A> cells(in, static_cast<int>(call.indices.classes), call.rows.count, call.plan, team,
                       memory + call.plan.before_cells());
    nll_loss_backward_of_row(cells, call, team, grad, memory);
}

}  // namespace tilegrad::cuda
