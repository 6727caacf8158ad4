// Sums of clusters through distributed shared memory, with what goes wrong between blocks.
#include "launch.h"

namespace cg = cooperative_groups;

enum class Bug { none, reads_too_early, exits_too_early, wrong_rank, no_wait };

// y[block] = sum of x over the cluster's blocks, 32 columns each.
__global__ void cluster_sum(const float* x, float* y, Bug bug) {
    float* part = cuda_emulator::dynamic_shared<float>();
    auto cluster = cg::this_cluster();
    float sum = x[blockIdx.x * 32 + threadIdx.x];
    for (int lanes = 16; lanes; lanes >>= 1) sum += __shfl_xor_sync(~0u, sum, lanes);
    if (bug == Bug::reads_too_early) cluster.sync();
    if (threadIdx.x == 0) *part = sum;
    if (bug != Bug::reads_too_early) cluster.sync();
    sum = 0;
    for (unsigned rank = 0; rank < cluster.num_blocks(); ++rank)
        sum += *cluster.map_shared_rank(part, bug == Bug::wrong_rank ? rank + 1 : rank);
    if (bug == Bug::no_wait)
        cluster.barrier_arrive();
    else if (bug != Bug::exits_too_early)
        cluster.sync();
    if (threadIdx.x == 0) y[blockIdx.x] = sum;
}

// The same through static shared memory.
__global__ void cluster_sum_static(const float* x, float* y) {
    __shared__ float part;
    auto cluster = cg::this_cluster();
    if (threadIdx.x == 0) {
        part = 0;
        for (int i = 0; i < 32; ++i) part += x[blockIdx.x * 32 + i];
    }
    cluster.barrier_wait(cluster.barrier_arrive());
    float sum = 0;
    for (unsigned rank = 0; rank < cluster.num_blocks(); ++rank) sum += *cluster.map_shared_rank(&part, rank);
    cluster.sync();
    if (threadIdx.x == 0) y[blockIdx.x] = sum;
}

// Without a barrier before the first access, the other block may not even have started.
__global__ void cluster_store(float* y) {
    float* slot = cuda_emulator::dynamic_shared<float>();
    auto cluster = cg::this_cluster();
    *cluster.map_shared_rank(slot, cluster.block_rank() ^ 1) = 1;
    cluster.sync();
    y[blockIdx.x] = *slot;
}

extern "C" {
const char* run_cluster_sum(const float* x, float* y, int blocks, int cluster, int nonportable, int bug) {
    cudaFuncSetAttribute(cluster_sum, cudaFuncAttributeNonPortableClusterSizeAllowed, nonportable);
    return launch(cluster_sum, blocks, 32, 4, cluster, x, y, static_cast<Bug>(bug));
}
const char* run_cluster_sum_static(const float* x, float* y, int blocks, int cluster) {
    return launch(cluster_sum_static, blocks, 32, 0, cluster, x, y);
}
const char* run_cluster_store(float* y) { return launch(cluster_store, 2, 1, 4, 2, y); }
}
