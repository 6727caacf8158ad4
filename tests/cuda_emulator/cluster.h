// The part of cooperative_groups that clusters need.
#pragma once

#include "collectives.h"

namespace cuda_emulator {

void cluster_arrive(const Location& where);
void cluster_wait(const Location& where);
void cluster_sync(const Location& where);
unsigned cluster_rank();    // of the block
unsigned cluster_blocks();  // of the cluster
unsigned rank_in_block();   // of the thread

}  // namespace cuda_emulator

namespace cooperative_groups {

struct cluster_group {
    struct arrival_token {};

    static arrival_token barrier_arrive(cuda_emulator::Location where = cuda_emulator::Location::current()) {
        cuda_emulator::cluster_arrive(where);
        return {};
    }
    static void barrier_wait(cuda_emulator::Location where = cuda_emulator::Location::current()) {
        cuda_emulator::cluster_wait(where);
    }
    static void barrier_wait(arrival_token&&, cuda_emulator::Location where = cuda_emulator::Location::current()) {
        cuda_emulator::cluster_wait(where);
    }
    static void sync(cuda_emulator::Location where = cuda_emulator::Location::current()) {
        cuda_emulator::cluster_sync(where);
    }
    static unsigned block_rank() { return cuda_emulator::cluster_rank(); }
    static unsigned num_blocks() { return cuda_emulator::cluster_blocks(); }
    static dim3 dim_blocks() { return dim3(num_blocks()); }
    static unsigned num_threads() { return num_blocks() * blockDim.x * blockDim.y * blockDim.z; }
    static unsigned thread_rank() {
        return block_rank() * blockDim.x * blockDim.y * blockDim.z + cuda_emulator::rank_in_block();
    }
    template <class T> static T* map_shared_rank(T* address, int rank) {
        return static_cast<T*>(cuda_emulator::map_shared_rank(address, static_cast<unsigned>(rank)));
    }
};

struct thread_block {
    static void sync(cuda_emulator::Location where = cuda_emulator::Location::current()) { __syncthreads(where); }
    static unsigned thread_rank() { return cuda_emulator::rank_in_block(); }
    static unsigned num_threads() { return blockDim.x * blockDim.y * blockDim.z; }
    static dim3 group_index() { return dim3(blockIdx.x, blockIdx.y, blockIdx.z); }
    static dim3 thread_index() { return dim3(threadIdx.x, threadIdx.y, threadIdx.z); }
};

inline cluster_group this_cluster() { return {}; }
inline thread_block this_thread_block() { return {}; }

}  // namespace cooperative_groups
