// What happens before what: vector clocks (Lamport 1978, Mattern 1989), for the races that the checked build finds.
//
// Each thread of the cluster has a clock, and a view: how far it knows every other thread's clock to be. An access is
// remembered with the clock of its thread. It is ordered before a later access of another thread if that one's view has
// reached the clock; if not, the two race. Work that a thread issues and that runs by itself (a bulk copy) has a clock
// of its own beside the thread's, which is known once the work has been waited for.
//
// Threads that have synchronised share one view, so that a barrier of a whole block costs one maximum per warp.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

namespace cuda_emulator {

struct Block;
struct Cluster;
struct Thread;
struct View;

// The library has kernels whose accesses are watched (instrumentation.cpp). If not, the functions here do nothing.
extern bool checked;

using Clock = uint32_t;

// One moment of one thread, or of its asynchronous work.
struct Moment {
    uint32_t column = 0;  // whose clock: the threads of the cluster in order, then their asynchronous work
    Clock clock = 0;      // 0: never

    bool operator==(const Moment&) const = default;
};

// What the threads that arrive somewhere hand to those that go on from there.
class Order {
  public:
    void release(const Thread& thread);            // what the thread has done so far
    void release(const Moment& asynchronous);      // and work that it issued
    void open();                                   // what was released until now is what acquire() gives
    void acquire(const Thread& thread) const;      // by a thread that may know more than what was released
    void acquire_own(const Thread& thread) const;  // by one that has done nothing but wait since its release()

  private:
    std::shared_ptr<View> opened_;
    std::vector<std::shared_ptr<View>> views_;
    std::vector<Moment> moments_;
};

void start_order(const Cluster& cluster);
Moment now(const Thread& thread);
Moment asynchronous_now(const Thread& thread);                       // of a new piece of work
void know_asynchronous(const Thread& thread, const Moment& moment);  // the thread has waited for it

// What a thread knows of the others' past.
struct Knowledge {
    const Clock* view;      // by column
    uint32_t column;        // its own
    uint32_t asynchronous;  // that of the work it issued, and how much of it it has waited for
    Clock waited;

    bool covers(const Moment& before) const {
        if (before.clock == 0 || before.column == column) return true;
        return before.clock <= (before.column == asynchronous ? waited : view[before.column]);
    }
};
Knowledge knowledge(const Thread& thread);  // until it synchronises

// The thread makes what it has written, and what it knows to be written, visible to asynchronous work on shared memory
// (fence.proxy.async). is_fenced: has it, or the thread that wrote, done so since the write?
void fence_proxy(const Thread& thread);
bool is_fenced(const Moment& write, const Thread& thread);

bool is_known_to_any(const Block& block, const Moment& moment);  // of its threads
bool is_asynchronous(const Moment& moment);
const Thread& thread_of(const Cluster& cluster, const Moment& moment);

}  // namespace cuda_emulator
