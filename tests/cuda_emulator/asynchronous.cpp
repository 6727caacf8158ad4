// Work that a thread issues and that completes by itself.
#include "machine.h"

#include "shared_memory.h"

namespace cuda_emulator {

Ticket issue(std::function<void()> action) {
    auto ticket = std::make_shared<Action>(Action{std::move(action), machine.thread});
    const Completion completion = options().completion;
    if (completion == Completion::early || (completion == Completion::random && machine.random() % 2))
        land(ticket);
    else
        machine.cluster->pending.push_back(ticket);
    return ticket;
}

void land(const Ticket& ticket) {
    if (ticket->done) return;
    ticket->done = true;
    Thread* caller = machine.thread;
    machine.thread = ticket->issuer;
    make_resident(*ticket->issuer->block);
    ticket->run();
    ticket->run = nullptr;
    machine.thread = caller;
    if (caller) make_resident(*caller->block);
}

void AsyncGroups::commit() {
    closed.push_back(std::move(open));
    open.clear();
}

void AsyncGroups::wait(size_t pending) {
    while (closed.size() > pending) {
        for (const Piece& piece : closed.front()) {
            land(piece.ticket);
            know_asynchronous(this_thread(), piece.moment);
        }
        closed.pop_front();
    }
}

}  // namespace cuda_emulator
