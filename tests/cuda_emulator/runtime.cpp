// The CUDA runtime API, as far as launchers need it: an H200 whose streams have always finished.
#include "runtime.h"

#include "memory.h"
#include "shared_memory.h"

#include <cstring>
#include <unordered_map>

namespace cuda_emulator {

namespace {

constexpr size_t shared_bytes_without_asking = 48 << 10;
constexpr unsigned portable_cluster = 8, largest_cluster = 16;
constexpr unsigned largest_block = 1024, threads_of_multiprocessor = 2048, blocks_of_multiprocessor = 32;

struct Kernel {
    Invoke invoke = nullptr;
    size_t dynamic_bytes = shared_bytes_without_asking;
    bool nonportable_cluster = false;
};
std::unordered_map<const void*, Kernel> kernels;

cudaError_t last_error = cudaSuccess;

cudaError_t result(cudaError_t error) {
    if (error != cudaSuccess) last_error = error;
    return error;
}

// Of one block, and of a multiprocessor: the CUDA C++ Programming Guide's table of compute capabilities.
size_t shared_bytes_of_block() {
    switch (options().compute_capability) {
        case 80: return 163 << 10;
        case 86:
        case 89:
        case 120: return 99 << 10;
        default: return 227 << 10;
    }
}
size_t shared_bytes_of_multiprocessor() { return shared_bytes_of_block() + (1 << 10); }

unsigned cluster_of(const cudaLaunchConfig_t& config, bool& valid) {
    dim3 cluster(1, 1, 1);
    for (unsigned i = 0; i < config.numAttrs; ++i)
        if (config.attrs[i].id == cudaLaunchAttributeClusterDimension) {
            const auto& given = config.attrs[i].val.clusterDim;
            cluster = dim3(given.x, given.y, given.z);
        }
    // The emulator numbers the blocks of a cluster along x.
    valid = cluster.x > 0 && cluster.y == 1 && cluster.z == 1;
    return cluster.x;
}

cuda_emulator_listener listener;

cudaError_t launch(const cudaLaunchConfig_t& config, const void* function, void** arguments) {
    const auto found = kernels.find(function);
    if (found == kernels.end()) return cudaErrorInvalidDeviceFunction;
    const Kernel& kernel = found->second;
    const dim3 &grid = config.gridDim, &block = config.blockDim;
    if (!grid.x || !grid.y || !grid.z || grid.x > 0x7FFFFFFF || grid.y > 65535 || grid.z > 65535)
        return cudaErrorInvalidConfiguration;
    if (!block.x || !block.y || !block.z || block.z > 64 ||
        static_cast<uint64_t>(block.x) * block.y * block.z > largest_block)
        return cudaErrorInvalidConfiguration;
    if (config.dynamicSmemBytes > kernel.dynamic_bytes) return cudaErrorInvalidValue;
    bool valid;
    const unsigned cluster = cluster_of(config, valid);
    if (!valid) return cudaErrorInvalidClusterSize;
    if (cluster > 1) {
        if (options().compute_capability < 90) return cudaErrorNotSupported;
        if (cluster > (kernel.nonportable_cluster ? largest_cluster : portable_cluster) || grid.x % cluster)
            return cudaErrorInvalidClusterSize;
    }
    if (listener != nullptr) {
        listener(kernel_name(function).c_str(), static_cast<uint64_t>(grid.x) * grid.y * grid.z, block.x * block.y * block.z,
                 cluster, config.dynamicSmemBytes);
        return cudaSuccess;
    }
    run({function, kernel.invoke, arguments, grid, block, cluster, config.dynamicSmemBytes});
    return cudaSuccess;
}

int active_blocks(unsigned threads, size_t dynamic_bytes) {
    if (threads == 0 || threads > largest_block || dynamic_bytes > shared_bytes_of_block()) return 0;
    const unsigned rounded = (threads + warp_size - 1) / warp_size * warp_size;
    const size_t by_memory = shared_bytes_of_multiprocessor() / (dynamic_bytes + (1 << 10));
    return static_cast<int>(
        std::min<size_t>({by_memory, threads_of_multiprocessor / rounded, blocks_of_multiprocessor}));
}

}  // namespace

void register_kernel(const void* kernel, Invoke invoke) { kernels[kernel].invoke = invoke; }

}  // namespace cuda_emulator

using namespace cuda_emulator;

extern "C" {

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* function, void** arguments) {
    return result(launch(*config, function, arguments));
}

cudaError_t cudaPeekAtLastError() { return last_error; }
cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }

#define CUDA_EMULATOR_ERRORS(X)                                        \
    X(cudaSuccess, "no error")                                         \
    X(cudaErrorInvalidValue, "invalid argument")                       \
    X(cudaErrorInvalidConfiguration, "invalid configuration argument") \
    X(cudaErrorInvalidDeviceFunction, "invalid device function")       \
    X(cudaErrorInvalidDevice, "invalid device ordinal")                \
    X(cudaErrorInvalidClusterSize, "invalid cluster size")             \
    X(cudaErrorNotSupported, "operation not supported")

