#include "hopper_mbarrier.h"

#include "memory.h"

#include <cstdlib>

namespace cuda_emulator {

namespace {

constexpr int64_t most = (1 << 20) - 1;  // arrivals, and bytes outstanding either way

struct Mbarrier {
    const Thread* initialised_by = nullptr;
    bool fenced = false;
    uint32_t arrivals = 0;  // of a phase
    uint32_t missing = 0;   // in the one under way
    int64_t bytes = 0;      // expected less arrived: bytes may arrive before they are expected
    uint64_t phase = 0;
    Order order;
    std::vector<Moment> copies, copies_before;  // whose bytes this phase and the one before it counted
};

using Mbarriers = std::map<ptrdiff_t, Mbarrier>;  // by offset in dynamic shared memory

Mbarriers& mbarriers(Block& block) { return extension<Mbarriers>(block, "mbarrier"); }

ptrdiff_t offset_of(const Block& block, const uint64_t* barrier, const Location& where) {
    const ptrdiff_t offset = reinterpret_cast<const std::byte*>(barrier) - block.dynamic;
    if (offset < 0 || static_cast<size_t>(offset) + 8 > block.dynamic_bytes)
        fail("mbarrier: not in the dynamic shared memory of the block", where);
    if (offset % 8) fail("mbarrier: its address must be a multiple of 8", where);
    return offset;
}

Mbarrier& find(Block& block, ptrdiff_t offset, const Location& where) {
    const auto found = mbarriers(block).find(offset);
    if (found == mbarriers(block).end())
        fail("mbarrier at byte " + std::to_string(offset) + " of shared memory: used before it was initialised", where);
    return found->second;
}

// Others of the cluster, and bulk copies, see an mbarrier only after a fence by the thread that initialised it.
void require_fence(const Mbarrier& barrier, const Location& where) {
    if (!barrier.fenced) fail("mbarrier: used from elsewhere, but its initialisation was not fenced", where);
}

void check_bytes(const Mbarrier& barrier, const Location& where) {
    if (std::abs(barrier.bytes) > most) fail("mbarrier: more than 2^20 - 1 bytes outstanding", where);
}

void complete_if_due(Mbarrier& barrier) {
    if (barrier.missing || barrier.bytes) return;
    barrier.missing = barrier.arrivals;
    ++barrier.phase;
    barrier.order.open();
    barrier.copies_before = std::move(barrier.copies);
    barrier.copies.clear();
}

}  // namespace

unsigned own_rank() { return this_thread().block->rank; }

void mbarrier_init(uint64_t* barrier, uint32_t arrivals, const Location& where) {
    Block& block = *this_thread().block;
    if (options().compute_capability < 90) fail("an mbarrier of sm_90 on a chip without it", where);
    if (arrivals < 1 || arrivals > most) fail("mbarrier: must be for 1 to 2^20 - 1 arrivals", where);
    const ptrdiff_t offset = offset_of(block, barrier, where);
    if (checked) note_write(barrier, sizeof(*barrier), now(this_thread()), where);
    Mbarrier fresh;
    fresh.initialised_by = &this_thread();
    fresh.arrivals = fresh.missing = arrivals;
    if (!mbarriers(block).emplace(offset, std::move(fresh)).second) fail("mbarrier: initialised twice", where);
}

void mbarrier_fence_init() {
    for (auto& [offset, barrier] : mbarriers(*this_thread().block))
        barrier.fenced |= barrier.initialised_by == &this_thread();
}

void mbarrier_arrive(uint64_t* barrier, unsigned rank, uint32_t expected_bytes, const Location& where) {
    Block& mine = *this_thread().block;
    if (rank >= mine.cluster->blocks.size())
        fail("mbarrier: no block " + std::to_string(rank) + " in the cluster", where);
    Block& block = mine.cluster->blocks[rank];
    const ptrdiff_t offset = offset_of(mine, barrier, where);
    if (block.running == 0) fail("mbarrier: arrives at one of a block that has exited", where);
    Mbarrier& there = find(block, offset, where);
    if (&block != &mine) require_fence(there, where);
    note_atomic(block.dynamic + offset, sizeof(*barrier), where);
    if (there.missing == 0) fail("mbarrier: one arrival more than it was initialised for", where);
    there.order.release(this_thread());
    there.bytes += expected_bytes;
    check_bytes(there, where);
    --there.missing;
    complete_if_due(there);
    preempt();
}

void mbarrier_wait_parity(uint64_t* barrier, uint32_t parity, const Location& where) {
    Block& block = *this_thread().block;
    const Mbarrier& mine = find(block, offset_of(block, barrier, where), where);
    note_atomic(barrier, sizeof(*barrier), where);
    // Of the phase under way and the one before it, that of this parity: complete if it is the one before.
    block_until([&mine, parity] { return (mine.phase & 1) != parity; }, "an mbarrier", where);
    mine.order.acquire(this_thread());
    // Who issued the copies hears of their end from those that wait here, through the barrier by which they hand the
    // memory back.
    if (checked)
        for (const Moment& copy : mine.copies_before) know_asynchronous(thread_of(*block.cluster, copy), copy);
}

void mbarrier_check(Block& block, const uint64_t* barrier, const Location& where) {
    const Block& mine = *this_thread().block;
    require_fence(find(block, offset_of(mine, barrier, where), where), where);
}

void mbarrier_complete_bytes(Block& block, const uint64_t* barrier, uint32_t bytes, const Moment& moment,
                             const Location& where) {
    Mbarrier& there = find(block, offset_of(*this_thread().block, barrier, where), where);
    there.order.release(moment);
    there.copies.push_back(moment);
    there.bytes -= bytes;
    check_bytes(there, where);
    complete_if_due(there);
}

}  // namespace cuda_emulator
