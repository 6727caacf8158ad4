// Copies through registers and through shared memory, with what goes wrong at addresses and at asynchronous copies.
#include "launch.h"

enum class Bug { none, reads_past_the_end, writes_past_the_end, missing_wait, missing_barrier, early_refill };

// y = 2 x, sixteen bytes at a time and then the rest.
__global__ void scale(const float* x, float* y, int count, Bug bug) {
    const int thread = blockIdx.x * blockDim.x + threadIdx.x, threads = gridDim.x * blockDim.x;
    const int vectors = bug == Bug::reads_past_the_end || bug == Bug::writes_past_the_end ? (count + 3) / 4 : count / 4;
    for (int i = thread; i < vectors; i += threads) {
        float4 v = i < count / 4 || bug == Bug::reads_past_the_end ? reinterpret_cast<const float4*>(x)[i] : float4{};
        v = {2 * v.x, 2 * v.y, 2 * v.z, 2 * v.w};
        if (i < count / 4 || bug == Bug::writes_past_the_end)
            reinterpret_cast<float4*>(y)[i] = v;
        else
            y[4 * i] = v.x;
    }
    for (int i = 4 * vectors + thread; i < count; i += threads) y[i] = 2 * x[i];
}

// The same by cp.async through two stages of shared memory; each thread reads what another one has copied.
__global__ void scale_staged(const float* x, float* y, int tiles, Bug bug) {
    float4* stages = cuda_emulator::dynamic_shared<float4>();
    const int t = threadIdx.x, n = blockDim.x;
    const float4* source = reinterpret_cast<const float4*>(x);
    auto fill = [&](int tile) {
        if (tile < tiles) ptx::cp_async_16(stages + tile % 2 * n + t, source + tile * n + t);
        ptx::cp_async_commit();
    };
    fill(0);
    for (int tile = 0; tile < tiles; ++tile) {
        fill(tile + 1);
        if (bug == Bug::missing_wait)
            ptx::cp_async_wait<2>();
        else
            ptx::cp_async_wait<1>();
        if (bug != Bug::missing_barrier) __syncthreads();
        const float4 v = stages[tile % 2 * n + (bug == Bug::missing_wait ? t : n - 1 - t)];
        reinterpret_cast<float4*>(y)[tile * n + (bug == Bug::missing_wait ? t : n - 1 - t)] =
            float4{2 * v.x, 2 * v.y, 2 * v.z, 2 * v.w};
        if (bug != Bug::early_refill) __syncthreads();
    }
}

// Nobody can run until the last asynchronous work has landed.
__global__ void wait_for_work() {
    bool landed = false;
    cuda_emulator::issue([&] { landed = true; });
    cuda_emulator::block_until([&] { return landed; }, "its own work", cuda_emulator::Location::current());
}

enum class Fence { by_the_writers, by_the_reader, too_early, missing };

// Asynchronous work reads what threads have written: what a bulk store does at its issue, without the store.
__global__ void hand_to_bulk_copy(Fence fence) {
    float* memory = cuda_emulator::dynamic_shared<float>();
    if (fence == Fence::too_early) cuda_emulator::fence_proxy(cuda_emulator::this_thread());
    memory[threadIdx.x] = 1;
    if (fence == Fence::by_the_writers) cuda_emulator::fence_proxy(cuda_emulator::this_thread());
    __syncthreads();
    if (threadIdx.x > 0) return;
    if (fence == Fence::by_the_reader) cuda_emulator::fence_proxy(cuda_emulator::this_thread());
    cuda_emulator::require_proxy_fence(memory, 256, cuda_emulator::Location::current());
}

// Bytes of one word by different threads are no race; the same byte is.
__global__ void bytes(char* y, bool overlap) {
    char* memory = cuda_emulator::dynamic_shared<char>();
    memory[threadIdx.x / (overlap ? 2 : 1)] = static_cast<char>(threadIdx.x);
    __syncthreads();
    y[threadIdx.x] = memory[(threadIdx.x ^ 1) / (overlap ? 2 : 1)];
}

// Every block adds to a counter, and to y[0] unless each has its own y.
__global__ void count(unsigned* counter, unsigned* y, bool own) {
    atomicAdd(counter, 1u);
    const unsigned i = own ? blockIdx.x : 0;
    if (threadIdx.x == 0) y[i] = y[i] + 1;
}
__global__ void increment(unsigned* y) {
    if (threadIdx.x == 0) y[0] = y[0] + 1;
}

__global__ void copy_structure(const float* x, float* y) {
    struct Row {
        float values[24];
    };
    *reinterpret_cast<Row*>(y + 24 * threadIdx.x) = *reinterpret_cast<const Row*>(x + 24 * threadIdx.x);
}

// The last of the block's shared memory, or beyond.
__global__ void touch_shared(float* y, int index) {
    float* memory = cuda_emulator::dynamic_shared<float>();
    memory[index] = 7;
    y[0] = memory[index];
}

extern "C" {
const char* run_scale(const float* x, float* y, int count, int bug) {
    return launch(scale, 2, 32, 0, 1, x, y, count, static_cast<Bug>(bug));
}
const char* run_scale_staged(const float* x, float* y, int tiles, int bug) {
    return launch(scale_staged, 1, 64, 2 * 64 * 16, 1, x, y, tiles, static_cast<Bug>(bug));
}
const char* run_wait_for_work() { return launch(wait_for_work, 3, 4, 0, 1); }
const char* run_hand_to_bulk_copy(int fence) {
    return launch(hand_to_bulk_copy, 1, 64, 256, 1, static_cast<Fence>(fence));
}
const char* run_bytes(char* y, int overlap) { return launch(bytes, 1, 64, 64, 1, y, overlap != 0); }
const char* run_count(unsigned* counter, unsigned* y, int own) {
    return launch(count, 4, 32, 0, 1, counter, y, own != 0);
}
const char* run_increment(unsigned* y, int blocks) { return launch(increment, blocks, 32, 0, 1, y); }
const char* run_copy_structure(const float* x, float* y) { return launch(copy_structure, 1, 32, 0, 1, x, y); }
const char* run_touch_shared(float* y, int index, int bytes, int allowed) {
    const cudaError_t error = cudaFuncSetAttribute(touch_shared, cudaFuncAttributeMaxDynamicSharedMemorySize, allowed);
    return error == cudaSuccess ? launch(touch_shared, 1, 1, bytes, 1, y, index) : cudaGetErrorName(error);
}
}
