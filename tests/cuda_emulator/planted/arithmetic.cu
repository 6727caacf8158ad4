// Functions of one thread and atomic operations, for comparison with what CUDA's manual says of them.
#include "launch.h"

__global__ void bits(unsigned* y) {
    const unsigned results[] = {
        __byte_perm(0x33221100u, 0x77665544u, 0x7520u),
        __byte_perm(0x80u, 0, 0x0008u),
        __funnelshift_l(0x80000000u, 1, 4),
        __funnelshift_r(0x10u, 1, 4),
        static_cast<unsigned>(__clz(1)),
        static_cast<unsigned>(__ffs(0) + __ffs(8)),
        __brev(1),
        static_cast<unsigned>(__popc(0xF0F0u)),
        __umulhi(0x80000000u, 6),
        static_cast<unsigned>(__mulhi(-2, 1 << 30)),
        max(-1, 1u),
        __float_as_uint(min(NAN, 2.0f)),
        __float_as_uint(__frcp_rn(4)),
        __float_as_uint(__fmaf_rn(2, 3, 1)),
        __float_as_uint(__saturatef(7)),
        __float_as_uint(__expf(0) + __logf(1) + __fdividef(3, 2)),
        __float_as_uint(__bfloat162float(__float2bfloat16(1.00390625f))),
    };
    for (unsigned i = 0; i < sizeof results / sizeof *results; ++i) y[i] = results[i];
}

// Each of 64 threads applies each operation once.
__global__ void atomics(int* integers, unsigned long long* longs, float* floats) {
    const int t = threadIdx.x;
    atomicAdd(integers, t);
    atomicSub(integers + 1, t);
    atomicMax(integers + 2, t);
    atomicMin(integers + 3, -t);
    atomicOr(integers + 4, 1 << t % 32);
    atomicXor(integers + 5, t);
    atomicAnd(integers + 6, ~1);
    for (int old = integers[7]; old != atomicCAS(integers + 7, old, old + 2);) old = atomicAdd(integers + 7, 0);
    atomicAdd(longs, 1ull << 32);
    atomicAdd(floats, 0.5f);
    atomicExch(floats + 1, 3.0f);
}

extern "C" {
const char* run_bits(unsigned* y) { return launch(bits, 1, 1, 0, 1, y); }
const char* run_atomics(int* integers, unsigned long long* longs, float* floats) {
    return launch(atomics, 2, 32, 0, 1, integers, longs, floats);
}
}
