// From the sums of many blocks to one number, in a fixed order and within one launch: the block that is the last to
// come puts together what the others left. Sums are float64; no addition is atomic, so a result is the same bits in
// every run.
#pragma once

#include "team.cuh"

namespace tilegrad::cuda {

// Where the blocks of a sum, of one launch or of several in a stream, leave their parts.
struct Gathering {
    double* parts;      // N numbers for each of `count` blocks
    unsigned* counter;  // 0 before the first launch
    int first;          // the number of this launch's first block
    int count;
};

// For every thread of a block: what this one adds, in thread 0, as its number `block`. True, with the sums of all
// blocks in thread 0, for the one that is the last; it leaves the counter at 0. `scratch` as for `reduce` over a block.
template <int N> __device__ bool gather(Sums<double, N>& sums, const Gathering& to, int block, char* scratch) {
    bool* is_last = reinterpret_cast<bool*>(scratch);
    if (threadIdx.x == 0) {
        for (int i = 0; i < N; i++) to.parts[static_cast<int64_t>(to.first + block) * N + i] = sums.x[i];
        __threadfence();  // the parts are there for all before the count says so
        *is_last = atomicAdd(to.counter, 1u) == static_cast<unsigned>(to.count) - 1;
    }
    __syncthreads();
    if (!*is_last) return false;
    __threadfence();
    sums = {};
    for (int64_t i = threadIdx.x; i < to.count; i += blockDim.x)
        for (int j = 0; j < N; j++) sums.x[j] += __ldcg(to.parts + i * N + j);  // from L2: other blocks wrote them
    __syncthreads();                                                            // all have read is_last, in the scratch
    sums = reduce(sums, Plus(), {1, static_cast<int>(blockDim.x), 1, 1}, scratch);
    if (threadIdx.x == 0) *to.counter = 0;
    return true;
}

}  // namespace tilegrad::cuda
