// Atomic operations on global and shared memory.
#pragma once

#include "memory.h"

namespace cuda_emulator {

// Threads run one at a time, so that plain loads and stores are atomic; others may come in before it.
template <class T, class Change> CUDA_EMULATOR_UNCHECKED T atomic(T* address, Change change, const Location& where) {
    preempt();
    note_atomic(address, sizeof(T), where);
    const T old = *address;
    *address = change(old);
    return old;
}

}  // namespace cuda_emulator

#define CUDA_EMULATOR_OPERATION(name, T, result)                                                             \
    inline T name(T* address, T value, cuda_emulator::Location where = cuda_emulator::Location::current()) { \
        return cuda_emulator::atomic(address, [=]([[maybe_unused]] T old) -> T { return result; }, where);   \
    }
#define CUDA_EMULATOR_ATOMIC(T)                        \
    CUDA_EMULATOR_OPERATION(atomicAdd, T, old + value) \
    CUDA_EMULATOR_OPERATION(atomicExch, T, value)
#define CUDA_EMULATOR_INTEGER_ATOMIC(T)                                                                     \
    CUDA_EMULATOR_ATOMIC(T)                                                                                 \
    CUDA_EMULATOR_OPERATION(atomicSub, T, old - value)                                                      \
    CUDA_EMULATOR_OPERATION(atomicMax, T, old > value ? old : value)                                        \
    CUDA_EMULATOR_OPERATION(atomicMin, T, old < value ? old : value)                                        \
    CUDA_EMULATOR_OPERATION(atomicAnd, T, old & value)                                                       \
    CUDA_EMULATOR_OPERATION(atomicOr, T, old | value)                                                       \
    CUDA_EMULATOR_OPERATION(atomicXor, T, old ^ value)                                                      \
    inline T atomicCAS(T* address, T expected, T value,                                                     \
                       cuda_emulator::Location where = cuda_emulator::Location::current()) {                \
        return cuda_emulator::atomic(address, [=](T old) { return old == expected ? value : old; }, where); \
    }

CUDA_EMULATOR_INTEGER_ATOMIC(int)
CUDA_EMULATOR_INTEGER_ATOMIC(unsigned)
CUDA_EMULATOR_INTEGER_ATOMIC(unsigned long long)
CUDA_EMULATOR_ATOMIC(float)
CUDA_EMULATOR_ATOMIC(double)

#undef CUDA_EMULATOR_INTEGER_ATOMIC
#undef CUDA_EMULATOR_ATOMIC
#undef CUDA_EMULATOR_OPERATION

// One thread runs at a time: memory is always up to date.
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}
