#include "collectives.h"

#include <bit>

namespace cuda_emulator {

namespace {

std::string hexadecimal(unsigned mask) {
    char digits[16];
    std::snprintf(digits, sizeof digits, "0x%08x", mask);
    return digits;
}

// A barrier that all threads of the block have to reach at the same place.
void meet(Barrier& barrier, const char* operation, const Location& where) {
    if (barrier.arrived == 0)
        barrier.first = where;
    else if (!(barrier.first == where))
        fail(std::string("waits at ") + operation + ", " + text(where) +
             ", while others of its block wait at that of " + text(barrier.first));
    const uint64_t generation = barrier.generation;
    if (!barrier.arrive(this_thread())) block_until([&] { return barrier.generation != generation; }, operation, where);
    barrier.order.acquire_own(this_thread());
}

Exchange* new_exchange(Warp& warp) {
    if (warp.idle.empty()) {
        warp.exchanges.push_back(std::make_unique<Exchange>());
        return warp.exchanges.back().get();
    }
    Exchange* exchange = warp.idle.back();
    warp.idle.pop_back();
    return exchange;
}

// Bring a value and wait for those of the other lanes. Every lane of the mask has to call leave() in the end. Of all
// such operations __syncwarp alone orders accesses to memory.
Exchange& meet(unsigned mask, uint64_t value, const char* operation, const Location& where, bool orders = false) {
    Thread& thread = this_thread();
    Warp& warp = thread.warp();
    const unsigned bit = 1u << thread.lane();
    if (!(mask & bit))
        fail(std::string(operation) + ": the mask " + hexadecimal(mask) + " does not name the lane itself", where);
    mask &= warp.lanes;
    if (mask & warp.exited)
        fail(std::string(operation) + ": the mask names lanes that have exited, " + hexadecimal(mask & warp.exited),
             where);
    Exchange*& open = warp.open[std::countr_zero(mask)];
    const unsigned elsewhere = mask & warp.waiting & ~(open && open->mask == mask ? open->arrived : 0u);
    if (elsewhere)
        fail(std::string(operation) + ": lanes " + hexadecimal(elsewhere) + " of the mask " + hexadecimal(mask) +
                 " wait elsewhere with another mask",
             where);
    if (!open) {
        open = new_exchange(warp);
        open->arrived = 0;
        open->complete = false;
        open->mask = mask;
        open->operation = operation;
        open->where = where;
    } else if (std::string_view(open->operation) != operation || !(open->where == where)) {
        fail(std::string("divergence: waits at ") + operation + ", " + text(where) +
             ", while other lanes of its warp wait at " + open->operation + ", " + text(open->where));
    }
    Exchange* exchange = open;
    exchange->values[thread.lane()] = value;
    exchange->arrived |= bit;
    if (orders) exchange->order.release(thread);
    warp.waiting |= bit;
    if (exchange->arrived == mask) {
        exchange->complete = true;
        exchange->unread = mask;
        warp.waiting &= ~mask;
        open = nullptr;
        if (orders) exchange->order.open();
    } else {
        block_until([=] { return exchange->complete; }, operation, where);
    }
    if (orders) exchange->order.acquire_own(thread);
    return *exchange;
}

void leave(Exchange& exchange) {
    const Thread& thread = this_thread();
    exchange.unread &= ~(1u << thread.lane());
    if (exchange.unread) return;
    exchange.order = Order();
    thread.warp().idle.push_back(&exchange);
}

}  // namespace

void synchronize_block(const Location& where) { meet(this_thread().block->barrier, "__syncthreads", where); }

int synchronize_block_count(bool predicate, const Location& where) {
    Block& block = *this_thread().block;
    // By parity: a thread may be at the next barrier before another has read the sum of this one.
    int& sum = block.predicates[block.barrier.generation & 1];
    if (block.barrier.arrived == 0) sum = 0;
    sum += predicate;
    meet(block.barrier, "__syncthreads", where);
    return sum;
}

void synchronize_warp(unsigned mask, const Location& where) {
    leave(meet(mask, 0, "__syncwarp", where, /*orders=*/true));
}

unsigned current_lane() { return this_thread().lane(); }

uint64_t shuffle(unsigned mask, uint64_t value, unsigned source, const char* operation, const Location& where) {
    Exchange& exchange = meet(mask, value, operation, where);
    if (!(exchange.mask >> source & 1))
        fail(std::string(operation) + ": reads from lane " + std::to_string(source) + ", which does not take part",
             where);
    const uint64_t result = exchange.values[source];
    leave(exchange);
    return result;
}

unsigned ballot(unsigned mask, bool predicate, const char* operation, const Location& where) {
    Exchange& exchange = meet(mask, predicate, operation, where);
    unsigned votes = 0;
    for (unsigned lane = 0; lane < warp_size; ++lane)
        if (exchange.mask >> lane & 1) votes |= static_cast<unsigned>(exchange.values[lane]) << lane;
    leave(exchange);
    return votes;
}

void gather(unsigned mask, uint64_t value, uint64_t* values, const char* operation, const Location& where) {
    Exchange& exchange = meet(mask, value, operation, where);
    std::copy(exchange.values, exchange.values + warp_size, values);
    leave(exchange);
}

}  // namespace cuda_emulator
