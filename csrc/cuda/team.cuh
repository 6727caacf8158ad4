// Who works on a row: a team of threads. A few lanes of a warp where rows are short, so that a block has several of
// them; a whole block; or a cluster of blocks, each of which keeps a part of the row in its shared memory.
#pragma once

#include "elements.cuh"

namespace tilegrad::cuda {

constexpr int MAX_THREADS = 256;  // of a block of the row kernels

// --- where rows lie --------------------------------------------------------------------------------------------------

// From `lines.data` to the row of this number: 64 bits, as rows × columns can pass 2³¹.
__device__ inline char* row_of(const cpu::Rows& rows, const cpu::Lines& lines, int64_t row) {
    if (lines.data == nullptr) return nullptr;
    int64_t bytes = 0;
#pragma unroll 1
    for (int d = rows.dims - 1; d > 0; d--) {
        int64_t outer = row / rows.sizes[d];
        bytes += (row - outer * rows.sizes[d]) * lines.rows[d];
        row = outer;
    }
    return lines.data + (rows.dims > 0 ? bytes + row * lines.rows[0] : 0);
}

// --- teams -----------------------------------------------------------------------------------------------------------

// How a launch shares out its rows. The threads of a row are `stride` apart: 1 where neighbours take neighbouring
// columns, the number of rows where rows are neighbours in memory. Their number is a power of two. What they reach
// together, threads × stride, is a part of a warp, or the whole block.
struct Teams {
    int rows;     // of a block; of a cluster, whose blocks share them
    int threads;  // of a row, in one block
    int stride;
    int cluster;  // blocks

    __host__ __device__ int span() const { return threads * stride; }
};

struct Team {
    int index;    // of the row in the block
    int thread;   // in the row
    int rank;     // of the block in the cluster
    int64_t row;  // at or beyond the last one, there is nothing to do but to come to the barriers

    __device__ explicit Team(const Teams& teams) {
        int t = threadIdx.x;
        index = teams.stride == 1 ? t / teams.threads : t % teams.stride;
        thread = teams.stride == 1 ? t % teams.threads : t / teams.stride;
        rank = teams.cluster == 1 ? 0 : static_cast<int>(blockIdx.x % teams.cluster);
        row = static_cast<int64_t>(blockIdx.x / teams.cluster) * teams.rows + index;
    }

    __device__ bool leads() const { return thread == 0 && rank == 0; }
};

// --- reductions within a block ---------------------------------------------------------------------------------------

// Several sums at once.
template <class A, int N> struct Sums {
    A x[N];
};

__device__ inline float shuffled(float x, int by) { return __shfl_xor_sync(~0u, x, by); }
__device__ inline double shuffled(double x, int by) { return __shfl_xor_sync(~0u, x, by); }
template <class A, int N> __device__ Sums<A, N> shuffled(const Sums<A, N>& sums, int by) {
    Sums<A, N> other;
    for (int i = 0; i < N; i++) other.x[i] = shuffled(sums.x[i], by);
    return other;
}

struct Larger {  // of numbers; NaN loses, and is left to the sum
    __device__ float operator()(float a, float b) const { return fmaxf(a, b); }
    __device__ double operator()(double a, double b) const { return fmax(a, b); }
};

struct Plus {
    template <class A> __device__ A operator()(A a, A b) const { return a + b; }
    template <class A, int N> __device__ Sums<A, N> operator()(const Sums<A, N>& a, const Sums<A, N>& b) const {
        Sums<A, N> both;
        for (int i = 0; i < N; i++) both.x[i] = a.x[i] + b.x[i];
        return both;
    }
};

// The values of a row's threads put together, the same bits for each of them and in every run. All threads of a block
// come here together. `scratch` has a place for each warp and each of the rows that it has threads of; before it is
// used again, all threads must have passed another barrier.
template <class V, class Op> __device__ V reduce(V v, Op op, const Teams& teams, char* scratch) {
    int span = teams.span();
    for (int by = teams.stride; by < min(span, 32); by *= 2) v = op(v, shuffled(v, by));
    if (span <= 32) return v;
    V* of_warps = reinterpret_cast<V*>(scratch);
    int lane = threadIdx.x % 32, warps = blockDim.x / 32;
    if (lane < teams.stride) of_warps[threadIdx.x / 32 * teams.stride + lane] = v;
    __syncthreads();  // so that every warp's is there
    v = of_warps[lane % teams.stride];
#pragma unroll 1
    for (int warp = 1; warp < warps; warp++) v = op(v, of_warps[warp * teams.stride + lane % teams.stride]);
    return v;
}

// What one thread of a row in each block finds out, for all of them: so that it is read once. `scratch` has a place for
// each row of the block, and is free again after the next barrier.
template <class F> __device__ auto once(const Teams& teams, const Team& team, char* scratch, F find) {
    using V = decltype(find());
    if (teams.span() > 32) {
        V* of_rows = reinterpret_cast<V*>(scratch);
        if (team.thread == 0) of_rows[team.index] = find();
        __syncthreads();
        return of_rows[team.index];
    }
    int lane = threadIdx.x % 32, first = teams.stride == 1 ? lane & -teams.threads : lane % teams.stride;
    V found{};
    if (lane == first) found = find();
    constexpr int WORDS = (sizeof(V) + 3) / 4;
    unsigned words[WORDS] = {};
    memcpy(words, &found, sizeof found);
#pragma unroll
    for (int i = 0; i < WORDS; i++) words[i] = __shfl_sync(~0u, words[i], first);
    memcpy(&found, words, sizeof found);
    return found;
}

// Bytes of scratch for values of this size.
__host__ __device__ inline int scratch_bytes(int threads, int stride, int size) { return threads / 32 * stride * size; }

// --- and over a cluster ----------------------------------------------------------------------------------------------

// Puts together what the blocks of a cluster found of their parts of a row. `mine` has a place for each row of the
// block. Others read it until `leave`.
template <class V, class Op>
__device__ V reduce_over_cluster(V v, Op op, const Teams& teams, const Team& team, char* mine) {
#ifdef HOPPER
    if (teams.cluster == 1) return v;
    auto cluster = cooperative_groups::this_cluster();
    V* of_rows = reinterpret_cast<V*>(mine);
    if (team.thread == 0) of_rows[team.index] = v;
    cluster.sync();
    v = *cluster.map_shared_rank(of_rows + team.index, 0);
#pragma unroll 1
    for (int rank = 1; rank < teams.cluster; rank++) v = op(v, *cluster.map_shared_rank(of_rows + team.index, rank));
    cluster.barrier_arrive();  // has read; `leave` waits for the others
#endif
    return v;
}

// Before a block ends: its shared memory stays until the others of its cluster have read what they reduced.
__device__ inline void leave(const Teams& teams) {
#ifdef HOPPER
    if (teams.cluster > 1) cooperative_groups::this_cluster().barrier_wait();
#endif
}

}  // namespace tilegrad::cuda
