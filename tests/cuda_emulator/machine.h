// What the parts of the scheduler share while a kernel runs.
#pragma once

#include "core.h"

#include <exception>
#include <utility>

namespace cuda_emulator {

// splitmix64 (Steele, Lea and Flood, 2014).
struct Random {
    uint64_t state = 0;

    uint64_t operator()() {
        uint64_t z = state += 0x9E3779B97F4A7C15;
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9;
        z = (z ^ z >> 27) * 0x94D049BB133111EB;
        return z ^ z >> 31;
    }

    template <class T> void shuffle(std::vector<T>& items) {
        for (size_t i = items.size(); i > 1; --i) std::swap(items[i - 1], items[(*this)() % i]);
    }
};

struct Machine {
    const Launch* launch = nullptr;
    Cluster* cluster = nullptr;
    Thread* thread = nullptr;    // on whose behalf code runs
    std::exception_ptr failure;  // of a fiber, for the scheduler to throw
    Random random;
};
extern Machine machine;

// Fibers: one for each CUDA thread (fibers.cpp).
std::byte* stack(size_t i);  // kept from launch to launch
void start_fiber(Thread& thread, std::byte* stack);
void enter_fiber(Thread& thread);  // until it leaves
void leave_fiber();
extern "C" void fiber_main();  // what a fiber runs (scheduler.cpp)

[[noreturn]] void report_deadlock(const Cluster& cluster);

// What debug information says of an address in a kernel (site.cpp): the function that it is in, and "softmax.cu:41" for
// the place, where that is the innermost of the functions inlined there.
struct SourcePlace {
    std::string function, line;
};
SourcePlace look_up(const void* instruction);

}  // namespace cuda_emulator
