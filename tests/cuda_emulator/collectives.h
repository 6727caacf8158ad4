// What threads of a block and of a warp do together: barriers, shuffles, votes, reductions.
#pragma once

#include "core.h"

#include <cstring>

namespace cuda_emulator {

void synchronize_block(const Location& where);
int synchronize_block_count(bool predicate, const Location& where);
void synchronize_warp(unsigned mask, const Location& where);

// The value that lane `source` brought; the caller's own where `source` is outside of the segment.
uint64_t shuffle(unsigned mask, uint64_t value, unsigned source, const char* operation, const Location& where);
unsigned ballot(unsigned mask, bool predicate, const char* operation, const Location& where);
void gather(unsigned mask, uint64_t value, uint64_t* values, const char* operation, const Location& where);
unsigned current_lane();

template <class T>
T shuffle_value(unsigned mask, T value, unsigned source, const char* operation, const Location& where) {
    static_assert(sizeof(T) <= sizeof(uint64_t) && std::is_trivially_copyable_v<T>, "shuffles take up to 8 bytes");
    uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof(T));
    bits = shuffle(mask, bits, source, operation, where);
    std::memcpy(&value, &bits, sizeof(T));
    return value;
}

template <class T, class Combine>
T reduce_value(unsigned mask, T value, Combine combine, const char* operation, const Location& where) {
    uint64_t values[warp_size];
    gather(mask, static_cast<uint32_t>(value), values, operation, where);
    bool first = true;
    for (unsigned lane = 0; lane < warp_size; ++lane) {
        if (!(mask >> lane & 1)) continue;
        const T other = static_cast<T>(values[lane]);
        value = first ? other : combine(value, other);
        first = false;
    }
    return value;
}

}  // namespace cuda_emulator

inline void __syncthreads(cuda_emulator::Location where = cuda_emulator::Location::current()) {
    cuda_emulator::synchronize_block(where);
}
inline int __syncthreads_count(int predicate, cuda_emulator::Location where = cuda_emulator::Location::current()) {
    return cuda_emulator::synchronize_block_count(predicate != 0, where);
}
inline int __syncthreads_or(int predicate, cuda_emulator::Location where = cuda_emulator::Location::current()) {
    return cuda_emulator::synchronize_block_count(predicate != 0, where) > 0;
}
inline int __syncthreads_and(int predicate, cuda_emulator::Location where = cuda_emulator::Location::current()) {
    return cuda_emulator::synchronize_block_count(predicate == 0, where) == 0;
}
inline void __syncwarp(unsigned mask = ~0u, cuda_emulator::Location where = cuda_emulator::Location::current()) {
    cuda_emulator::synchronize_warp(mask, where);
}

// Lanes exchange values inside of segments of `width` lanes; who would read across a segment's end keeps its own.
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32,
              cuda_emulator::Location where = cuda_emulator::Location::current()) {
    const unsigned lane = cuda_emulator::current_lane(), last = static_cast<unsigned>(width) - 1;
    return cuda_emulator::shuffle_value(mask, value, (lane & ~last) | (static_cast<unsigned>(source) & last),
                                        "__shfl_sync", where);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32,
                  cuda_emulator::Location where = cuda_emulator::Location::current()) {
    const unsigned lane = cuda_emulator::current_lane(), source = lane ^ static_cast<unsigned>(lanes);
    const bool later_segment = source > (lane | (static_cast<unsigned>(width) - 1));
    return cuda_emulator::shuffle_value(mask, value, later_segment ? lane : source, "__shfl_xor_sync", where);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                   cuda_emulator::Location where = cuda_emulator::Location::current()) {
    const unsigned lane = cuda_emulator::current_lane(), last = static_cast<unsigned>(width) - 1;
    return cuda_emulator::shuffle_value(mask, value, (lane & last) + delta > last ? lane : lane + delta,
                                        "__shfl_down_sync", where);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,
                 cuda_emulator::Location where = cuda_emulator::Location::current()) {
    const unsigned lane = cuda_emulator::current_lane(), last = static_cast<unsigned>(width) - 1;
    return cuda_emulator::shuffle_value(mask, value, (lane & last) < delta ? lane : lane - delta, "__shfl_up_sync",
                                        where);
}

inline unsigned __ballot_sync(unsigned mask, int predicate,
                              cuda_emulator::Location where = cuda_emulator::Location::current()) {
    return cuda_emulator::ballot(mask, predicate != 0, "__ballot_sync", where);
}
inline int __any_sync(unsigned mask, int predicate,
                      cuda_emulator::Location where = cuda_emulator::Location::current()) {
    return cuda_emulator::ballot(mask, predicate != 0, "__any_sync", where) != 0;
}
inline int __all_sync(unsigned mask, int predicate,
                      cuda_emulator::Location where = cuda_emulator::Location::current()) {
    return cuda_emulator::ballot(mask, predicate == 0, "__all_sync", where) == 0;
}

template <class T>
T __reduce_add_sync(unsigned mask, T value, cuda_emulator::Location where = cuda_emulator::Location::current()) {
    return cuda_emulator::reduce_value(
        mask, value, [](unsigned a, unsigned b) { return static_cast<T>(a + b); }, "__reduce_add_sync", where);
}
template <class T>
T __reduce_max_sync(unsigned mask, T value, cuda_emulator::Location where = cuda_emulator::Location::current()) {
    return cuda_emulator::reduce_value(mask, value, [](T a, T b) { return a > b ? a : b; }, "__reduce_max_sync", where);
}
template <class T>
T __reduce_min_sync(unsigned mask, T value, cuda_emulator::Location where = cuda_emulator::Location::current()) {
    return cuda_emulator::reduce_value(mask, value, [](T a, T b) { return a < b ? a : b; }, "__reduce_min_sync", where);
}
inline unsigned __reduce_or_sync(unsigned mask, unsigned value,
                                 cuda_emulator::Location where = cuda_emulator::Location::current()) {
    return cuda_emulator::reduce_value(
        mask, value, [](unsigned a, unsigned b) { return a | b; }, "__reduce_or_sync", where);
}
inline unsigned __reduce_and_sync(unsigned mask, unsigned value,
                                  cuda_emulator::Location where = cuda_emulator::Location::current()) {
    return cuda_emulator::reduce_value(
        mask, value, [](unsigned a, unsigned b) { return a & b; }, "__reduce_and_sync", where);
}
