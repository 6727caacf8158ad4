// The matrix product on Hopper's tensor cores (sm_90a), for operands of 16 bits.
//
// A block is three warpgroups. One thread of the last brings slices of A and B by bulk copies (TMA) into a ring of
// stages in shared memory. The others multiply them (wgmma), each for 64 rows of the tile, then finish the sums and
// store them by bulk copies, too. Nothing joins the two but the ring, and a block goes on to its next tile without a
// pause. The second warpgroup begins when the first has multiplied half of the stages, and stays about as far behind:
// so one has the tensor cores, which it can occupy alone, to itself while the other is finishing its sums.
//
// The ring is kept sound by two barriers for a stage. `full` completes a phase when all bytes of the stage are there,
// `empty` when all that reads them is done. A wait names the parity of the phase it is for, and a new barrier counts as
// having completed one of parity 1: so every stage is found empty at first.
//
// The blocks of a cluster have tiles that lie below each other. They need the same part of B: each fetches its share of
// it for all. Then a stage is empty when nobody in the cluster reads it.
#pragma once

#include "matmul.cuh"
#include "ptx.cuh"

namespace tilegrad::cuda {

constexpr int WARPGROUP = 128;  // threads
constexpr int CONSUMERS = 2;    // warpgroups that multiply; after them, the one that fetches
constexpr int HOPPER_THREADS = (CONSUMERS + 1) * WARPGROUP;

// Registers of a thread, which warpgroups pass on to each other: all that there are, where each would have 168.
constexpr int FETCHING = 40, MULTIPLYING = 232;

constexpr int CONSUMER_ROWS = 64;
constexpr int TILE_ROWS = CONSUMERS * CONSUMER_ROWS;
constexpr int TILE_DEPTH = 64;  // of a stage: 128 bytes, as wide as the swizzle
constexpr int STEP_DEPTH = 16;  // of one wgmma
constexpr int TILE_GROUP = 8;   // clusters

constexpr int SECOND_BEGINS = 1, OF_CONSUMER = 2;  // named barriers; the latter and the next one

// What leaves by bulk copies goes through panels of a warp's own.
constexpr int PANEL_ROWS = 16, PANEL_COLUMNS = 32;
constexpr int PANELS = 4;  // of a warp: one is written while the others may still be on their way

// The variants of the kernel; matmul_hopper.cu says which is for what.
template <int COLUMNS_, int STAGES_, int CLUSTER_> struct TileShape {
    static constexpr int COLUMNS = COLUMNS_;
    static constexpr int STAGES = STAGES_;
    static constexpr int CLUSTER = CLUSTER_;
};

template <class T, class Tile> struct HopperShared {
    T a[Tile::STAGES][TILE_ROWS * TILE_DEPTH];
    T b[Tile::STAGES][Tile::COLUMNS * TILE_DEPTH];
    T panels[CONSUMERS * 4][PANELS][PANEL_ROWS * PANEL_COLUMNS];
    T bias[CONSUMERS][Tile::COLUMNS];
    uint64_t full[Tile::STAGES], empty[Tile::STAGES];
};

template <class T> struct HopperProblem {
    CUtensorMap a, b, out, pre, pre_up;
    int64_t depth;
    int64_t clusters_down, tiles_across;  // a cluster's tiles lie below each other
    Epilogue<T> to;
    bool bulk_out, bulk_pre;  // stored by bulk copies
    bool pairs;               // out can be stored two columns at a time
};

// --- the ring --------------------------------------------------------------------------------------------------------

template <int STAGES> struct Ring {
    int stage = 0;
    uint32_t phase = 0;  // the parity of the one under way

    __device__ void advance() {
        if (++stage < STAGES) return;
        stage = 0;
        phase ^= 1;
    }
};

// f(first row, first column) of the tiles of this block.
template <class Tile, class T, class F> __device__ inline void for_tiles(const HopperProblem<T>& p, F f) {
    int64_t tiles = p.clusters_down * p.tiles_across;
    int width = is_gated(p.to.activation) ? Tile::COLUMNS / 2 : Tile::COLUMNS;
    int rank = static_cast<int>(blockIdx.x) % Tile::CLUSTER;
    for (int64_t tile = blockIdx.x / Tile::CLUSTER; tile < tiles; tile += gridDim.x / Tile::CLUSTER) {
        TileAt at = tile_at<TILE_GROUP>(tile, p.clusters_down, p.tiles_across);
        f(static_cast<int>((at.row * Tile::CLUSTER + rank) * TILE_ROWS), static_cast<int>(at.column * width));
    }
}

#if HOPPER_A

// --- fetching --------------------------------------------------------------------------------------------------------

// By one thread. An operand that is contiguous along its rows comes in blocks of 64 of them, one depth after the other.
template <class Tile, bool A_ALONG_ROWS, bool B_ALONG_ROWS, class T>
__device__ inline void fetch_slices(HopperShared<T, Tile>& shared, const HopperProblem<T>& p) {
    constexpr int BLOCK = 64;
    constexpr int PART = B_ALONG_ROWS ? BLOCK : Tile::COLUMNS / 2;        // columns of B of one copy
    constexpr int PARTS = Tile::COLUMNS / PART / Tile::CLUSTER;           // that this block fetches
    constexpr uint32_t BYTES = sizeof(shared.a[0]) + sizeof(shared.b[0]);  // that it gets
    int rank = static_cast<int>(blockIdx.x) % Tile::CLUSTER;
    bool gated = is_gated(p.to.activation);
    Ring<Tile::STAGES> ring;
    for_tiles<Tile>(p, [&](int first_row, int first_column) {
        for (int k = 0; k < p.depth; k += TILE_DEPTH, ring.advance()) {
            uint64_t* full = &shared.full[ring.stage];
            ptx::mbarrier_wait_parity(&shared.empty[ring.stage], ring.phase ^ 1);
            ptx::mbarrier_arrive_expect_tx(full, BYTES);
            T* a = shared.a[ring.stage];
            if constexpr (A_ALONG_ROWS) {
                for (int i = 0; i < TILE_ROWS; i += BLOCK)
                    ptx::tma_load_2d(a + i * TILE_DEPTH, &p.a, full, first_row + i, k);
            } else {
                ptx::tma_load_2d(a, &p.a, full, k, first_row);
            }
            for (int i = rank * PARTS; i < (rank + 1) * PARTS; i++) {
                // Of a gated tile, the second half is of the columns that the gate is for.
                int in_tile = i * PART, second = gated && in_tile >= Tile::COLUMNS / 2;
                int column = first_column + in_tile + (second ? static_cast<int>(p.to.columns) - Tile::COLUMNS / 2 : 0);
                T* b = shared.b[ring.stage] + in_tile * TILE_DEPTH;
                int x = B_ALONG_ROWS ? column : k, y = B_ALONG_ROWS ? k : column;
                if constexpr (Tile::CLUSTER > 1) {
                    ptx::tma_load_2d_multicast(b, &p.b, full, x, y, (1 << Tile::CLUSTER) - 1);
                } else {
                    ptx::tma_load_2d(b, &p.b, full, x, y);
                }
            }
        }
    });
}

// --- multiplying -----------------------------------------------------------------------------------------------------

// The descriptor of a matrix of T in shared memory, swizzled over 128 bytes (PTX ISA 9.0, 9.7.15.5.1.2). Eight rows (or
// depths) of 128 bytes are 1024 apart from the next eight; blocks of 64 along contiguous rows follow each other.
template <bool ALONG_ROWS, class T> __device__ inline uint64_t wgmma_descriptor(const T* at) {
    constexpr uint64_t EIGHT = 8 * 128, BLOCK = TILE_DEPTH * 128, SWIZZLE_128 = 1;
    uint64_t leading = ALONG_ROWS ? BLOCK : 16;  // along K that is not used
    return (ptx::shared_address(at) & 0x3FFFF) >> 4 | leading >> 4 << 16 | EIGHT >> 4 << 32 | SWIZZLE_128 << 62;
}

// Further on by so many steps of depth.
template <bool ALONG_ROWS> __device__ inline uint64_t at_step(uint64_t descriptor, int step) {
    return descriptor + static_cast<uint64_t>(step * STEP_DEPTH * (ALONG_ROWS ? 128 : 2) >> 4);
}

template <class Tile> __device__ inline void release(uint64_t* empty) {
    // Each warp by itself: its own products have read the stage. In a cluster, its copies come from all blocks.
    uint32_t lane = threadIdx.x % 32;
    if constexpr (Tile::CLUSTER > 1) {
        if (lane < Tile::CLUSTER) ptx::mbarrier_arrive_at(empty, lane);
    } else {
        if (lane == 0) ptx::mbarrier_arrive(empty);
    }
}

template <class Tile, bool A_ALONG_ROWS, bool B_ALONG_ROWS, class T>
__device__ inline void multiply_slices(HopperShared<T, Tile>& shared, Ring<Tile::STAGES>& ring, int consumer,
                                       int64_t depth, int& lead, float (&sums)[Tile::COLUMNS / 2]) {
    int before = 0;
    for (int64_t k = 0; k < depth; k += TILE_DEPTH, ring.advance()) {
        ptx::mbarrier_wait_parity(&shared.full[ring.stage], ring.phase);
        uint64_t a = wgmma_descriptor<A_ALONG_ROWS>(shared.a[ring.stage] + consumer * CONSUMER_ROWS * TILE_DEPTH);
        uint64_t b = wgmma_descriptor<B_ALONG_ROWS>(shared.b[ring.stage]);
        ptx::wgmma_fence();
#pragma unroll
        for (int i = 0; i < TILE_DEPTH / STEP_DEPTH; i++)
            ptx::wgmma<Tile::COLUMNS, T, A_ALONG_ROWS, B_ALONG_ROWS>(sums, at_step<A_ALONG_ROWS>(a, i),
                                                                     at_step<B_ALONG_ROWS>(b, i), k > 0 || i > 0);
        ptx::wgmma_commit();
        // One is always running. When no more than this one is, the one before it has read its stage.
        ptx::wgmma_wait<1>();
        if (k > 0) release<Tile>(&shared.empty[before]);
        before = ring.stage;
        if (lead > 0 && (--lead == 0 || k + TILE_DEPTH >= depth)) {
            ptx::bar_arrive(SECOND_BEGINS, CONSUMERS * WARPGROUP);
            lead = 0;
        }
    }
    ptx::wgmma_wait<0>();
    ptx::wgmma_sums_are_there(sums);
    release<Tile>(&shared.empty[before]);
}

// --- finishing -------------------------------------------------------------------------------------------------------

// What a thread has of 16 rows and 32 columns: x[4j + 2h + c] is of row lane/4 + 8h and column 8j + 2(lane%4) + c.
constexpr int OF_PANEL = PANEL_ROWS * PANEL_COLUMNS / 32;

// Store them by a bulk copy out of a panel, which none but the last PANELS − 1 copies can still be reading.
template <class T>
__device__ inline void store_panel(const CUtensorMap* map, T* panel, const float (&x)[OF_PANEL], int row, int column) {
    int lane = static_cast<int>(threadIdx.x) % 32;
    if (lane == 0) ptx::bulk_wait_read<PANELS - 1>();
    __syncwarp();
#pragma unroll
    for (int i = 0; i < OF_PANEL; i += 2) {
        int r = lane / 4 + i / 2 % 2 * 8, sixteenth = i / 4;
        // A row is four times 16 bytes. The swizzle over 64 bytes gives each the place of another, by the number of its
        // pair of rows; so the lanes write to 32 different banks.
        int at = r * PANEL_COLUMNS + (sixteenth ^ (r / 2 % 4)) * 8 + lane % 4 * 2;
        *reinterpret_cast<Pack<T, 2>*>(panel + at) = {rounded<T>(x[i]), rounded<T>(x[i + 1])};
    }
    ptx::fence_proxy_async();  // copies read by another path than threads write: without it, what was there before
    __syncwarp();
    if (lane == 0) {
        ptx::tma_store_2d(map, panel, column, row);
        ptx::bulk_commit();
    }
}

// f(row, column, i, whether i + 1 is inside, too) of those that are inside.
template <class F> __device__ inline void for_elements(int64_t rows, int64_t columns, int row, int column, F f) {
    int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
    for (int i = 0; i < OF_PANEL; i += 2) {
        int r = row + lane / 4 + i / 2 % 2 * 8, c = column + i / 4 * 8 + lane % 4 * 2;
        if (r < rows && c < columns) f(r, c, i, c + 1 < columns);
    }
}

template <class Tile, class T> struct Finish {
    const HopperProblem<T>& p;
    T (*panels)[PANEL_ROWS * PANEL_COLUMNS];
    int panel;

    __device__ T* next_panel() { return panels[panel++ % PANELS]; }

    // second: of what the gate is for.
    __device__ void store_pre(const float (&z)[OF_PANEL], int row, int column, bool second) {
        if (p.to.pre == nullptr) return;
        const CUtensorMap* map = second ? &p.pre_up : &p.pre;
        if (p.bulk_pre) return store_panel(map, next_panel(), z, row, column);
        int64_t shift = second ? p.to.columns : 0;
        for_elements(p.to.rows, p.to.columns, row, column, [&](int64_t r, int64_t c, int i, bool both) {
            p.to.store_pre(r, c + shift, z[i]);
            if (both) p.to.store_pre(r, c + 1 + shift, z[i + 1]);
        });
    }

    __device__ void store_out(const float (&y)[OF_PANEL], int row, int column) {
        if (p.bulk_out) return store_panel(&p.out, next_panel(), y, row, column);
        for_elements(p.to.rows, p.to.columns, row, column, [&](int64_t r, int64_t c, int i, bool both) {
            if (both && p.pairs) return p.to.store_pair(r, c, y[i], y[i + 1]);
            p.to.store(r, c, y[i]);
            if (both) p.to.store(r, c + 1, y[i + 1]);
        });
    }

    // Of a thread: z of 32 columns, from this one of the tile on.
    template <int FIRST>
    __device__ void add_bias(const float (&sums)[Tile::COLUMNS / 2], const T* bias, float (&z)[OF_PANEL]) {
#pragma unroll
        for (int i = 0; i < OF_PANEL; i += 2) {
            int column = i / 4 * 8 + static_cast<int>(threadIdx.x) % 4 * 2;
            auto pair = *reinterpret_cast<const Pack<T, 2>*>(bias + column);
            z[i] = sums[FIRST / 2 + i] + widened(pair.x[0]);
            z[i + 1] = sums[FIRST / 2 + i + 1] + widened(pair.x[1]);
        }
    }

    // The sums of a warp's 16 rows, 32 columns at a time.
    __device__ void operator()(float (&sums)[Tile::COLUMNS / 2], const T* bias, int row, int first_column) {
        constexpr int HALF = Tile::COLUMNS / 2;
        bool gated = is_gated(p.to.activation);
        if (row >= p.to.rows) return;
#pragma unroll 1
        for (int c = 0; c < (gated ? HALF : Tile::COLUMNS); c += PANEL_COLUMNS, move_down<OF_PANEL>(sums)) {
            int column = first_column + c;
            if (column >= p.to.columns) return;
            float z[OF_PANEL], up[OF_PANEL];
            add_bias<0>(sums, bias + c, z);
            store_pre(z, row, column, false);
            if (gated) {
                add_bias<HALF>(sums, bias + HALF + c, up);
                store_pre(up, row, column, true);
            }
            activate<Rough>(p.to.activation, z);
            if (gated) {
#pragma unroll
                for (int i = 0; i < OF_PANEL; i++) z[i] *= up[i];
            }
            store_out(z, row, column);
        }
    }
};

// The bias of the tile, in the order of B's columns in it: a part of it for each thread of a consumer.
template <class Tile, class T>
__device__ inline void read_bias(const HopperProblem<T>& p, int first_column, T (&bias)[Tile::COLUMNS / WARPGROUP]) {
    bool gated = is_gated(p.to.activation);
#pragma unroll
    for (int i = 0; i < Tile::COLUMNS / WARPGROUP; i++) {
        int in_tile = static_cast<int>(threadIdx.x) % WARPGROUP + i * WARPGROUP;
        int second = gated && in_tile >= Tile::COLUMNS / 2;
        int64_t column = first_column + in_tile - (second ? Tile::COLUMNS / 2 : 0);
        float value = column < p.to.columns ? p.to.bias_of(column + (second ? p.to.columns : 0)) : 0.0f;
        bias[i] = rounded<T>(value);  // which is what it was
    }
}

template <class Tile, bool A_ALONG_ROWS, bool B_ALONG_ROWS, class T>
__device__ inline void consume(HopperShared<T, Tile>& shared, const HopperProblem<T>& p) {
    int thread = static_cast<int>(threadIdx.x) % WARPGROUP;
    int consumer = static_cast<int>(threadIdx.x) / WARPGROUP, warp = thread / 32;
    T* bias = shared.bias[consumer];
    Finish<Tile, T> finish{p, shared.panels[consumer * 4 + warp], 0};
    Ring<Tile::STAGES> ring;
    int lead = consumer == 0 ? Tile::STAGES / 2 : 0;  // slices; the other half of the ring is for those under way
    if (consumer == 1) ptx::bar_sync(SECOND_BEGINS, CONSUMERS * WARPGROUP);
    for_tiles<Tile>(p, [&](int first_row, int first_column) {
        float sums[Tile::COLUMNS / 2];
        T own_bias[Tile::COLUMNS / WARPGROUP];
        read_bias<Tile>(p, first_column, own_bias);  // well before it is needed
        multiply_slices<Tile, A_ALONG_ROWS, B_ALONG_ROWS>(shared, ring, consumer, p.depth, lead, sums);
        ptx::bar_sync(OF_CONSUMER + consumer, WARPGROUP);  // nobody still reads the bias of the tile before
#pragma unroll
        for (int i = 0; i < Tile::COLUMNS / WARPGROUP; i++) bias[thread + i * WARPGROUP] = own_bias[i];
        ptx::bar_sync(OF_CONSUMER + consumer, WARPGROUP);
        finish(sums, bias, first_row + consumer * CONSUMER_ROWS + warp * PANEL_ROWS, first_column);
    });
    if (thread % 32 == 0) ptx::bulk_wait_read<0>();  // the shared memory goes to another block after this one
}

#endif  // HOPPER_A

// --- the kernel ------------------------------------------------------------------------------------------------------

template <class Tile, bool A_ALONG_ROWS, bool B_ALONG_ROWS, class T>
__global__ void __launch_bounds__(HOPPER_THREADS, 1)
matmul_hopper_kernel(const __grid_constant__ HopperProblem<T> p) {
#if HOPPER_A
    EXTERN_SHARED(char, memory);
    auto& shared = *reinterpret_cast<HopperShared<T, Tile>*>(memory);
    if (threadIdx.x == 0) {
        for (int i = 0; i < Tile::STAGES; i++) {
            ptx::mbarrier_init(&shared.full[i], 1);
            ptx::mbarrier_init(&shared.empty[i], CONSUMERS * 4 * Tile::CLUSTER);  // warps
        }
        ptx::fence_mbarrier_init();
        ptx::prefetch_tensor_map(&p.a);
        ptx::prefetch_tensor_map(&p.b);
    }
    auto meet = [] {
        if constexpr (Tile::CLUSTER > 1) {
            cooperative_groups::this_cluster().sync();
        } else {
            __syncthreads();
        }
    };
    meet();
    if (threadIdx.x < CONSUMERS * WARPGROUP) {
        ptx::set_max_registers_up<MULTIPLYING>();
        consume<Tile, A_ALONG_ROWS, B_ALONG_ROWS>(shared, p);
    } else {
        ptx::set_max_registers_down<FETCHING>();
        if (threadIdx.x == CONSUMERS * WARPGROUP) fetch_slices<Tile, A_ALONG_ROWS, B_ALONG_ROWS>(shared, p);
    }
    __syncwarp();  // the barrier of a cluster is for whole warps
    meet();  // no block of a cluster may end while others still reach into its shared memory
#endif
}

}  // namespace tilegrad::cuda
