// A matrix product for whatever the tensor cores' kernels do not take: any strides, any dtype, any chip.
//
// A block of 256 threads computes a tile of 128 × 64 by multiply-adds, 8 × 4 of them for each thread, out of shared
// memory. The next slice of depth is on its way from global memory to registers while this one is being multiplied.
//
// float32 is IEEE float32. Its sums are formed in two levels, slice by slice: so their error grows with the number of
// slices, not with the depth.
#include <stdexcept>

#include "launch.h"
#include "matmul.cuh"

namespace tilegrad::cuda {
namespace {

constexpr int ROWS = 128, COLUMNS = 64, DEPTH = 16;  // of a tile
constexpr int THREADS = 256, ACROSS = 16;            // threads, and how many of them are side by side
constexpr int THREAD_ROWS = 8, THREAD_COLUMNS = 4;
constexpr int HALF = COLUMNS / 2;                    // of a gated tile, the first half is the gate's
constexpr int PAD = 4;                               // elements, so that a column of a slice is not all in one bank
constexpr int GROUP = 8;

// --- from global to shared memory ------------------------------------------------------------------------------------

// A, its lines being rows, or B, its lines being columns of the result.
template <class T> struct Operand {
    const T* data;
    int64_t lines;
    int64_t stride_line, stride_depth;
    int64_t second;    // gated B: from a line of the gate to that which it is multiplied with; else 0
    bool along_depth;  // contiguous, or nearly so; else along the lines
    bool vectors;      // can be read PER_LOAD elements at a time

    static constexpr int PER_LOAD = sizeof(T) == 8 ? 2 : 4;
};

template <int LINES> constexpr int PER_THREAD = LINES * DEPTH / THREADS;
template <class T, int LINES> constexpr int LOADS = PER_THREAD<LINES> / Operand<T>::PER_LOAD;

// Where a load of a thread lies in the slice. Threads side by side read side by side.
struct At { int line, depth; };

template <class T, int LINES> __device__ At place(const Operand<T>& x, int load) {
    constexpr int N = Operand<T>::PER_LOAD;
    int index = load * THREADS + static_cast<int>(threadIdx.x);
    if (x.along_depth) return {index / (DEPTH / N), index % (DEPTH / N) * N};
    return {index % (LINES / N) * N, index / (LINES / N)};
}

template <class T, int LINES>
__device__ void fetch(const Operand<T>& x, int64_t first_line, int64_t depth, int64_t first_depth,
                      T (&to)[PER_THREAD<LINES>]) {
    constexpr int N = Operand<T>::PER_LOAD;
#pragma unroll
    for (int load = 0; load < LOADS<T, LINES>; load++) {
        At at = place<T, LINES>(x, load);
        int64_t line = first_line + (x.second ? at.line % HALF : at.line), k = first_depth + at.depth;
        const T* from = x.data + line * x.stride_line + k * x.stride_depth;
        if (x.second && at.line >= HALF) from += x.second * x.stride_line;
        int64_t inside = x.along_depth ? depth - k : x.lines - line;
        if (x.along_depth ? line >= x.lines : k >= depth) inside = 0;
        if (x.vectors && inside >= N) {
            auto vector = *reinterpret_cast<const Pack<T, N>*>(from);
#pragma unroll
            for (int i = 0; i < N; i++) to[load * N + i] = vector.x[i];
        } else {
            int64_t stride = x.along_depth ? x.stride_depth : x.stride_line;
#pragma unroll
            for (int i = 0; i < N; i++) to[load * N + i] = i < inside ? from[i * stride] : rounded<T>(0.0f);
        }
    }
}

template <class A, int LINES> using Slice = A[DEPTH][LINES + PAD];

template <class T, int LINES>
__device__ void put(const Operand<T>& x, const T (&from)[PER_THREAD<LINES>], Slice<Compute<T>, LINES>& slice) {
    constexpr int N = Operand<T>::PER_LOAD;
#pragma unroll
    for (int load = 0; load < LOADS<T, LINES>; load++) {
        At at = place<T, LINES>(x, load);
#pragma unroll
        for (int i = 0; i < N; i++)
            slice[at.depth + (x.along_depth ? i : 0)][at.line + (x.along_depth ? 0 : i)] = widened(from[load * N + i]);
    }
}

// --- the kernel ------------------------------------------------------------------------------------------------------

template <class A> struct Slices {
    Slice<A, ROWS> a;
    Slice<A, COLUMNS> b;
};

// The rows and columns of a thread lie in two runs, each in one half of the tile: so a warp reads a slice without
// conflicts, and a thread has the gate's columns together with those that they are multiplied with.
__device__ inline int row_of(int i) {
    int run = THREAD_ROWS / 2, across = static_cast<int>(threadIdx.x) / ACROSS;
    return i / run * (ROWS / 2) + across * run + i % run;
}
__device__ inline int column_of(int j) {
    int run = THREAD_COLUMNS / 2, across = static_cast<int>(threadIdx.x) % ACROSS;
    return j / run * HALF + across * run + j % run;
}

template <class A> using Sums = A[THREAD_ROWS * THREAD_COLUMNS];

template <class A> __device__ void multiply(const Slices<A>& slices, Sums<A>& sums) {
#pragma unroll 4  // more of it takes more registers than two blocks on a multiprocessor leave
    for (int k = 0; k < DEPTH; k++) {
        A a[THREAD_ROWS], b[THREAD_COLUMNS];
#pragma unroll
        for (int i = 0; i < THREAD_ROWS; i++) a[i] = slices.a[k][row_of(i)];
#pragma unroll
        for (int j = 0; j < THREAD_COLUMNS; j++) b[j] = slices.b[k][column_of(j)];
#pragma unroll
        for (int i = 0; i < THREAD_ROWS; i++)
#pragma unroll
            for (int j = 0; j < THREAD_COLUMNS; j++) {
                A& sum = sums[i * THREAD_COLUMNS + j];
                sum = multiply_add(a[i], b[j], sum);
            }
    }
}

template <class T>
__device__ void finish(const Epilogue<T>& to, int64_t first_row, int64_t first_column, Sums<Compute<T>>& sums) {
    using A = Compute<T>;
    bool gated = is_gated(to.activation);
    int64_t columns[THREAD_COLUMNS];  // of the result, at which a gated one needs only the first half
    A bias[THREAD_COLUMNS];
#pragma unroll
    for (int j = 0; j < THREAD_COLUMNS; j++) {
        bool second = gated && j >= THREAD_COLUMNS / 2;
        columns[j] = first_column + column_of(j) - (second ? HALF : 0);
        bias[j] = columns[j] < to.columns ? to.bias_of(columns[j] + (second ? to.columns : 0)) : A(0);
    }
#pragma unroll 1
    for (int i = 0; i < THREAD_ROWS; i++, move_down<THREAD_COLUMNS>(sums)) {
        int64_t row = first_row + row_of(i);
        if (row >= to.rows) continue;
        A z[THREAD_COLUMNS], y[THREAD_COLUMNS];
#pragma unroll
        for (int j = 0; j < THREAD_COLUMNS; j++) y[j] = z[j] = sums[j] + bias[j];
        activate<typename MathOf<T>::type>(to.activation, y);
#pragma unroll
        for (int j = 0; j < THREAD_COLUMNS; j++) {
            if (columns[j] >= to.columns) continue;
            bool second = gated && j >= THREAD_COLUMNS / 2;
            if (to.pre != nullptr) to.store_pre(row, columns[j] + (second ? to.columns : 0), z[j]);
            if (!second) to.store(row, columns[j], gated ? y[j] * z[(j + THREAD_COLUMNS / 2) % THREAD_COLUMNS] : y[j]);
        }
    }
}

template <class T> struct TilesProblem {
    Operand<T> a, b;
    int64_t depth;
    Epilogue<T> to;
};

template <class T>
__global__ void __launch_bounds__(THREADS, sizeof(T) == 8 ? 1 : 2) matmul_tiles_kernel(const TilesProblem<T> p) {
    using A = Compute<T>;
    EXTERN_SHARED(char, memory);
    auto* slices = reinterpret_cast<Slices<A>*>(memory);  // two: one is read while the other is written
    int width = is_gated(p.to.activation) ? HALF : COLUMNS;
    TileAt tile = tile_at<GROUP>(blockIdx.x, ceil_div(p.to.rows, ROWS), ceil_div(p.to.columns, width));
    int64_t first_row = tile.row * ROWS, first_column = tile.column * width;

    T next_a[PER_THREAD<ROWS>], next_b[PER_THREAD<COLUMNS>];
    Sums<A> sums = {};
    for (int64_t k = 0; k < p.depth + DEPTH; k += DEPTH) {  // what is fetched in one round is multiplied in the next
        int now = static_cast<int>(k / DEPTH % 2);
        if (k < p.depth) {
            fetch<T, ROWS>(p.a, first_row, p.depth, k, next_a);
            fetch<T, COLUMNS>(p.b, first_column, p.depth, k, next_b);
        }
        if (k > 0) {
            Sums<A> slice_sums = {};
            multiply(slices[1 - now], slice_sums);
#pragma unroll
            for (int i = 0; i < THREAD_ROWS * THREAD_COLUMNS; i++) sums[i] += slice_sums[i];
        }
        if (k < p.depth) {
            put<T, ROWS>(p.a, next_a, slices[now].a);
            put<T, COLUMNS>(p.b, next_b, slices[now].b);
        }
        __syncthreads();
    }
    finish(p.to, first_row, first_column, sums);
}

// --- the launcher ----------------------------------------------------------------------------------------------------

template <class T>
Operand<T> operand(const void* data, int64_t lines, int64_t stride_line, int64_t stride_depth, int64_t second) {
    Operand<T> x{static_cast<const T*>(data), lines, stride_line, stride_depth, second, true, false};
    auto size = [](int64_t stride) { return stride < 0 ? -stride : stride; };
    x.along_depth = size(stride_depth) <= size(stride_line);
    constexpr int64_t N = Operand<T>::PER_LOAD;
    bool aligned = reinterpret_cast<uintptr_t>(data) % sizeof(Pack<T, N>) == 0;
    // Along the lines, each half of a gated operand has to begin with a whole vector.
    x.vectors = aligned && (x.along_depth ? stride_depth == 1 && stride_line % N == 0
                                          : stride_line == 1 && stride_depth % N == 0 && second % N == 0);
    return x;
}

template <class T> void launch_tiles(const Matmul& m, cudaStream_t stream) {
    bool gated = is_gated(m.activation);
    auto a = operand<T>(m.a, m.rows, m.a_row, m.a_depth, 0);
    auto b = operand<T>(m.b, m.columns, m.b_column, m.b_depth, gated ? m.columns : 0);
    TilesProblem<T> p{a, b, m.depth, Epilogue<T>(m)};
    int64_t tiles = ceil_div(m.rows, ROWS) * ceil_div(m.columns, gated ? HALF : COLUMNS);
    constexpr int SHARED = 2 * sizeof(Slices<Compute<T>>);
    launch("matmul_tiles", matmul_tiles_kernel<T>, p, tiles, THREADS, SHARED, 1, stream);
}

}  // namespace

void check_matmul(const Matmul& m) {
    auto require = [](bool met, const char* what) {
        if (!met) throw std::invalid_argument(std::string("matmul: expected ") + what);
    };
    bool widens = m.out_dtype != m.dtype, plain = m.activation < 0 && m.pre == nullptr;
    require(m.rows >= 0 && m.columns >= 0 && m.depth >= 0, "sizes of 0 or more");
    require(m.activation >= -1 && m.activation < FIRST_GATED + 2, "an activation's number, or -1");
    require(!widens || (size_of(m.dtype) == 2 && m.out_dtype == DType::float32),
            "the result in the operands' dtype or, for 16 bits, in float32");
    require(!widens || plain, "neither activation nor pre with a float32 result of 16-bit operands");
    require(!m.accumulate || (plain && size_of(m.out_dtype) > 2),
            "to accumulate in float32 or float64, without activation and pre");
}

void matmul_tiles(const Matmul& m, cudaStream_t stream) {
    check_matmul(m);
    if (m.rows == 0 || m.columns == 0) return;
    switch (m.dtype) {
        case DType::float64: return launch_tiles<double>(m, stream);
        case DType::float32: return launch_tiles<float>(m, stream);
        case DType::bfloat16: return launch_tiles<__nv_bfloat16>(m, stream);
        case DType::float16: return launch_tiles<__half>(m, stream);
    }
}

}  // namespace tilegrad::cuda
