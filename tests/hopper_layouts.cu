// Kernels that show where bulk copies and wgmma expect elements in shared memory: they move its bytes as they are.
#include "cuda/check.h"
#include "cuda/ptx.cuh"
#include "tried.h"

namespace {

using tilegrad::cuda::check;

// 0, 32, 64 or 128 bytes.
CUtensorMapSwizzle swizzle_of(int bytes) {
    return bytes == 128 ? CU_TENSOR_MAP_SWIZZLE_128B
           : bytes == 64 ? CU_TENSOR_MAP_SWIZZLE_64B
           : bytes == 32 ? CU_TENSOR_MAP_SWIZZLE_32B
                         : CU_TENSOR_MAP_SWIZZLE_NONE;
}

void move_bytes(char* to, const char* from, int bytes) {
    for (int i = static_cast<int>(threadIdx.x) * 4; i < bytes; i += static_cast<int>(blockDim.x) * 4)
        *reinterpret_cast<uint32_t*>(to + i) = *reinterpret_cast<const uint32_t*>(from + i);
}

struct Copy {
    CUtensorMap map;
    int x, y, bytes;
    char* image;  // of the box in shared memory
};

__global__ void load_kernel(const __grid_constant__ Copy c) {
    EXTERN_SHARED(char, memory);
    auto* barrier = reinterpret_cast<uint64_t*>(memory + c.bytes);
    if (threadIdx.x == 0) {
        ptx::mbarrier_init(barrier, 1);
        ptx::fence_mbarrier_init();
        ptx::mbarrier_arrive_expect_tx(barrier, c.bytes);
        ptx::tma_load_2d(memory, &c.map, barrier, c.x, c.y);
    }
    __syncthreads();
    ptx::mbarrier_wait_parity(barrier, 0);
    move_bytes(c.image, memory, c.bytes);
}

__global__ void store_kernel(const __grid_constant__ Copy c) {
    EXTERN_SHARED(char, memory);
    move_bytes(memory, c.image, c.bytes);
    ptx::fence_proxy_async();
    __syncthreads();
    if (threadIdx.x > 0) return;
    ptx::tma_store_2d(&c.map, memory, c.x, c.y);
    ptx::bulk_commit();
    ptx::bulk_wait_read<0>();
}

struct Product {
    const char* image;  // of shared memory
    int bytes;
    uint64_t a, b;      // descriptors but for the address where shared memory begins
    float* sums;        // (threads, registers)
};

constexpr int N = 128;

template <bool A_ALONG_ROWS, bool B_ALONG_ROWS> __global__ void wgmma_kernel(const Product p) {
    EXTERN_SHARED(char, memory);
    move_bytes(memory, p.image, p.bytes);
    ptx::fence_proxy_async();
    __syncthreads();
    uint64_t begin = ptx::shared_address(memory) >> 4;
    float sums[N / 2];
    ptx::wgmma_fence();
    ptx::wgmma<N, __half, A_ALONG_ROWS, B_ALONG_ROWS>(sums, p.a + begin, p.b + begin, false);
    ptx::wgmma_commit();
    ptx::wgmma_wait<0>();
    ptx::wgmma_sums_are_there(sums);
    for (int i = 0; i < N / 2; i++) p.sums[threadIdx.x * (N / 2) + i] = sums[i];
}

template <class Call> void launch(void (*kernel)(Call), const Call& call, int shared) {
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(1);
    config.blockDim = dim3(128);
    config.dynamicSmemBytes = shared;
    check(cudaLaunchKernelEx(&config, kernel, call), "launch");
}

CUresult encode(CUtensorMap* map, void* tensor, int64_t columns, int64_t rows, int64_t stride, int box_columns,
                int box_rows, int swizzle) {
    void* function;
    check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, nullptr), "");
    cuuint64_t sizes[] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)};
    cuuint64_t strides[] = {static_cast<cuuint64_t>(stride) * 2};
    cuuint32_t box[] = {static_cast<cuuint32_t>(box_columns), static_cast<cuuint32_t>(box_rows)}, ones[] = {1, 1};
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function)(
        map, CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 2, tensor, sizes, strides, box, ones, CU_TENSOR_MAP_INTERLEAVE_NONE,
        swizzle_of(swizzle), CU_TENSOR_MAP_L2_PROMOTION_NONE, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
}

}  // namespace

extern "C" {
// Of a tensor of 16 bits. 0, or the driver's error.
int encode_error(void* tensor, int64_t columns, int64_t rows, int64_t stride, int box_columns, int box_rows,
                 int swizzle) {
    CUtensorMap map;
    return encode(&map, tensor, columns, rows, stride, box_columns, box_rows, swizzle);
}

const char* copy_box(int store, void* tensor, int64_t columns, int64_t rows, int64_t stride, int box_columns,
                     int box_rows, int swizzle, int x, int y, char* image) {
    Copy c{{}, x, y, box_columns * box_rows * 2, image};
    encode(&c.map, tensor, columns, rows, stride, box_columns, box_rows, swizzle);
    return tried([&] { launch(store ? store_kernel : load_kernel, c, c.bytes + 8); });
}

const char* multiply(int a_along_rows, int b_along_rows, const char* image, int bytes, uint64_t a, uint64_t b,
                     float* sums) {
    Product p{image, bytes, a, b, sums};
    return tried([&] {
        if (a_along_rows)
            launch(b_along_rows ? wgmma_kernel<true, true> : wgmma_kernel<true, false>, p, bytes);
        else
            launch(b_along_rows ? wgmma_kernel<false, true> : wgmma_kernel<false, false>, p, bytes);
    });
}
}
