// What the bindings offer to engine/cuda_kernels.py. Arrays are of the memory of the current device; those that are
// "not given" or "not wanted" are empty ones. Launches go to the stream, and nothing waits for them.
#pragma once

#include "launch.h"

namespace tilegrad::cuda {

// Forward without y; with it, x is the gradient of the output y.
void softmax(const Array& x, const Array& y, int axis, bool log, const Array& out, cudaStream_t stream);

enum class Reduction : int { none, sum, mean };

struct LossOptions {
    Reduction reduction;
    int64_t ignore_index;
    double label_smoothing, z_loss, softcap;
};

// Memory of the device that a loss needs beside its arrays, made by whoever calls it.
struct LossWorkspace {
    double* counted;    // 3: what a mean divides by, and the weights of all classes
    double* parts;      // of the blocks
    unsigned* counter;  // two of them: of the launch that counts, and of the loss's
    // Of a loss that several launches make, whose targets `count_targets` has counted for all of them:
    bool shared;
    int first, blocks;  // this launch's first block, and how many there are in all
    int64_t rows;       // in all
};

// How many blocks the forward takes, each of which leaves 2 numbers in `parts`.
int64_t cross_entropy_blocks(const Array& logits, const Array& target, const Array& grad);
// Blocks of the launches that read the targets alone; each leaves 3 numbers at most.
constexpr int COUNTING_BLOCKS = 64;
constexpr int GATHERING_BLOCKS = 1024;

void count_targets(const Array& target, const Array& weight, int64_t classes, const LossOptions& o,
                   const LossWorkspace& workspace, cudaStream_t stream);

// `upstream`, one number or one a row, is for the gradients; not given, it is 1.
void cross_entropy(const Array& upstream, const Array& logits, const Array& target, const Array& weight,
                   const LossOptions& o, const Array& loss, const Array& lse, const Array& argmax, const Array& grad,
                   const Array& grad_target, const Array& flag, const LossWorkspace& workspace, cudaStream_t stream);
void cross_entropy_backward(const Array& upstream, const Array& logits, const Array& target, const Array& weight,
                            const Array& lse, const LossOptions& o, const Array& grad, const Array& grad_target,
                            const LossWorkspace& workspace, cudaStream_t stream);

void nll_loss(const Array& logp, const Array& target, const Array& weight, const LossOptions& o, const Array& loss,
              const Array& flag, const LossWorkspace& workspace, cudaStream_t stream);
void nll_loss_backward(const Array& upstream, const Array& logp, const Array& target, const Array& weight,
                       const LossOptions& o, const Array& grad, const LossWorkspace& workspace, cudaStream_t stream);

// x *= factor, one number of the device; x is dense.
void scale(const Array& x, const Array& factor, cudaStream_t stream);

// The one element of an array = x.
void put(const Array& to, double x, cudaStream_t stream);

// Into an array of the same shape, perhaps of another dtype. `index` has one element for each row, all but the last
// dimension, or is not given: rows whose index is to be ignored become 0.
void copy(const Array& from, const Array& to, const Array& index, int64_t ignored, cudaStream_t stream);

}  // namespace tilegrad::cuda
