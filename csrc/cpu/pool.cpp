#include "pool.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace tilegrad::cpu {
namespace {

void pause() {
#if defined(__x86_64__)
    _mm_pause();
#endif
}

constexpr int RANGES = 4;    // for each thread: the last ones even out what the threads were held up for
constexpr int SPINS = 4000;  // tens of microseconds, in which the next call of a training step comes

struct Job {
    Work work;
    void* context;
    int64_t count, unit;
    int ranges;

    void run(int range) const {
        int64_t units = (count + unit - 1) / unit;
        int64_t first = units * range / ranges * unit, last = units * (range + 1) / ranges * unit;
        if (last > count) last = count;
        if (first < last) work(context, first, last);
    }
};

// What the threads look at and take ranges from: a job's number, how many threads and ranges it has, and the range that
// is to be taken next. All in one word, so that who takes a range knows that it is of the job that is there: the next one
// does not come before that range is done.
class Ticket {
  public:
    Ticket(uint64_t number, int threads, int ranges)
        : bits_(number << 48 | static_cast<uint64_t>(threads) << 36 | static_cast<uint64_t>(ranges) << 18) {}
    explicit Ticket(uint64_t bits) : bits_(bits) {}

    uint64_t bits() const { return bits_; }
    uint64_t number() const { return bits_ >> 48; }
    int threads() const { return static_cast<int>(bits_ >> 36 & 0xfff); }
    int ranges() const { return static_cast<int>(bits_ >> 18 & 0x3ffff); }
    int next() const { return static_cast<int>(bits_ & 0x3ffff); }

    static constexpr int MOST_THREADS = 0xfff, MOST_RANGES = 0x3ffff;

  private:
    uint64_t bits_;
};

// Threads that wait for a job spin for a while, and then sleep. A range goes to whoever comes first: a thread that the
// system does not run holds nobody up.
class Pool {
  public:
    void run(const Job& next, int threads) {
        while (threads_ < threads - 1 && started(threads_ + 1)) threads_++;
        job_ = next;
        left_.store(next.ranges, std::memory_order_relaxed);
        ticket_.store(Ticket(now().number() + 1, threads, next.ranges).bits());  // and nobody falls asleep unseen
        if (asleep_.load() > 0) {
            std::lock_guard<std::mutex> lock(mutex_);
            wake_.notify_all();
        }
        take_ranges(0);
        for (int spins = 0; left_.load(std::memory_order_acquire) > 0;) {
            if (++spins < SPINS) pause();
            else sched_yield();
        }
        if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
    }

  private:
    Ticket now() const { return Ticket(ticket_.load(std::memory_order_acquire)); }

    // One more thread, unless the system gives none.
    bool started(int thread) {
        try {
            std::thread([this, thread, seen = now().number()] { serve(thread, seen); }).detach();
        } catch (const std::system_error&) {
            return false;
        }
        return true;
    }

    void take_ranges(int thread) {
        uint64_t bits = ticket_.load(std::memory_order_acquire);
        for (;;) {
            Ticket ticket(bits);
            if (thread >= ticket.threads() || ticket.next() >= ticket.ranges()) return;
            if (!ticket_.compare_exchange_weak(bits, bits + 1, std::memory_order_acq_rel, std::memory_order_acquire)) continue;
            attempt(ticket.next());
            left_.fetch_sub(1, std::memory_order_release);
            bits = ticket_.load(std::memory_order_acquire);
        }
    }

    // What a range throws is thrown to the caller, once all ranges are done.
    void attempt(int range) {
        try {
            job_.run(range);
        } catch (...) {
            std::lock_guard<std::mutex> lock(mutex_);
            failure_ = std::current_exception();
        }
    }

    void serve(int thread, uint64_t seen) {
        for (;;) {
            for (int spins = 0; now().number() == seen && spins < SPINS; spins++) pause();
            if (now().number() == seen) {
                std::unique_lock<std::mutex> lock(mutex_);
                asleep_.fetch_add(1);
                wake_.wait(lock, [&] { return Ticket(ticket_.load()).number() != seen; });
                asleep_.fetch_sub(1);
            }
            seen = now().number();
            take_ranges(thread);
        }
    }

    int threads_ = 0;  // beside the caller's
    Job job_{};
    std::atomic<uint64_t> ticket_{0};
    std::atomic<int> left_{0}, asleep_{0};
    std::mutex mutex_;
    std::exception_ptr failure_;
    std::condition_variable wake_;
};

// Never freed: its threads may outlive everything else.
std::atomic<Pool*> pool{nullptr};
std::atomic<bool> taken{false};
std::atomic<int> wanted{0};  // 0: not asked yet

void forget() {  // in the child of a fork, which has none of its parent's threads
    pool.store(nullptr);
    taken.store(false);
}

int threads_at_first() {
    if (const char* text = std::getenv("OMP_NUM_THREADS")) {
        int number = std::atoi(text);
        if (number > 0) return number;
    }
    cpu_set_t allowed;
    int number = sched_getaffinity(0, sizeof allowed, &allowed) == 0 ? CPU_COUNT(&allowed) : 1;
    return number > 0 ? number : 1;
}

}  // namespace

int num_threads() {
    int number = wanted.load(std::memory_order_relaxed);
    if (number == 0) {
        number = threads_at_first();
        wanted.store(number, std::memory_order_relaxed);
    }
    return number;
}

void set_num_threads(int threads) { wanted.store(threads, std::memory_order_relaxed); }

void share(int64_t count, int64_t unit, int threads, Work work, void* context) {
    if (count <= 0) return;
    int64_t units = (count + unit - 1) / unit, wished = static_cast<int64_t>(threads) * RANGES;
    int ranges = static_cast<int>(std::min({units, wished, static_cast<int64_t>(Ticket::MOST_RANGES)}));
    if (threads <= 1) ranges = 1;
    if (ranges > 1 && !taken.exchange(true, std::memory_order_acquire)) {
        Pool* found = pool.load();
        if (found == nullptr) {
            static const int registered = pthread_atfork(nullptr, nullptr, forget);
            static_cast<void>(registered);
            pool.store(found = new Pool);
        }
        struct GiveBack {
            ~GiveBack() { taken.store(false, std::memory_order_release); }
        } give_back;
        found->run(Job{work, context, count, unit, ranges}, std::min(threads, Ticket::MOST_THREADS));
        return;
    }
    // The ranges are the same all the same, so that sums are.
    Job job{work, context, count, unit, ranges};
    for (int range = 0; range < ranges; range++) job.run(range);
}

}  // namespace tilegrad::cpu
