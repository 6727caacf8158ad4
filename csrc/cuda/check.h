// CUDA's return codes as exceptions. bindings turn them into Python's RuntimeError.
#pragma once

#ifdef CUDA_EMULATOR
#include <cuda_emulator.h>
#else
#include <cuda_runtime_api.h>
#endif

#include <stdexcept>
#include <string>

namespace tilegrad::cuda {

// Throws a sentence that names what was tried, and CUDA's own name and text for what came of it.
inline void check(cudaError_t status, const char* what) {
    if (status == cudaSuccess) return;
    cudaGetLastError();  // it is told of now: the next call must not find it again
    throw std::runtime_error(std::string(what) + " failed: " + cudaGetErrorName(status) + " (" +
                             cudaGetErrorString(status) + ")");
}

}  // namespace tilegrad::cuda
