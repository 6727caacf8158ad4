// The machine under the emulator: threads of a block as fibers, what they wait for, work that lands later, and errors.
//
// This header is for the parts of the emulator and for extensions of it (cuda_emulator.h is for kernels). What an
// emulated instruction needs:
//
//   this_thread()               the CUDA thread that runs: its block, its rank in it, its index, its warp.
//   this_thread().block         its dynamic shared memory is block->dynamic, 1024-byte aligned, and that of rank r of
//                               its cluster block->cluster->blocks[r].dynamic. shared_window(p) is what
//                               __cvta_generic_to_shared gives.
//   block_until(condition, ..)  let other threads run until condition() holds. The condition is evaluated by the
//                               scheduler, so it may read anything but must not depend on this_thread().
//   preempt()                   perhaps let others run (shuffled schedules only): at instructions that other threads
//                               can observe, such as the arrival at a barrier.
//   issue(action)               asynchronous work: runs at once (Completion::early), as late as possible, or at random,
//                               on behalf of the thread that issued it. AsyncGroups waits for such work by group.
//   fail(message, where)        a bug in the kernel: throws an Error out of the launch. Never returns.
//   note_read, note_write       memory.h, for the checked build: the accesses that an instruction makes by itself.
//                               Those of asynchronous work are noted when it is issued, at one asynchronous_now(),
//                               which AsyncGroups::add takes and Order::release hands on. require_proxy_fence is for
//                               what it reads of shared memory, and fence_proxy the fence that it requires.
//   Order                       order.h, for the checked build: what an instruction orders. An mbarrier has one:
//                               release(thread) at an arrival, release(moment) when a bulk copy has landed, open() when
//                               the phase completes, acquire() when a wait has succeeded.
//
// State that belongs to a block goes into Block::extensions, which lives exactly as long as the block.
//
// Headers are compiled with the kernel and watched like it: code there may access its arguments and nothing else, and
// calls functions of a .cpp file, which are not watched, for the rest.
#pragma once

#include "cuda_headers.h"
#include "order.h"

#include <any>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <source_location>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

// For a function of a header that has to access more than its arguments.
#define CUDA_EMULATOR_UNCHECKED __attribute__((no_sanitize("thread", "address", "alignment")))

namespace cuda_emulator {

enum class Completion { early, late, random };

struct Options {
    uint64_t seed = 0;
    bool shuffle = false;  // blocks and threads in an order drawn by `seed`, and preempted at random
    Completion completion = Completion::early;
    int compute_capability = 90;
    int multiprocessors = 132;
};

Options& options();

// A bug in a kernel, found while it ran.
struct Error : std::runtime_error {
    using std::runtime_error::runtime_error;
};

using Location = std::source_location;

std::string text(const Location& where);  // "softmax.cu:41"
std::string text(const uint3& index);     // "(1, 0, 0)"
bool operator==(const Location& a, const Location& b);

constexpr unsigned warp_size = 32;

struct Block;
struct Cluster;
struct Thread;

// Where a fixed number of threads meet. A thread that exits is no longer expected.
struct Barrier {
    unsigned expected;
    unsigned arrived = 0;
    uint64_t generation = 0;  // how often it has opened
    Location first;           // where the first of those that wait arrived
    Order order;

    explicit Barrier(unsigned threads = 0) : expected(threads) {}

    // True if this arrival opened the barrier.
    bool arrive(const Thread& thread);
    void forget_one();  // of the threads expected

  private:
    void open();
};

// One warp-wide operation in flight: the lanes in `mask` bring a value each, and then may read the values of all.
struct Exchange {
    unsigned mask = 0;
    unsigned arrived = 0;
    unsigned unread = 0;
    bool complete = false;
    const char* operation = nullptr;
    Location where;
    uint64_t values[warp_size];
    Order order;
};

struct Warp {
    Exchange* open[warp_size] = {};  // those that wait for more lanes, by lowest lane of the mask
    unsigned waiting = 0;            // lanes inside of one of them
    unsigned exited = 0;
    unsigned lanes = 0;  // that exist: the last warp of a block may be short
    std::vector<std::unique_ptr<Exchange>> exchanges;
    std::vector<Exchange*> idle;  // those of them that may be used again
};

// One piece of asynchronous work.
struct Action {
    std::function<void()> run;
    Thread* issuer = nullptr;
    bool done = false;
};
using Ticket = std::shared_ptr<Action>;

// Hand over work that completes by itself, some time from now on.
Ticket issue(std::function<void()> action);
void land(const Ticket& ticket);  // now, unless it has

// Asynchronous work of one thread that is waited for by group, in order: cp.async, wgmma, bulk stores.
struct AsyncGroups {
    struct Piece {
        Ticket ticket;
        Moment moment;
    };
    std::vector<Piece> open;
    std::deque<std::vector<Piece>> closed;

