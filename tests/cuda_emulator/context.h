// Switching between the stacks of fibers.
#pragma once

#include <cstddef>

namespace cuda_emulator {

// Leave the running stack, remembering where in *save, and go on where `load` was remembered.
void switch_context(void** save, void* load);

// What switch_context has to load to call `entry` on a fresh stack. `entry` must not return.
void* new_context(std::byte* stack, size_t bytes, void (*entry)());

}  // namespace cuda_emulator
