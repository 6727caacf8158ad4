#include "ptx.h"

#include "memory.h"

#include <cstring>

namespace cuda_emulator {

namespace {

Barrier& named_barrier(unsigned barrier, unsigned threads, const Location& where) {
    Block& block = *this_thread().block;
    if (barrier < 1 || barrier > 15) fail("named barrier " + std::to_string(barrier) + ": must be 1 to 15", where);
    if (threads == 0 || threads % warp_size || threads > block.threads.size())
        fail("named barrier for " + std::to_string(threads) +
                 " threads: must be a multiple of 32, and at most those of the block",
             where);
    Barrier& found = block.named[barrier];
    if (found.arrived && found.expected != threads)
        fail("named barrier " + std::to_string(barrier) + ": for " + std::to_string(threads) + " threads here, for " +
                 std::to_string(found.expected) + " at " + text(found.first),
             where);
    if (!found.arrived) {
        found.expected = threads;
        found.first = where;
    }
    return found;
}

}  // namespace

void cp_async(void* shared, const void* global, size_t bytes, size_t source_bytes, const Location& where) {
    if (options().compute_capability < 80) fail("cp.async on a chip without it", where);
    if (reinterpret_cast<uintptr_t>(shared) % bytes || reinterpret_cast<uintptr_t>(global) % bytes)
        fail("cp.async: both addresses must be multiples of " + std::to_string(bytes), where);
    shared_window(shared);
    const Moment moment = asynchronous_now(this_thread());
    note_read(global, source_bytes, moment, where);
    note_write(shared, bytes, moment, where);
    auto copy = [=] {
        std::memcpy(shared, global, source_bytes);
        std::memset(static_cast<std::byte*>(shared) + source_bytes, 0, bytes - source_bytes);
    };
    this_thread().async_groups["cp.async"].add(copy, moment);
}

void cp_async_commit() { this_thread().async_groups["cp.async"].commit(); }
void cp_async_wait(size_t pending) { this_thread().async_groups["cp.async"].wait(pending); }

void bar_sync(unsigned barrier, unsigned threads, const Location& where) {
    Barrier& meeting = named_barrier(barrier, threads, where);
    const uint64_t generation = meeting.generation;
    if (!meeting.arrive(this_thread()))
        block_until([&] { return meeting.generation != generation; }, "bar.sync", where);
    meeting.order.acquire_own(this_thread());
}

void bar_arrive(unsigned barrier, unsigned threads, const Location& where) {
    named_barrier(barrier, threads, where).arrive(this_thread());
    preempt();
}

}  // namespace cuda_emulator
