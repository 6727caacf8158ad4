// Sums of blocks, with what goes wrong at barriers and shuffles.
#include "launch.h"

enum class Bug {
    none,
    missing_barrier,
    divergent_barrier,
    divergent_shuffle,
    exited_lane,
    exit_under_shuffle,
    lane_not_in_mask,
    overlapping_masks,
    reads_unwritten,
    reads_outside,
    deadlock,
    named_barrier_sizes,
    exception,
};

__device__ float warp_sum(float value, unsigned mask = ~0u) {
    for (int lanes = 16; lanes; lanes >>= 1) value += __shfl_xor_sync(mask, value, lanes);
    return value;
}

// y[block] = sum of x[block * columns + ...]; 128 threads.
__global__ void block_sum(const float* x, float* y, int columns, Bug bug) {
    __shared__ float parts[4];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    float sum = 0;
    for (int i = threadIdx.x; i < columns; i += blockDim.x) sum += x[blockIdx.x * columns + i];

    if (bug == Bug::exited_lane && threadIdx.x == 5) return;
    if (bug == Bug::lane_not_in_mask) __syncwarp(0xFFFF);
    if (bug == Bug::overlapping_masks) __syncwarp(lane < 16 ? ~0u : 0xFFFF0000u);
    if (bug == Bug::exit_under_shuffle && threadIdx.x == 31) {
        __syncwarp(0x80000000u);
        return;
    }
    if (bug == Bug::exception && threadIdx.x == 77) throw std::runtime_error("thrown by a thread");
    if (bug != Bug::divergent_shuffle || lane < 16) sum = warp_sum(sum);
    if (lane == 0 && !(bug == Bug::reads_unwritten && warp == 3)) parts[warp] = sum;

    if (bug == Bug::divergent_barrier && warp == 2)
        __syncthreads();
    else if (bug == Bug::deadlock && warp == 2)
        ptx::bar_sync(1, 64);
    else if (bug == Bug::named_barrier_sizes)
        ptx::bar_sync(1, warp == 2 ? 64 : 128);
    else if (bug != Bug::missing_barrier)
        __syncthreads();

    if (warp == 0) {
        const int count = bug == Bug::reads_outside ? 1024 : 4;
        sum = 0;
        for (int i = 0; i < count; ++i) sum += parts[i];
        if (lane == 0) y[blockIdx.x] = sum;
    }
}

// The votes and reductions of a warp, and the counting barriers: y[0..] = each result for thread 40's point of view.
__global__ void votes(unsigned* y) {
    const unsigned t = threadIdx.x;
    const unsigned results[] = {
        __ballot_sync(~0u, t % 3 == 0),
        static_cast<unsigned>(__any_sync(~0u, t == 40)),
        static_cast<unsigned>(__all_sync(~0u, t >= 32)),
        __reduce_add_sync(~0u, t),
        static_cast<unsigned>(__reduce_min_sync(~0u, -static_cast<int>(t))),
        __reduce_max_sync(~0u, t),
        __shfl_sync(~0u, t, 3, 8),
        __shfl_up_sync(~0u, t, 2),
        __shfl_down_sync(~0u, t, 30),
        static_cast<unsigned>(__syncthreads_count(t < 50)),
        static_cast<unsigned>(__syncthreads_or(t == 1)),
        static_cast<unsigned>(__syncthreads_and(t != 1)),
    };
    if (t == 40)
        for (int i = 0; i < 12; ++i) y[i] = results[i];
}

// The lanes of a warp hand values to each other through shared memory. A shuffle makes them meet, but orders nothing.
__global__ void reverse_warp(const float* x, float* y, bool shuffle_instead) {
    float* memory = cuda_emulator::dynamic_shared<float>();
    memory[threadIdx.x] = x[threadIdx.x];
    if (shuffle_instead)
        __shfl_sync(~0u, 0, 0);
    else
        __syncwarp();
    y[threadIdx.x] = memory[31 - threadIdx.x];
}

// One warp hands values to another through named barriers, as producer and consumer of a ring of one slot.
__global__ void handshake(const float* x, float* y, int count, bool wait_for_empty) {
    float* slot = cuda_emulator::dynamic_shared<float>();
    const int lane = threadIdx.x % 32;
    if (threadIdx.x < 32) {
        for (int i = 0; i < count; ++i) {
            if (i > 0 && wait_for_empty) ptx::bar_sync(2, 64);
            slot[lane] = x[i * 32 + lane];
            ptx::bar_arrive(1, 64);
        }
    } else {
        for (int i = 0; i < count; ++i) {
            ptx::bar_sync(1, 64);
            y[i * 32 + lane] = 2 * slot[31 - lane];
            if (i + 1 < count && wait_for_empty) ptx::bar_arrive(2, 64);
        }
    }
}

extern "C" {
const char* run_block_sum(const float* x, float* y, int rows, int columns, int bug) {
    return launch(block_sum, rows, 128, 0, 1, x, y, columns, static_cast<Bug>(bug));
}
const char* run_votes(unsigned* y) { return launch(votes, 1, 64, 0, 1, y); }
const char* run_reverse_warp(const float* x, float* y, int shuffle_instead) {
    return launch(reverse_warp, 1, 32, 128, 1, x, y, shuffle_instead != 0);
}
const char* run_handshake(const float* x, float* y, int count, int wait_for_empty) {
    return launch(handshake, 1, 64, 128, 1, x, y, count, wait_for_empty != 0);
}
}
