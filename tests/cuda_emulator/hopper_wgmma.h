// The matrix instructions of warpgroups, wgmma (PTX ISA 9.0, 9.7.15), and setmaxnreg (9.7.19.5).
//
// Each warp computes its 16 of the 64 rows by itself, and goes from instruction to instruction as one. What wgmma adds
// up stays out of the registers until the warp has waited for it: meanwhile they hold NaN.
#pragma once

#include "core.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <type_traits>

namespace cuda_emulator {

struct Wgmma {
    int columns;                      // N of m64nNk16
    bool bfloat;                      // A and B are bf16, else f16
    bool a_along_rows, b_along_rows;  // M-major, N-major
    uint64_t a, b;                    // descriptors
    bool adds;

    bool operator==(const Wgmma&) const = default;
};

void wgmma(float* sums, const Wgmma& operation, const Location& where);
void wgmma_fence(const Location& where);
void wgmma_commit(const Location& where);
void wgmma_wait(size_t pending, const Location& where);
void set_max_registers(int count, const Location& where);

}  // namespace cuda_emulator

namespace ptx {

template <int N, class T, bool a_along_rows, bool b_along_rows>
void wgmma(float (&sums)[N / 2], uint64_t a, uint64_t b, bool adds,
           cuda_emulator::Location where = cuda_emulator::Location::current()) {
    static_assert(N % 8 == 0 && N >= 8 && N <= 256);
    constexpr bool bfloat = std::is_same_v<T, __nv_bfloat16>;
    static_assert(bfloat || std::is_same_v<T, __half>);
    cuda_emulator::wgmma(sums, {N, bfloat, a_along_rows, b_along_rows, a, b, adds}, where);
}
inline void wgmma_fence(cuda_emulator::Location where = cuda_emulator::Location::current()) {
    cuda_emulator::wgmma_fence(where);
}
inline void wgmma_commit(cuda_emulator::Location where = cuda_emulator::Location::current()) {
    cuda_emulator::wgmma_commit(where);
}
template <int pending> void wgmma_wait(cuda_emulator::Location where = cuda_emulator::Location::current()) {
    cuda_emulator::wgmma_wait(pending, where);
}
template <int N> void wgmma_sums_are_there(float (&)[N]) {}

template <int count> void set_max_registers_up(cuda_emulator::Location where = cuda_emulator::Location::current()) {
    cuda_emulator::set_max_registers(count, where);
}
template <int count> void set_max_registers_down(cuda_emulator::Location where = cuda_emulator::Location::current()) {
    cuda_emulator::set_max_registers(count, where);
}

}  // namespace ptx
