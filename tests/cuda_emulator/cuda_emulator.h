// CUDA C++ on a CPU: what a kernel includes in place of CUDA's headers when g++ compiles it (README.md).
//
//   cd tests/cuda_emulator; g++ -std=c++20 -x c++ -DCUDA_EMULATOR -I . -I $CUDA_HOME/include kernel.cu *.cpp
#pragma once

#include "core.h"

#include "intrinsics.h"

#include "atomics.h"
#include "cluster.h"
#include "collectives.h"
#include "hopper.h"
#include "ptx.h"
#include "runtime.h"

namespace cuda_emulator {

// What `extern __shared__ T name[]` is under nvcc.
template <class T> T* dynamic_shared() { return reinterpret_cast<T*>(dynamic_shared_memory()); }

}  // namespace cuda_emulator
