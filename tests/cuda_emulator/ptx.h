// Instructions that CUDA C++ has no function for, under the names of the wrappers that kernels put around them.
#pragma once

#include "core.h"

namespace cuda_emulator {

void cp_async(void* shared, const void* global, size_t bytes, size_t source_bytes, const Location& where);
void cp_async_commit();
void cp_async_wait(size_t pending);
void bar_sync(unsigned barrier, unsigned threads, const Location& where);
void bar_arrive(unsigned barrier, unsigned threads, const Location& where);

}  // namespace cuda_emulator

namespace ptx {

// cp.async.cg.shared.global [shared], [global], 16. The bytes arrive at the latest when their group is waited for.
inline void cp_async_16(void* shared, const void* global,
                        cuda_emulator::Location where = cuda_emulator::Location::current()) {
    cuda_emulator::cp_async(shared, global, 16, 16, where);
}
// The same where only the first `source_bytes` exist; the rest becomes zero.
inline void cp_async_16(void* shared, const void* global, unsigned source_bytes,
                        cuda_emulator::Location where = cuda_emulator::Location::current()) {
    cuda_emulator::cp_async(shared, global, 16, source_bytes, where);
}
inline void cp_async_commit() { cuda_emulator::cp_async_commit(); }
template <int pending> void cp_async_wait() { cuda_emulator::cp_async_wait(pending); }

// bar.sync and bar.arrive: barriers 1 to 15 of a block, for `threads` of its threads.
inline void bar_sync(int barrier, int threads, cuda_emulator::Location where = cuda_emulator::Location::current()) {
    cuda_emulator::bar_sync(static_cast<unsigned>(barrier), static_cast<unsigned>(threads), where);
}
inline void bar_arrive(int barrier, int threads, cuda_emulator::Location where = cuda_emulator::Location::current()) {
    cuda_emulator::bar_arrive(static_cast<unsigned>(barrier), static_cast<unsigned>(threads), where);
}

}  // namespace ptx