const char* cudaGetErrorName(cudaError_t error) {
#define CUDA_EMULATOR_NAME(code, string) \
    if (error == code) return #code;
    CUDA_EMULATOR_ERRORS(CUDA_EMULATOR_NAME)
    return "unrecognized error code";
}
const char* cudaGetErrorString(cudaError_t error) {
#define CUDA_EMULATOR_STRING(code, string) \
    if (error == code) return string;
    CUDA_EMULATOR_ERRORS(CUDA_EMULATOR_STRING)
    return "unrecognized error code";
}

cudaError_t cudaGetDeviceCount(int* count) {
    *count = 1;
    return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* version) {
    *version = CUDART_VERSION;
    return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) { return cudaDriverGetVersion(version); }
cudaError_t cudaGetDevice(int* device) {
    *device = 0;
    return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) { return result(device == 0 ? cudaSuccess : cudaErrorInvalidDevice); }

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
    if (device != 0) return result(cudaErrorInvalidDevice);
    switch (attribute) {
        case cudaDevAttrMultiProcessorCount: *value = options().multiprocessors; break;
        case cudaDevAttrComputeCapabilityMajor: *value = options().compute_capability / 10; break;
        case cudaDevAttrComputeCapabilityMinor: *value = options().compute_capability % 10; break;
        case cudaDevAttrClusterLaunch: *value = options().compute_capability >= 90; break;
        case cudaDevAttrMaxSharedMemoryPerBlock: *value = shared_bytes_without_asking; break;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = static_cast<int>(shared_bytes_of_block()); break;
        case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
            *value = static_cast<int>(shared_bytes_of_multiprocessor());
            break;
        case cudaDevAttrReservedSharedMemoryPerBlock: *value = 1 << 10; break;
        case cudaDevAttrMaxThreadsPerBlock: *value = largest_block; break;
        case cudaDevAttrMaxThreadsPerMultiProcessor: *value = threads_of_multiprocessor; break;
        case cudaDevAttrMaxBlocksPerMultiprocessor: *value = blocks_of_multiprocessor; break;
        case cudaDevAttrMaxRegistersPerBlock:
        case cudaDevAttrMaxRegistersPerMultiprocessor: *value = 65536; break;
        case cudaDevAttrMaxGridDimX: *value = 0x7FFFFFFF; break;
        case cudaDevAttrMaxGridDimY:
        case cudaDevAttrMaxGridDimZ: *value = 65535; break;
        case cudaDevAttrWarpSize: *value = warp_size; break;
        case cudaDevAttrL2CacheSize: *value = 50 << 20; break;
        default: return result(cudaErrorInvalidValue);
    }
    return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute attribute, int value) {
    const auto found = kernels.find(function);
    if (found == kernels.end()) return result(cudaErrorInvalidDeviceFunction);
    switch (attribute) {
        case cudaFuncAttributeMaxDynamicSharedMemorySize:
            if (value < 0 || static_cast<size_t>(value) > shared_bytes_of_block()) return result(cudaErrorInvalidValue);
            found->second.dynamic_bytes = static_cast<size_t>(value);
            return cudaSuccess;
        case cudaFuncAttributeNonPortableClusterSizeAllowed:
            if (options().compute_capability < 90) return result(cudaErrorNotSupported);
            found->second.nonportable_cluster = value != 0;
            return cudaSuccess;
        case cudaFuncAttributePreferredSharedMemoryCarveout: return cudaSuccess;
        default: return result(cudaErrorInvalidValue);
    }
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* function) {
    const auto found = kernels.find(function);
    if (found == kernels.end()) return result(cudaErrorInvalidDeviceFunction);
    std::memset(attributes, 0, sizeof *attributes);
    attributes->maxThreadsPerBlock = largest_block;
    attributes->maxDynamicSharedSizeBytes = static_cast<int>(found->second.dynamic_bytes);
    attributes->binaryVersion = attributes->ptxVersion = options().compute_capability;
    return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void*, int threads, size_t dynamic_bytes) {
    *blocks = active_blocks(static_cast<unsigned>(threads), dynamic_bytes);
    return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, const void*, const cudaLaunchConfig_t* config) {
    if (options().compute_capability < 90) return result(cudaErrorNotSupported);
    bool valid;
    const unsigned cluster = cluster_of(*config, valid);
    if (!valid || cluster > largest_cluster) return result(cudaErrorInvalidClusterSize);
    const dim3& block = config->blockDim;
    // A cluster lives in one of the chip's graphics processing clusters of 16 to 18 multiprocessors.
    const int of_each = active_blocks(block.x * block.y * block.z, config->dynamicSmemBytes);
    const int groups = std::max(1, options().multiprocessors / 16);
    *clusters = groups * (16 * of_each / static_cast<int>(cluster));
    return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t) {
    if (listener != nullptr) return cudaSuccess;
    std::memset(memory, value, bytes);
    note_host_write(memory, bytes);
    return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t) {
    std::memcpy(to, from, bytes);
    note_host_write(to, bytes);
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }

void cuda_emulator_listen(cuda_emulator_listener to) { listener = to; }

void cuda_emulator_configure(uint64_t seed, int shuffle, int completion, int compute_capability) {
    options().seed = seed;
    options().shuffle = shuffle != 0;
    options().completion = static_cast<Completion>(completion);
    options().compute_capability = compute_capability;
}
}
