// The stacks of CUDA threads, and the way to them and back.
#include "machine.h"

#include "context.h"

#include <new>
#include <sys/mman.h>

// AddressSanitizer has to be told of each change of stacks. Its functions are there if the process was started with it.
extern "C" {
__attribute__((weak)) void __sanitizer_start_switch_fiber(void** save, const void* stack, size_t bytes);
__attribute__((weak)) void __sanitizer_finish_switch_fiber(void* saved, const void** stack, size_t* bytes);
__attribute__((weak)) void __asan_unpoison_memory_region(const volatile void* address, size_t bytes);
}

namespace cuda_emulator {

Thread* fiber;

namespace {

constexpr size_t guard_bytes = 4096;

struct Scheduler {
    void* stack_pointer;
    void* fake_stack;
    const void* stack;
    size_t stack_bytes;
};
Scheduler scheduler;

void entry() {
    if (__sanitizer_finish_switch_fiber)
        __sanitizer_finish_switch_fiber(nullptr, &scheduler.stack, &scheduler.stack_bytes);
    fiber_main();
    leave_fiber();
}

}  // namespace

std::byte* stack(size_t i) {
    static std::vector<std::byte*> stacks;
    while (stacks.size() <= i) {
        void* memory = mmap(nullptr, guard_bytes + stack_bytes, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED) throw std::bad_alloc();
        mprotect(memory, guard_bytes, PROT_NONE);
        stacks.push_back(static_cast<std::byte*>(memory) + guard_bytes);
    }
    return stacks[i];
}

void start_fiber(Thread& thread, std::byte* stack) {
    thread.stack = stack;
    thread.stack_pointer = new_context(stack, stack_bytes, entry);
    // What a fiber has left there that was abandoned.
    if (__asan_unpoison_memory_region) __asan_unpoison_memory_region(stack, stack_bytes);
}

void enter_fiber(Thread& thread) {
    fiber = &thread;
    if (__sanitizer_start_switch_fiber)
        __sanitizer_start_switch_fiber(&scheduler.fake_stack, thread.stack, stack_bytes);
    switch_context(&scheduler.stack_pointer, thread.stack_pointer);
    if (__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(scheduler.fake_stack, nullptr, nullptr);
    fiber = nullptr;
}

void leave_fiber() {
    Thread& thread = *fiber;
    if (__sanitizer_start_switch_fiber)
        __sanitizer_start_switch_fiber(thread.finished ? nullptr : &thread.fake_stack, scheduler.stack,
                                       scheduler.stack_bytes);
    switch_context(&thread.stack_pointer, scheduler.stack_pointer);
    if (__sanitizer_finish_switch_fiber)
        __sanitizer_finish_switch_fiber(thread.fake_stack, &scheduler.stack, &scheduler.stack_bytes);
}

}  // namespace cuda_emulator
