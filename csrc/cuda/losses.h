// What the launchers of the losses share.
#pragma once

#include "operations.h"
#include "targets.cuh"

namespace tilegrad::cuda {

// All but the lines, which the caller's layout fills in.
inline Indices indices_of(const Array& target, const Array& weight, int64_t classes, const LossOptions& o,
                          const Array& flag) {
    Indices indices{};
    indices.classes = classes;
    indices.ignored = o.ignore_index;
    if (target.integer) indices.dtype = target.index();
    if (weight) indices.weights = {weight.data, weight.strides[0], weight.dtype()};
    indices.flag = reinterpret_cast<bool*>(flag.data);
    return indices;
}

// Sets the counters to 0.
void reset(const LossWorkspace& workspace, cudaStream_t stream);

// Makes `counted`: what a mean over these rows divides by, and the weights of all classes, as far as they are wanted.
void count(const cpu::Rows& rows, const Indices& indices, bool of_rows, bool of_classes, const LossWorkspace& workspace,
           cudaStream_t stream);

// The loss of no rows: 0 as a sum, NaN as a mean.
void fill_loss_of_no_rows(const Array& loss, const LossOptions& o, cudaStream_t stream);

}  // namespace tilegrad::cuda
