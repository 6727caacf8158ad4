// Threads that share ranges of work, kept from call to call.
#pragma once

#include <cstdint>

namespace tilegrad::cpu {

// How many threads a call may use, the caller's own among them.
int num_threads();
void set_num_threads(int threads);

using Work = void (*)(void* context, int64_t first, int64_t last);

// Call `work` with ranges that together are [0, count), each a multiple of `unit` but the last, from up to so many
// threads. Which ranges they are depends on nothing but these numbers; which thread takes which, on who comes first.
//
// One caller at a time has the threads: another one, and one inside of `work`, does all of its own. After a fork the
// child's first call makes threads of its own.
void share(int64_t count, int64_t unit, int threads, Work work, void* context);

template <class F> void share(int64_t count, int64_t unit, int threads, F f) {
    share(count, unit, threads, [](void* context, int64_t first, int64_t last) { (*static_cast<F*>(context))(first, last); }, &f);
}

}  // namespace tilegrad::cpu
