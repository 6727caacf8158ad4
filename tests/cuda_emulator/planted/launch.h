// How the planted kernels are launched, from Python through ctypes.
#pragma once

#include <cuda_emulator.h>

#include <string>

// The name of CUDA's error, the text of what was thrown, or nothing if all went well.
template <class... P, class... A>
const char* launch(void (*kernel)(P...), unsigned blocks, unsigned threads, size_t bytes, unsigned cluster,
                   A... arguments) {
    cudaLaunchAttribute attribute{};
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {cluster, 1, 1};
    cudaLaunchConfig_t config{};
    config.gridDim = blocks;
    config.blockDim = threads;
    config.dynamicSmemBytes = bytes;
    config.attrs = &attribute;
    config.numAttrs = 1;
    static std::string message;
    try {
        const cudaError_t error = cudaLaunchKernelEx(&config, kernel, arguments...);
        message = error == cudaSuccess ? "" : cudaGetErrorName(error);
    } catch (const std::exception& error) {
        message = error.what();
    }
    return message.c_str();
}
