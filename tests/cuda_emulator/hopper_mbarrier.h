// Barriers in shared memory that count arrivals and bytes (PTX ISA 9.0, 9.7.13.15).
#pragma once

#include "core.h"

namespace cuda_emulator {

void mbarrier_init(uint64_t* barrier, uint32_t arrivals, const Location& where);
void mbarrier_fence_init();
// `rank`: of the block whose barrier at the same place is meant.
void mbarrier_arrive(uint64_t* barrier, unsigned rank, uint32_t expected_bytes, const Location& where);
void mbarrier_wait_parity(uint64_t* barrier, uint32_t parity, const Location& where);

// For bulk copies into the memory of a block: whether they may report there, and that they have.
void mbarrier_check(Block& block, const uint64_t* barrier, const Location& where);
void mbarrier_complete_bytes(Block& block, const uint64_t* barrier, uint32_t bytes, const Moment& moment,
                             const Location& where);

unsigned own_rank();

}  // namespace cuda_emulator

namespace ptx {

inline void mbarrier_init(uint64_t* barrier, uint32_t arrivals,
                          cuda_emulator::Location where = cuda_emulator::Location::current()) {
    cuda_emulator::mbarrier_init(barrier, arrivals, where);
}
inline void fence_mbarrier_init() { cuda_emulator::mbarrier_fence_init(); }
inline void mbarrier_arrive(uint64_t* barrier, cuda_emulator::Location where = cuda_emulator::Location::current()) {
    cuda_emulator::mbarrier_arrive(barrier, cuda_emulator::own_rank(), 0, where);
}
inline void mbarrier_arrive_at(uint64_t* barrier, uint32_t block,
                               cuda_emulator::Location where = cuda_emulator::Location::current()) {
    cuda_emulator::mbarrier_arrive(barrier, block, 0, where);
}
inline void mbarrier_arrive_expect_tx(uint64_t* barrier, uint32_t bytes,
                                      cuda_emulator::Location where = cuda_emulator::Location::current()) {
    cuda_emulator::mbarrier_arrive(barrier, cuda_emulator::own_rank(), bytes, where);
}
inline void mbarrier_wait_parity(uint64_t* barrier, uint32_t parity,
                                 cuda_emulator::Location where = cuda_emulator::Location::current()) {
    cuda_emulator::mbarrier_wait_parity(barrier, parity, where);
}

}  // namespace ptx
