// The CUDA runtime's templates for kernels, which CUDA's own headers define for nvcc only.
#pragma once

#include "core.h"

#include <utility>

namespace cuda_emulator {

// Called on every thread's own fiber; copies the arguments there, as a kernel's parameters are its own.
template <class... P, size_t... i>
CUDA_EMULATOR_UNCHECKED void invoke_with(const void* kernel, void** arguments, std::index_sequence<i...>) {
    reinterpret_cast<void (*)(P...)>(const_cast<void*>(kernel))(
        *static_cast<std::remove_reference_t<P>*>(arguments[i])...);
}
template <class... P> void invoke(const void* kernel, [[maybe_unused]] void** arguments) {
    invoke_with<P...>(kernel, arguments, std::index_sequence_for<P...>());
}

template <class... P> const void* known_kernel(void (*kernel)(P...)) {
    register_kernel(reinterpret_cast<const void*>(kernel), invoke<P...>);
    return reinterpret_cast<const void*>(kernel);
}

}  // namespace cuda_emulator

template <class... P, class... A>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(P...), A&&... arguments) {
    return [&](P... converted) {
        void* pointers[] = {const_cast<void*>(static_cast<const void*>(&converted))..., nullptr};
        return cudaLaunchKernelExC(config, cuda_emulator::known_kernel(kernel), pointers);
    }(std::forward<A>(arguments)...);
}

template <class... P> cudaError_t cudaFuncSetAttribute(void (*kernel)(P...), cudaFuncAttribute attribute, int value) {
    return cudaFuncSetAttribute(cuda_emulator::known_kernel(kernel), attribute, value);
}
template <class... P> cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, void (*kernel)(P...)) {
    return cudaFuncGetAttributes(attributes, cuda_emulator::known_kernel(kernel));
}
template <class... P>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, void (*kernel)(P...), int threads,
                                                          size_t bytes) {
    return cudaOccupancyMaxActiveBlocksPerMultiprocessor(blocks, cuda_emulator::known_kernel(kernel), threads, bytes);
}
