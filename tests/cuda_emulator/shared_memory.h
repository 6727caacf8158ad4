// The shared memory of the blocks of the running cluster.
//
// Dynamic shared memory is an array per block. Static shared memory is what `__shared__` declares: variables of the
// library's thread-local storage, whose place the loader knows, and which works inside of templates. All blocks see
// them at one address, so the image of a block is swapped in before one of its threads runs.
#pragma once

#include "core.h"

#include <optional>

namespace cuda_emulator {

void enter_shared_memory(const Launch& launch);  // before the first block
void leave_shared_memory();                      // after the last
void start_shared_memory(Block& block, size_t dynamic_bytes);
void end_shared_memory(Block& block);  // its threads have exited: what others still read is poison
void make_resident(Block& block);

size_t static_shared_bytes();

// A byte of shared memory: in which block, and how far into its static memory followed by its dynamic memory.
struct SharedAddress {
    Block* block;
    size_t offset;
};
std::optional<SharedAddress> find_shared(Cluster& cluster, const void* address);

// Of the library that the kernels are in: its constants and variables.
bool is_static_data(const void* address);

}  // namespace cuda_emulator
