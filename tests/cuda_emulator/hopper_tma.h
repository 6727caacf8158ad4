// Bulk tensor copies of two dimensions between global and shared memory (PTX ISA 9.0, 9.7.9.27), their swizzles
// (5.5.7), and what encodes their tensor maps.
#pragma once

#include "hopper_mbarrier.h"

#include <cuda.h>

namespace cuda_emulator {

// Stands for the driver's function of this name: accepts and refuses what that is documented to.
CUresult encode_tiled(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank, void* address,
                      const cuuint64_t* sizes, const cuuint64_t* strides, const cuuint32_t* box,
                      const cuuint32_t* element_strides, CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                      CUtensorMapL2promotion promotion, CUtensorMapFloatOOBfill fill);

// 16 bytes of a matrix that is swizzled over `span` bytes: where those that belong at this offset of the window are.
constexpr uint32_t swizzled(uint32_t window, uint32_t span) { return window ^ ((window >> 7 & (span / 16 - 1)) << 4); }

void tma_load_2d(void* shared, const CUtensorMap* map, uint64_t* barrier, int x, int y, uint32_t blocks,
                 const Location& where);
void tma_store_2d(const CUtensorMap* map, const void* shared, int x, int y, const Location& where);
void bulk_commit();
void bulk_wait_read(size_t pending);
void fence_proxy_async();

}  // namespace cuda_emulator

namespace ptx {

inline uint32_t shared_address(const void* address) { return cuda_emulator::shared_window(address); }
inline void prefetch_tensor_map(const CUtensorMap*) {}

inline void tma_load_2d(void* shared, const CUtensorMap* map, uint64_t* barrier, int x, int y,
                        cuda_emulator::Location where = cuda_emulator::Location::current()) {
    cuda_emulator::tma_load_2d(shared, map, barrier, x, y, 1u << cuda_emulator::own_rank(), where);
}
inline void tma_load_2d_multicast(void* shared, const CUtensorMap* map, uint64_t* barrier, int x, int y,
                                  uint16_t blocks, cuda_emulator::Location where = cuda_emulator::Location::current()) {
    cuda_emulator::tma_load_2d(shared, map, barrier, x, y, blocks, where);
}
inline void tma_store_2d(const CUtensorMap* map, const void* shared, int x, int y,
                         cuda_emulator::Location where = cuda_emulator::Location::current()) {
    cuda_emulator::tma_store_2d(map, shared, x, y, where);
}
inline void bulk_commit() { cuda_emulator::bulk_commit(); }
template <int pending> void bulk_wait_read() { cuda_emulator::bulk_wait_read(pending); }
inline void fence_proxy_async() { cuda_emulator::fence_proxy_async(); }

}  // namespace ptx
