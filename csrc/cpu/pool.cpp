#include "pool.h"

#include <pthread.h>
#include <sched.h>

#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <mutex>
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

// Threads look at a number that changes with every job; they spin for a while, and then sleep.
class Pool {
  public:
    void run(const Job& next) {
        while (threads_ < next.ranges - 1) {
            std::thread([this, range = ++threads_, seen = number_.load()] { serve(range, seen); }).detach();
        }
        job_ = next;
        left_.store(threads_, std::memory_order_relaxed);
        number_.fetch_add(1);  // sequentially consistent with `asleep_`: nobody falls asleep unseen
        if (asleep_.load() > 0) {
            std::lock_guard<std::mutex> lock(mutex_);
            wake_.notify_all();
        }
        attempt(next, 0);
        for (int spins = 0; left_.load(std::memory_order_acquire) > 0;) {
            if (++spins < SPINS) pause();
            else sched_yield();
        }
        if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
    }

  private:
    // What a range throws is thrown to the caller, once all ranges are done.
    void attempt(const Job& job, int range) {
        try {
            job.run(range);
        } catch (...) {
            std::lock_guard<std::mutex> lock(mutex_);
            failure_ = std::current_exception();
        }
    }

    void serve(int range, uint64_t seen) {
        for (;;) {
            for (int spins = 0; number_.load(std::memory_order_acquire) == seen && spins < SPINS; spins++) pause();
            if (number_.load(std::memory_order_acquire) == seen) {
                std::unique_lock<std::mutex> lock(mutex_);
                asleep_.fetch_add(1);
                wake_.wait(lock, [&] { return number_.load() != seen; });
                asleep_.fetch_sub(1);
            }
            seen = number_.load(std::memory_order_acquire);
            if (range < job_.ranges) attempt(job_, range);
            left_.fetch_sub(1, std::memory_order_release);
        }
    }

    int threads_ = 0;  // beside the caller's
    Job job_{};
    std::atomic<uint64_t> number_{0};
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
    int64_t units = (count + unit - 1) / unit;
    int ranges = units < threads ? static_cast<int>(units) : threads;
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
        found->run(Job{work, context, count, unit, ranges});
        return;
    }
    // The ranges are the same all the same, so that sums are.
    Job job{work, context, count, unit, ranges};
    for (int range = 0; range < ranges; range++) job.run(range);
}

}  // namespace tilegrad::cpu