    // `moment`: that of the accesses which the action makes, and which have been noted.
    void add(std::function<void()> action, const Moment& moment) { open.push_back({issue(std::move(action)), moment}); }
    void commit();
    void wait(size_t pending);  // until at most so many of the latest groups are unfinished
};

constexpr size_t stack_bytes = 256 << 10;  // of which a thread touches a page or two

struct Thread {
    uint3 index;
    unsigned rank;  // in its block
    Block* block;
    std::map<std::string, AsyncGroups> async_groups;  // by kind
    bool arrived_at_cluster = false;                  // and has not waited yet
    uint64_t cluster_generation = 0;                  // of the barrier it arrived at

    unsigned lane() const { return rank % warp_size; }
    bool has_on_stack(const void* address) const {
        return static_cast<size_t>(static_cast<const std::byte*>(address) - stack) < stack_bytes;
    }
    Warp& warp() const;

    // For the scheduler: the fiber, and what it waits for.
    void* stack_pointer;
    std::byte* stack;
    void* fake_stack;  // AddressSanitizer's
    bool finished;
    bool (*ready)(void*);
    void* condition;
    const char* operation;
    Location where;
};

struct Block {
    uint3 index;
    unsigned rank;  // in its cluster
    Cluster* cluster;
    std::byte* dynamic;
    size_t dynamic_bytes;
    std::vector<std::byte> static_image;  // of static shared memory, while another block of the cluster runs
    std::vector<Thread> threads;
    std::vector<Warp> warps;
    Barrier barrier;
    int predicates[2];  // of __syncthreads_count, by generation
    Barrier named[16];  // bar.sync 1 to 15
    unsigned running;   // threads that have not exited
    std::map<std::string, std::any> extensions;
};

struct Cluster {
    uint32_t number;  // in the order in which they run, from 1; goes on from launch to launch
    std::vector<Block> blocks;
    Barrier barrier;
    std::deque<Ticket> pending;  // asynchronous work that has not landed
};

Thread& this_thread();
extern Thread* fiber;  // the thread on whose stack code runs; null in the scheduler and on the host

// What an extension keeps of a block: made when first asked for.
template <class State> State& extension(Block& block, const char* name) {
    std::any& slot = block.extensions[name];
    if (!slot.has_value()) slot.emplace<State>();
    return *std::any_cast<State>(&slot);
}

[[noreturn]] void fail(const std::string& message, const Location& where);
[[noreturn]] void fail(const std::string& message);
[[noreturn]] void fail(const Thread& thread, const std::string& message);

void wait(bool (*ready)(void*), void* condition, const char* operation, const Location& where);

template <class Condition> void block_until(Condition condition, const char* operation, const Location& where) {
    wait([](void* context) { return static_cast<bool>((*static_cast<Condition*>(context))()); }, &condition, operation,
         where);
}

void preempt();
void yield();  // let every other thread run first

// Address in the shared-memory window of the thread's block; addresses of other blocks of the cluster are an error.
uint32_t shared_window(const void* address);
// The same variable in the shared memory of block `rank` of the cluster.
void* map_shared_rank(const void* address, unsigned rank);
std::byte* dynamic_shared_memory();

// A kernel whose parameter types are known, so that it can be called with CUDA's array of pointers to arguments.
using Invoke = void (*)(const void* kernel, void** arguments);
void register_kernel(const void* kernel, Invoke invoke);

// What cudaLaunchKernelExC does once the configuration has been found good.
struct Launch {
    const void* kernel;
    Invoke invoke;
    void** arguments;
    dim3 grid, block;
    unsigned cluster = 1;  // blocks along x
    size_t dynamic_bytes = 0;
};
void run(const Launch& launch);
std::string kernel_name(const void* kernel);

}  // namespace cuda_emulator

extern "C" {
// Called instead of a kernel, with the name and the configuration of its launch: so a launcher can be asked what it would
// do, on arrays that need not be there. Null: kernels run.
using cuda_emulator_listener = void (*)(const char* kernel, uint64_t blocks, unsigned threads, unsigned cluster,
                                        uint64_t dynamic_bytes);
void cuda_emulator_listen(cuda_emulator_listener listener);
}
