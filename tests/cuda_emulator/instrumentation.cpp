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

// Called when the library is loaded, by each file that is watched.
void __tsan_init() { checked = true; }

// Host code in the same files: virtual tables, and the guards of static variables.
void __tsan_vptr_update(void*, void*) {}
void __tsan_vptr_read(void*) {}
uint8_t __tsan_atomic8_load(const volatile uint8_t* address, int) { return __atomic_load_n(address, __ATOMIC_SEQ_CST); }

}  // extern "C"
