// Runs the threads of a cluster in turns, each until it waits.
#include "machine.h"

#include "memory.h"
#include "shared_memory.h"

#include <algorithm>
#include <numeric>

namespace cuda_emulator {

struct Index {
    unsigned x, y, z;
};
void set_thread(Index thread, Index block);
void set_dimensions(Index block, Index grid);

Machine machine;

namespace {

uint32_t clusters_run = 0;

void resume(Thread& thread) {
    make_resident(*thread.block);
    machine.thread = &thread;
    const uint3 &index = thread.index, &block = thread.block->index;
    set_thread({index.x, index.y, index.z}, {block.x, block.y, block.z});
    enter_fiber(thread);
    machine.thread = nullptr;
    if (machine.failure) std::rethrow_exception(machine.failure);
}

void leave_warp(Thread& thread) {
    Warp& warp = thread.warp();
    warp.exited |= 1u << thread.lane();
    for (const Exchange* exchange : warp.open)
        if (exchange && exchange->mask & 1u << thread.lane())
            fail(std::string("exits while other lanes of its warp wait for it at ") + exchange->operation + ", " +
                 text(exchange->where));
}

void start_thread(Thread& thread, unsigned rank, Block& block) {
    const dim3& shape = machine.launch->block;
    thread = Thread{};
    thread.index = {rank % shape.x, rank / shape.x % shape.y, rank / shape.x / shape.y};
    thread.rank = rank;
    thread.block = &block;
    start_fiber(thread, stack(block.rank * shape.x * shape.y * shape.z + rank));
}

void start_block(Block& block, unsigned rank, uint64_t number, Cluster& cluster) {
    const Launch& launch = *machine.launch;
    const unsigned threads = launch.block.x * launch.block.y * launch.block.z;
    block.index = {static_cast<unsigned>(number % launch.grid.x),
                   static_cast<unsigned>(number / launch.grid.x % launch.grid.y),
                   static_cast<unsigned>(number / launch.grid.x / launch.grid.y)};
    block.rank = rank;
    block.cluster = &cluster;
    block.barrier = Barrier(threads);
    for (Barrier& barrier : block.named) barrier = Barrier();
    block.predicates[0] = block.predicates[1] = 0;
    block.running = threads;
    block.extensions.clear();
    block.warps.clear();
    block.warps.resize((threads + warp_size - 1) / warp_size);
    for (unsigned w = 0; w < block.warps.size(); ++w)
        block.warps[w].lanes = threads - w * warp_size >= warp_size ? ~0u : (1u << threads % warp_size) - 1;
    block.threads.resize(threads);
    for (unsigned t = 0; t < threads; ++t) start_thread(block.threads[t], t, block);
    start_shared_memory(block, launch.dynamic_bytes);
}

bool can_run(const Thread& thread) { return !thread.finished && (!thread.ready || thread.ready(thread.condition)); }

// One turn for each thread of the block that can run. False if there is none.
bool run_block(Block& block) {
    static std::vector<unsigned> order;
    order.resize(block.threads.size());
    std::iota(order.begin(), order.end(), 0u);
    if (options().shuffle) machine.random.shuffle(order);
    bool progress = false;
    for (unsigned t : order) {
        Thread& thread = block.threads[t];
        if (!can_run(thread)) continue;
        resume(thread);
        progress = true;
    }
    if (progress && block.running == 0) {
        end_shadow(block);
        end_shared_memory(block);
    }
    return progress;
}

void land_pending(Cluster& cluster, size_t i) {
    Ticket ticket = cluster.pending[i];
    cluster.pending.erase(cluster.pending.begin() + static_cast<ptrdiff_t>(i));
    land(ticket);
}

void run_cluster(Cluster& cluster) {
    std::vector<Block*> order;
    for (Block& block : cluster.blocks) order.push_back(&block);
    auto running = [&] { return std::any_of(order.begin(), order.end(), [](Block* block) { return block->running; }); };
    while (running()) {
        if (options().shuffle) machine.random.shuffle(order);
        bool progress = false;
        for (Block* block : order) {
            if (!block->running) continue;
            while (run_block(*block)) {
                progress = true;
                if (options().shuffle) break;  // the blocks of a cluster take turns
            }
            if (options().completion == Completion::random && !cluster.pending.empty() && machine.random() % 4 == 0) {
                land_pending(cluster, machine.random() % cluster.pending.size());
                progress = true;
            }
        }
        if (progress) continue;
        if (cluster.pending.empty()) report_deadlock(cluster);
        land_pending(cluster, options().shuffle ? machine.random() % cluster.pending.size() : 0);
    }
    while (!cluster.pending.empty()) land_pending(cluster, 0);
}

// What must not outlive a launch, however it ends.
struct Reset {
    ~Reset() {
        leave_shared_memory();
        machine = Machine{};
        fiber = nullptr;
    }
};

}  // namespace

Options& options() {
    static Options options;
    return options;
}

Warp& Thread::warp() const { return block->warps[rank / warp_size]; }
Thread& this_thread() { return *machine.thread; }

void wait(bool (*ready)(void*), void* condition, const char* operation, const Location& where) {
    if (ready(condition)) return;
    Thread& thread = *machine.thread;
    thread.ready = ready;
    thread.condition = condition;
    thread.operation = operation;
    thread.where = where;
    leave_fiber();
    thread.ready = nullptr;
}

void preempt() {
    if (fiber && options().shuffle && machine.random() % 2) leave_fiber();
}

void yield() { leave_fiber(); }

void Barrier::open() {
    arrived = 0;
    ++generation;
    order.open();
}

bool Barrier::arrive(const Thread& thread) {
    order.release(thread);
    if (++arrived < expected) return false;
    open();
    return true;
}

void Barrier::forget_one() {
    if (--expected > 0 && arrived >= expected) open();
}

void fiber_main() {
    Thread& thread = *machine.thread;
    try {
        machine.launch->invoke(machine.launch->kernel, machine.launch->arguments);
    } catch (...) {
        machine.failure = std::current_exception();
    }
    thread.finished = true;
    if (machine.failure) return;
    leave_warp(thread);
    --thread.block->running;
    thread.block->barrier.forget_one();
    thread.block->cluster->barrier.forget_one();
}

void run(const Launch& launch) {
    Reset reset;
    const uint64_t blocks = static_cast<uint64_t>(launch.grid.x) * launch.grid.y * launch.grid.z;
    machine.launch = &launch;
    machine.random.state = options().seed;
    set_dimensions({launch.block.x, launch.block.y, launch.block.z}, {launch.grid.x, launch.grid.y, launch.grid.z});
    enter_shared_memory(launch);
    start_global_checks(clusters_run + 1);
    std::vector<uint64_t> order(blocks / launch.cluster);
    std::iota(order.begin(), order.end(), uint64_t{0});
    if (options().shuffle) machine.random.shuffle(order);
    Cluster cluster;
    machine.cluster = &cluster;
    cluster.blocks.resize(launch.cluster);
    for (uint64_t number : order) {
        cluster.barrier = Barrier(launch.cluster * launch.block.x * launch.block.y * launch.block.z);
        cluster.pending.clear();
        cluster.number = ++clusters_run;
        for (unsigned rank = 0; rank < launch.cluster; ++rank)
            start_block(cluster.blocks[rank], rank, number * launch.cluster + rank, cluster);
        start_order(cluster);
        start_shadow(cluster);
        run_cluster(cluster);
    }
}

}  // namespace cuda_emulator
