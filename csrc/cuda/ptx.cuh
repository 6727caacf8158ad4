// PTX instructions that CUDA C++ has no function for: each wrapper is one. Section numbers are of the PTX ISA 9.0.
//
// The emulator has the same functions (tests/cuda_emulator), which do what the PTX ISA says of them.
#pragma once

#include <type_traits>

#include "platform.cuh"

#ifndef CUDA_EMULATOR

namespace ptx {

#define PTX __device__ __forceinline__

PTX uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

// --- copies of 16 bytes (9.7.9.25) -----------------------------------------------------------------------------------

PTX void cp_async_16(void* shared, const void* global) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(shared)), "l"(global) : "memory");
}
// The first `source_bytes` of them, which may be 0; the rest become zeros.
PTX void cp_async_16(void* shared, const void* global, unsigned source_bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
                 "r"(source_bytes) : "memory");
}
PTX void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int PENDING> PTX void cp_async_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory"); }

// --- named barriers (9.7.13.1) ---------------------------------------------------------------------------------------

PTX void bar_sync(int barrier, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}
PTX void bar_arrive(int barrier, int threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

#if HOPPER

// --- mbarriers (9.7.13.15) -------------------------------------------------------------------------------------------

PTX void mbarrier_init(uint64_t* barrier, uint32_t arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}
// Makes initialised barriers known to the rest of the cluster and to bulk copies.
PTX void fence_mbarrier_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

PTX void mbarrier_arrive(uint64_t* barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
// At the barrier that lies at the same place in another block of the cluster.
PTX void mbarrier_arrive_at(uint64_t* barrier, uint32_t block) {
    asm volatile("{\n.reg .b32 there;\nmapa.shared::cluster.u32 there, %0, %1;\n"
                 "mbarrier.arrive.shared::cluster.b64 _, [there];\n}" ::"r"(shared_address(barrier)), "r"(block)
                 : "memory");
}
PTX void mbarrier_arrive_expect_tx(uint64_t* barrier, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
                 : "memory");
}
// Until the phase of this parity is complete: that which is now under way, or the one before it.
PTX void mbarrier_wait_parity(uint64_t* barrier, uint32_t parity) {
    asm volatile("{\n.reg .pred done;\nAGAIN:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
                 "@!done bra AGAIN;\n}" ::"r"(shared_address(barrier)), "r"(parity) : "memory");
}

// --- bulk tensor copies (9.7.9.27) -----------------------------------------------------------------------------------

PTX void prefetch_tensor_map(const CUtensorMap* map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}
// The box whose first element is (x, y), x along the rows. Its bytes count for the barrier when they have arrived.
PTX void tma_load_2d(void* shared, const CUtensorMap* map, uint64_t* barrier, int x, int y) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%3, %4}], [%2];"
                 ::"r"(shared_address(shared)), "l"(map), "r"(shared_address(barrier)), "r"(x), "r"(y) : "memory");
}
// The same for every block of the cluster whose bit is set in `blocks`, each at the same places in its shared memory.
PTX void tma_load_2d_multicast(void* shared, const CUtensorMap* map, uint64_t* barrier, int x, int y, uint16_t blocks) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
                 "[%0], [%1, {%3, %4}], [%2], %5;"
                 ::"r"(shared_address(shared)), "l"(map), "r"(shared_address(barrier)), "r"(x), "r"(y), "h"(blocks)
                 : "memory");
}
// What lies outside the tensor is not written.
PTX void tma_store_2d(const CUtensorMap* map, const void* shared, int x, int y) {
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];"
                 ::"l"(map), "r"(shared_address(shared)), "r"(x), "r"(y) : "memory");
}
PTX void bulk_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
// Until all but the latest PENDING groups of this thread's have read what they store.
template <int PENDING> PTX void bulk_wait_read() {
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(PENDING) : "memory");
}
// Before bulk copies or wgmma read from shared memory what this thread has written to it.
PTX void fence_proxy_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

#endif  // HOPPER

#if HOPPER_A

// --- warpgroups (9.7.15) ---------------------------------------------------------------------------------------------

