// What the checked build watches: each access of a kernel to global and to shared memory.
#pragma once

#include "core.h"

namespace cuda_emulator {

enum class Access { read, write, atomic };
std::string describe(Access access, size_t bytes);  // "reads 4 bytes"

// An access that an emulated instruction makes by itself, on behalf of this_thread(): at `moment`, which is that of the
// thread (now()) or of asynchronous work that it issues (asynchronous_now()). To be called when it is issued.
void note_read(const void* address, size_t bytes, const Moment& moment, const Location& where);
void note_write(void* address, size_t bytes, const Moment& moment, const Location& where);
void note_atomic(void* address, size_t bytes, const Location& where);
// What a function of the runtime writes between launches.
void note_host_write(void* address, size_t bytes);

// Asynchronous work that reads what threads have written to shared memory needs a fence of the proxy in between.
void require_proxy_fence(const void* shared, size_t bytes, const Location& where);

// Where an access stands in the kernel's source: known for emulated instructions, else looked up when it is needed.
struct Site {
    const void* instruction = nullptr;
    Location where;
    std::string text() const;
};

// Checks of global memory (memory.cpp), and of shared memory (shadow.cpp).
void check_access(const void* address, size_t bytes, Access access, const Moment& moment, const Site& site);
void check_shared(Block& block, size_t offset, size_t bytes, Access access, const Moment& moment, const Site& site);
void start_global_checks(uint32_t first_cluster);  // of a launch
// The first write to these bytes that the thread's asynchronous work may not read yet, or none.
const Moment* find_unfenced(Block& block, size_t offset, size_t bytes, const Thread& thread);
void start_shadow(Cluster& cluster);
void end_shadow(Block& block);  // its last thread has exited

}  // namespace cuda_emulator

extern "C" {
// From now on a kernel may access no global memory but what is watched: as `access` says, 1 to read, 2 to write, 3
// both, and 7 both where what is there at first means nothing, so that it must be written before it is read.
// Returns 0 and does nothing if part of it is watched already: what kernels get twice is watched once.
int cuda_emulator_watch(const void* address, uint64_t bytes, const char* name, int access);
void cuda_emulator_forget();

struct cuda_emulator_traffic_counts {
    uint64_t bytes_read, bytes_written;        // by all threads together
    uint64_t distinct_read, distinct_written;  // bytes that have been, at least once
};
// Of a watched region, since it has been. Returns 0 if there is none of that name.
int cuda_emulator_traffic(const char* name, cuda_emulator_traffic_counts* counts);
}
