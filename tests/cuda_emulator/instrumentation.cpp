// What the compiler calls in kernels of the checked build: before each access, as if for ThreadSanitizer, and where a
// pointer is not aligned as its type says, as for UndefinedBehaviorSanitizer. Both are ours here, so neither is linked.
#include "memory.h"

#include <cstring>

namespace cuda_emulator {

bool checked = false;

namespace {

void check(const void* address, size_t bytes, Access access, const void* instruction) {
    if (!fiber || fiber->has_on_stack(address)) return;
    check_access(address, bytes, access, now(*fiber), Site{instruction, {}});
}

struct TypeDescriptor {
    uint16_t kind, information;
    char name[1];  // in quotes
};
struct TypeMismatch {
    struct {
        const char* file;
        uint32_t line, column;
    } location;
    const TypeDescriptor* type;
    uint8_t log_alignment;
    uint8_t kind;
};

}  // namespace

}  // namespace cuda_emulator

using namespace cuda_emulator;

// No function here may be inlined into another: the address it returns to is the kernel's.
#define CUDA_EMULATOR_ACCESS(name, bytes, access) \
    void name(void* address) { check(address, bytes, Access::access, __builtin_return_address(0)); }
#define CUDA_EMULATOR_ACCESSES(bytes)                                 \
    CUDA_EMULATOR_ACCESS(__tsan_read##bytes, bytes, read)             \
    CUDA_EMULATOR_ACCESS(__tsan_write##bytes, bytes, write)           \
    CUDA_EMULATOR_ACCESS(__tsan_unaligned_read##bytes, bytes, read)   \
    CUDA_EMULATOR_ACCESS(__tsan_unaligned_write##bytes, bytes, write) \
    CUDA_EMULATOR_ACCESS(__tsan_volatile_read##bytes, bytes, read)    \
    CUDA_EMULATOR_ACCESS(__tsan_volatile_write##bytes, bytes, write)

extern "C" {

CUDA_EMULATOR_ACCESSES(1)
CUDA_EMULATOR_ACCESSES(2)
CUDA_EMULATOR_ACCESSES(4)
CUDA_EMULATOR_ACCESSES(8)
CUDA_EMULATOR_ACCESSES(16)

void __tsan_read_range(void* address, size_t bytes) {
    check(address, bytes, Access::read, __builtin_return_address(0));
}
void __tsan_write_range(void* address, size_t bytes) {
    check(address, bytes, Access::write, __builtin_return_address(0));
}

// build.py gives these names to the calls that kernels make.
void* cuda_emulator_memcpy(void* to, const void* from, size_t bytes) {
    check(from, bytes, Access::read, __builtin_return_address(0));
    check(to, bytes, Access::write, __builtin_return_address(0));
    return std::memcpy(to, from, bytes);
}
void* cuda_emulator_memmove(void* to, const void* from, size_t bytes) {
    check(from, bytes, Access::read, __builtin_return_address(0));
    check(to, bytes, Access::write, __builtin_return_address(0));
    return std::memmove(to, from, bytes);
}
void* cuda_emulator_memset(void* to, int value, size_t bytes) {
    check(to, bytes, Access::write, __builtin_return_address(0));
    return std::memset(to, value, bytes);
}

void __ubsan_handle_type_mismatch_v1(const TypeMismatch* mismatch, const void* address) {
    if (!fiber) return;
    char place[32];
    std::snprintf(place, sizeof place, "%p", address);
    fail(std::string("misaligned: accesses ") + mismatch->type->name + " at " + place +
         ", which is not a multiple of " + std::to_string(1u << mismatch->log_alignment) + ", " +
         Site{__builtin_return_address(0), {}}.text());
}

// Called by each file that is watched, when the library is loaded.
void __tsan_init() { checked = true; }

// Host code in the same files: virtual tables, and atomics, such as the counts of shared pointers.
void __tsan_vptr_update(void*, void*) {}
void __tsan_vptr_read(void*) {}

#define CUDA_EMULATOR_FETCH(bits, operation)                                                                       \
    uint##bits##_t __tsan_atomic##bits##_fetch_##operation(volatile uint##bits##_t* address, uint##bits##_t value, \
                                                           int) {                                                  \
        return __atomic_fetch_##operation(address, value, __ATOMIC_SEQ_CST);                                       \
    }
#define CUDA_EMULATOR_EXCHANGE(bits, strength, weak)                                                                   \
    bool __tsan_atomic##bits##_compare_exchange_##strength(volatile uint##bits##_t* address, uint##bits##_t* expected, \
                                                           uint##bits##_t value, int, int) {                           \
        return __atomic_compare_exchange_n(address, expected, value, weak, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);        \
    }
#define CUDA_EMULATOR_HOST_ATOMICS(bits)                                                                         \
    uint##bits##_t __tsan_atomic##bits##_load(const volatile uint##bits##_t* address, int) {                     \
        return __atomic_load_n(address, __ATOMIC_SEQ_CST);                                                       \
    }                                                                                                            \
    void __tsan_atomic##bits##_store(volatile uint##bits##_t* address, uint##bits##_t value, int) {              \
        __atomic_store_n(address, value, __ATOMIC_SEQ_CST);                                                      \
    }                                                                                                            \
    uint##bits##_t __tsan_atomic##bits##_exchange(volatile uint##bits##_t* address, uint##bits##_t value, int) { \
        return __atomic_exchange_n(address, value, __ATOMIC_SEQ_CST);                                            \
    }                                                                                                            \
    CUDA_EMULATOR_FETCH(bits, add)                                                                               \
    CUDA_EMULATOR_FETCH(bits, sub)                                                                               \
    CUDA_EMULATOR_FETCH(bits, and)                                                                               \
    CUDA_EMULATOR_FETCH(bits, or)                                                                                \
    CUDA_EMULATOR_FETCH(bits, xor)                                                                               \
    CUDA_EMULATOR_EXCHANGE(bits, strong, false)                                                                  \
    CUDA_EMULATOR_EXCHANGE(bits, weak, true)

CUDA_EMULATOR_HOST_ATOMICS(8)
CUDA_EMULATOR_HOST_ATOMICS(16)
CUDA_EMULATOR_HOST_ATOMICS(32)
CUDA_EMULATOR_HOST_ATOMICS(64)
void __tsan_atomic_thread_fence(int) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

}  // extern "C"