// What a thread of this warpgroup may use from now on; up waits until others have given up so many.
template <int COUNT> PTX void set_max_registers_up() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
}
template <int COUNT> PTX void set_max_registers_down() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
}

PTX void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
PTX void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Until all but the latest PENDING groups are complete.
template <int PENDING> PTX void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}
// No instruction, but for the compiler a change of the sums: it must not read them before the wait that stands above.
template <int N> PTX void wgmma_sums_are_there(float (&d)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+f"(d[i])::"memory");
}

#define WGMMA_SUMS_8(i)                                                   \
    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), \
        "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define WGMMA_SUMS_64(i) \
    WGMMA_SUMS_8(i), WGMMA_SUMS_8(i + 8), WGMMA_SUMS_8(i + 16), WGMMA_SUMS_8(i + 24), WGMMA_SUMS_8(i + 32), \
        WGMMA_SUMS_8(i + 40), WGMMA_SUMS_8(i + 48), WGMMA_SUMS_8(i + 56)
#define WGMMA_SUMS_128 WGMMA_SUMS_64(0), WGMMA_SUMS_64(64)
#define WGMMA_REGISTERS_64 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, " \
    "%21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, " \
    "%40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, " \
    "%59, %60, %61, %62, %63"
#define WGMMA_REGISTERS_128 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, " \
    "%21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, " \
    "%40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, " \
    "%59, %60, %61, %62, %63, %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, " \
    "%78, %79, %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, " \
    "%97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, %112, " \
    "%113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

#define WGMMA(SHAPE, TYPE, REGISTERS, SUMS, A, B, ADDS, TRANS_A, TRANS_B)                                             \
    asm volatile("{\n.reg .pred adds;\nsetp.ne.b32 adds, " ADDS ", 0;\n"                                             \
                 "wgmma.mma_async.sync.aligned." SHAPE ".f32." TYPE "." TYPE " {" REGISTERS "}, " A ", " B             \
                 ", adds, 1, 1, " TRANS_A ", " TRANS_B ";\n}"                                                         \
                 : SUMS                                                                                               \
                 : "l"(a), "l"(b), "r"(static_cast<int>(adds)), "n"(A_ALONG_ROWS), "n"(B_ALONG_ROWS))

// d (64, N) = A (64, 16) · B (N, 16)ᵀ, added to d where `adds`; a, b are descriptors of shared memory (9.7.15.5.1.2).
// A is contiguous along its rows (M-major) where A_ALONG_ROWS, else along K; B likewise. A thread of rank t in its
// warpgroup has, of row 16(t/32) + t%32/4 + 8h and column 8j + 2(t%4) + c, the sum d[4j + 2h + c] (9.7.15.5.1.1.1).
template <int N, class T, bool A_ALONG_ROWS, bool B_ALONG_ROWS>
PTX void wgmma(float (&d)[N / 2], uint64_t a, uint64_t b, bool adds) {
    static_assert(N == 128 || N == 256);
    if constexpr (N == 128 && std::is_same_v<T, __nv_bfloat16>) {
        WGMMA("m64n128k16", "bf16", WGMMA_REGISTERS_64, WGMMA_SUMS_64(0), "%64", "%65", "%66", "%67", "%68");
    } else if constexpr (N == 128) {
        WGMMA("m64n128k16", "f16", WGMMA_REGISTERS_64, WGMMA_SUMS_64(0), "%64", "%65", "%66", "%67", "%68");
    } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
        WGMMA("m64n256k16", "bf16", WGMMA_REGISTERS_128, WGMMA_SUMS_128, "%128", "%129", "%130", "%131", "%132");
    } else {
        WGMMA("m64n256k16", "f16", WGMMA_REGISTERS_128, WGMMA_SUMS_128, "%128", "%129", "%130", "%131", "%132");
    }
}

#undef WGMMA
#undef WGMMA_REGISTERS_128
#undef WGMMA_REGISTERS_64
#undef WGMMA_SUMS_128
#undef WGMMA_SUMS_64
#undef WGMMA_SUMS_8

#endif  // HOPPER_A

#undef PTX

}  // namespace ptx

#endif  // CUDA_EMULATOR
