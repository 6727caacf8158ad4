#include "cluster.h"

namespace cuda_emulator {

void cluster_arrive(const Location& where) {
    Thread& thread = this_thread();
    Cluster& cluster = *thread.block->cluster;
    if (options().compute_capability < 90) fail("a cluster barrier on a chip without clusters", where);
    if (thread.arrived_at_cluster) fail("arrives twice at the cluster's barrier without a wait in between", where);
    thread.arrived_at_cluster = true;
    thread.cluster_generation = cluster.barrier.generation;
    cluster.barrier.arrive(thread);
    preempt();
}

void cluster_wait(const Location& where) {
    Thread& thread = this_thread();
    const Cluster& cluster = *thread.block->cluster;
    if (!thread.arrived_at_cluster) fail("waits at the cluster's barrier without having arrived", where);
    block_until([&] { return cluster.barrier.generation != thread.cluster_generation; }, "the cluster's barrier",
                where);
    cluster.barrier.order.acquire(thread);
    thread.arrived_at_cluster = false;
}

void cluster_sync(const Location& where) {
    cluster_arrive(where);
    cluster_wait(where);
}

unsigned cluster_rank() { return this_thread().block->rank; }
unsigned cluster_blocks() { return static_cast<unsigned>(this_thread().block->cluster->blocks.size()); }
unsigned rank_in_block() { return this_thread().rank; }

}  // namespace cuda_emulator
