#include "order.h"

#include "core.h"

#include <algorithm>

namespace cuda_emulator {

struct View {
    std::vector<Clock> clocks;
};

namespace {

struct State {
    std::shared_ptr<View> view;
    Clock clock = 1;
    Clock issued = 0;  // asynchronous work, and how much of it has been waited for
    Clock waited = 0;
    Clock fenced = 0;  // what it had done when it last fenced, and what it knew then
    std::shared_ptr<View> fenced_view = nullptr;
};

// Lanes that acquire the same from the same view get the same result, one after the other.
struct Acquired {
    std::shared_ptr<View> mine, theirs, both;
};

struct Clocks {
    uint32_t threads = 0;
    uint32_t threads_of_block = 0;
    std::vector<State> states;
    Acquired acquired[32];
    size_t oldest = 0;
};
Clocks clocks;

uint32_t column(const Thread& thread) { return thread.block->rank * clocks.threads_of_block + thread.rank; }
State& state(const Thread& thread) { return clocks.states[column(thread)]; }

void raise(View& view, const View& other) {
    for (size_t i = 0; i < view.clocks.size(); ++i) view.clocks[i] = std::max(view.clocks[i], other.clocks[i]);
}

}  // namespace

void start_order(const Cluster& cluster) {
    clocks = Clocks{};
    if (!checked) return;
    clocks.threads_of_block = static_cast<uint32_t>(cluster.blocks[0].threads.size());
    clocks.threads = static_cast<uint32_t>(cluster.blocks.size()) * clocks.threads_of_block;
    auto view = std::make_shared<View>();
    view->clocks.resize(2 * clocks.threads);
    clocks.states.assign(clocks.threads, State{.view = view});
}

Moment now(const Thread& thread) {
    if (!checked) return {};
    return {column(thread), state(thread).clock};
}

Moment asynchronous_now(const Thread& thread) {
    if (!checked) return {};
    return {clocks.threads + column(thread), ++state(thread).issued};
}

void know_asynchronous(const Thread& thread, const Moment& moment) {
    if (!checked) return;
    Clock& waited = state(thread).waited;
    waited = std::max(waited, moment.clock);
}

Knowledge knowledge(const Thread& thread) {
    const State& mine = state(thread);
    return {mine.view->clocks.data(), column(thread), clocks.threads + column(thread), mine.waited};
}

bool is_asynchronous(const Moment& moment) { return moment.column >= clocks.threads; }

void fence_proxy(const Thread& thread) {
    if (!checked) return;
    State& mine = state(thread);
    mine.fenced = mine.clock++;
    mine.fenced_view = mine.view;
}

bool is_fenced(const Moment& write, const Thread& thread) {
    if (write.clock == 0 || is_asynchronous(write)) return true;  // the latter never needed it
    const std::shared_ptr<View>& view = state(thread).fenced_view;
    return write.clock <= clocks.states[write.column].fenced || (view && write.clock <= view->clocks[write.column]);
}

bool is_known_to_any(const Block& block, const Moment& moment) {
    const View* previous = nullptr;
    for (const Thread& thread : block.threads) {
        const View* view = state(thread).view.get();
        if (view != previous && view->clocks[moment.column] >= moment.clock) return true;
        previous = view;
    }
    return false;
}

const Thread& thread_of(const Cluster& cluster, const Moment& moment) {
    const uint32_t column = moment.column % clocks.threads;
    return cluster.blocks[column / clocks.threads_of_block].threads[column % clocks.threads_of_block];
}

void Order::release(const Thread& thread) {
    if (!checked) return;
    State& mine = state(thread);
    if (std::find(views_.rbegin(), views_.rend(), mine.view) == views_.rend()) views_.push_back(mine.view);
    moments_.push_back({column(thread), mine.clock++});
    if (mine.waited) moments_.push_back({clocks.threads + column(thread), mine.waited});
}

void Order::release(const Moment& asynchronous) {
    if (checked) moments_.push_back(asynchronous);
}

void Order::open() {
    if (!checked) return;
    opened_ = views_.empty() ? std::make_shared<View>(View{std::vector<Clock>(2 * clocks.threads)})
                             : std::make_shared<View>(*views_[0]);
    for (size_t i = 1; i < views_.size(); ++i) raise(*opened_, *views_[i]);
    for (const Moment& moment : moments_) {
        Clock& clock = opened_->clocks[moment.column];
        clock = std::max(clock, moment.clock);
    }
    views_.clear();
    moments_.clear();
}

void Order::acquire_own(const Thread& thread) const {
    if (checked) state(thread).view = opened_;
}

void Order::acquire(const Thread& thread) const {
    if (!checked || !opened_) return;
    std::shared_ptr<View>& mine = state(thread).view;
    if (mine == opened_) return;
    for (const Acquired& known : clocks.acquired)
        if (known.mine == mine && known.theirs == opened_) {
            mine = known.both;
            return;
        }
    Acquired& fresh = clocks.acquired[clocks.oldest++ % std::size(clocks.acquired)];
    fresh = {mine, opened_, std::make_shared<View>(*mine)};
    raise(*fresh.both, *opened_);
    mine = fresh.both;
}

}  // namespace cuda_emulator
