// The backward of an activation and a bias: dZ = dY · act'(Z), and the sums of its columns, at one read of dY and Z.
//
// A block goes down a range of rows, a panel of columns wide, and keeps the sums in registers. Those of all ranges are
// added up by a second kernel, in the same order always. They are of dZ before it is rounded.
#include <algorithm>
#include <type_traits>

#include "launch.h"
#include "matmul.cuh"

namespace tilegrad::cuda {
namespace {

constexpr int LANES = 32, WARPS = 8;  // of a block: a row at a time for each warp
constexpr int SUM_WARPS = 32;         // of the second kernel
constexpr int LEAST_ROWS = 16;        // of a thread
constexpr int MOST_ROWS = 128;        // the error of a sum grows with the number of its terms
// Blocks of a multiprocessor, that loads of one are in flight while others compute: as many as registers allow.
template <class T> constexpr int BLOCKS_EACH = sizeof(T) == 4 ? 4 : sizeof(T) == 2 ? 3 : 2;

// --- dZ and the sums of a range of rows ------------------------------------------------------------------------------

// N neighbouring columns of a row, in one access where N > 1.
template <class T, int N> __device__ inline Pack<T, N> read(const void* data, int64_t offset) {
    return *reinterpret_cast<const Pack<T, N>*>(static_cast<const T*>(data) + offset);
}

// What sums are of. float32 results show every digit that a long sum loses; 16-bit ones have few.
template <class T> using Sum = std::conditional_t<sizeof(T) == 2, float, double>;

// What a thread has of a row: of a gated activation for the gate, and for what it is multiplied with.
template <class A, int N> struct Columns { A gate[N], up[N]; };

template <class T, int N>
__device__ inline Columns<Compute<T>, N> dz_of(const DZ& d, int64_t row, int64_t column) {
    using Math = typename MathOf<T>::type;
    Columns<Compute<T>, N> out;
    auto grad = read<T, N>(d.grad, row * d.grad_row + column * d.grad_column);
#pragma unroll
    for (int i = 0; i < N; i++) out.gate[i] = widened(grad.x[i]);
    if (d.saved == nullptr) return out;

    int64_t at = row * d.saved_row + column * d.saved_column;
    auto z = read<T, N>(d.saved, at);
    if (is_gated(d.activation)) {
        auto up = read<T, N>(d.saved, at + d.columns * d.saved_column);
        of_activation(d.activation, [&](auto act) {
#pragma unroll
            for (int i = 0; i < N; i++) {
                out.up[i] = out.gate[i] * act.of(Math{}, widened(z.x[i]));
                out.gate[i] *= widened(up.x[i]) * act.grad(Math{}, widened(z.x[i]));
            }
        });
    } else {
        of_activation(d.activation, [&](auto act) {
#pragma unroll
            for (int i = 0; i < N; i++) out.gate[i] *= act.grad(Math{}, widened(z.x[i]));
        });
    }
    return out;
}

template <class T, int N> __device__ inline void write(T* to, const Compute<T> (&x)[N]) {
    Pack<T, N> pack;
#pragma unroll
    for (int i = 0; i < N; i++) pack.x[i] = rounded<T>(x[i]);
    if constexpr (sizeof pack == WIDE) {  // by one access: left to itself, the compiler makes four of them
        uint4 bits;
        memcpy(&bits, &pack, sizeof bits);
        __stcg(reinterpret_cast<uint4*>(to), bits);  // into L2, where the products find it
    } else {
        *reinterpret_cast<Pack<T, N>*>(to) = pack;
    }
}

template <class S, class A, int N>
__device__ inline void add(Columns<S, N>& to, const Columns<A, N>& x, bool gated) {
#pragma unroll
    for (int i = 0; i < N; i++) to.gate[i] += x.gate[i];
    if (!gated) return;
#pragma unroll
    for (int i = 0; i < N; i++) to.up[i] += x.up[i];
}

// Where a thread of the first kernel works. Neighbouring blocks have neighbouring panels of the same rows.
struct Place {
    int64_t panel, range;
    int warp, lane;

    __device__ explicit Place(int64_t panels)
        : panel(blockIdx.x % panels), range(blockIdx.x / panels), warp(threadIdx.x / LANES),
          lane(threadIdx.x % LANES) {}
};

// The sums of a block's warps, added up and stored where they belong: by range or, if there is only one, at the end.
template <class T, int N>
__device__ void store_sums(const DZ& d, const Place& place, const Columns<Sum<T>, N>& sums, bool only_range) {
    using S = Sum<T>;
    constexpr int WIDTH = LANES * N;
    EXTERN_SHARED(char, memory);
    auto* of_warps = reinterpret_cast<S(*)[2][WIDTH]>(memory);
#pragma unroll
    for (int i = 0; i < N; i++) {
        of_warps[place.warp][0][place.lane * N + i] = sums.gate[i];
        of_warps[place.warp][1][place.lane * N + i] = sums.up[i];
    }
    __syncthreads();
    int64_t halves = is_gated(d.activation) ? 2 : 1;
    for (int i = static_cast<int>(threadIdx.x); i < WIDTH * halves; i += LANES * WARPS) {
        int64_t column = place.panel * WIDTH + i % WIDTH;
        if (column >= d.columns) continue;
        S sum = 0;
        for (int warp = 0; warp < WARPS; warp++) sum += of_warps[warp][i / WIDTH][i % WIDTH];
        column += i / WIDTH * d.columns;
        if (only_range) {
            static_cast<T*>(d.bias_grad)[column] = rounded<T>(sum);
        } else {
            static_cast<S*>(d.workspace)[place.range * halves * d.columns + column] = sum;
        }
    }
}

struct DZProblem {
    DZ d;
    int64_t panels, ranges, range_rows;
};

template <class T, int N>
__global__ void __launch_bounds__(LANES * WARPS, BLOCKS_EACH<T>) dz_kernel(const DZProblem p) {
    const DZ& d = p.d;
    bool gated = is_gated(d.activation);
    Place place(p.panels);
    int64_t column = (place.panel * LANES + place.lane) * N;
    int64_t first = place.range * p.range_rows, last = first + p.range_rows < d.rows ? first + p.range_rows : d.rows;
    Columns<Sum<T>, N> sums = {};
    if (column < d.columns) {
        for (int64_t row = first + place.warp; row < last; row += WARPS) {
            auto x = dz_of<T, N>(d, row, column);
            add(sums, x, gated);
            if (d.dz == nullptr) continue;
            T* to = static_cast<T*>(d.dz) + row * d.dz_row + column;
            write<T, N>(to, x.gate);
            if (gated) write<T, N>(to + d.columns, x.up);
        }
    }
    if (d.bias_grad != nullptr) store_sums<T, N>(d, place, sums, p.ranges == 1);
}

// --- the sums of all ranges ------------------------------------------------------------------------------------------

template <class T> struct RangesProblem {
    const Sum<T>* ranges;  // (count, columns)
    int64_t count, columns;
    T* out;                // (columns)
};

template <class T> __global__ void __launch_bounds__(LANES * SUM_WARPS) sum_ranges_kernel(const RangesProblem<T> p) {
    using S = Sum<T>;
    int warp = static_cast<int>(threadIdx.x) / LANES, lane = static_cast<int>(threadIdx.x) % LANES;
    EXTERN_SHARED(char, memory);
    auto* of_warps = reinterpret_cast<S(*)[LANES]>(memory);
    int64_t column = static_cast<int64_t>(blockIdx.x) * LANES + lane;
    S sum = 0;
    if (column < p.columns)
        for (int64_t i = warp; i < p.count; i += SUM_WARPS) sum += p.ranges[i * p.columns + column];
    of_warps[warp][lane] = sum;
    __syncthreads();
    if (warp > 0 || column >= p.columns) return;
    for (int other = 1; other < SUM_WARPS; other++) sum += of_warps[other][lane];
    p.out[column] = rounded<T>(sum);
}

// --- the launcher ----------------------------------------------------------------------------------------------------

struct Shape {
    bool vectors;  // 16 bytes an access
    int64_t panels, ranges, range_rows;
};

// Whether 16-byte accesses can reach all of an array's rows, and, of a gated activation, of both its halves.
bool aligned(const DZ& d, const void* data, int64_t row, int64_t column, bool halves) {
    int64_t n = WIDE / size_of(d.dtype);
    return data == nullptr || (column == 1 && reinterpret_cast<uintptr_t>(data) % WIDE == 0 && row % n == 0 &&
                               d.columns % n == 0 && (!halves || d.columns % n == 0));
}

Shape shape_of(const DZ& d) {
    bool gated = is_gated(d.activation);
    Shape s;
    s.vectors = aligned(d, d.grad, d.grad_row, d.grad_column, false) && aligned(d, d.dz, d.dz_row, 1, gated) &&
                aligned(d, d.saved, d.saved_row, d.saved_column, gated);
    s.panels = ceil_div(d.columns, LANES * (s.vectors ? WIDE / size_of(d.dtype) : 1));
    // About as many blocks as run at a time, if there are rows enough to make each worth its while.
    int64_t resident = ceil_div(chip().multiprocessors * BLOCKS_EACH<__half>, s.panels);
    int64_t ranges = std::min(resident, ceil_div(d.rows, LEAST_ROWS * WARPS));
    ranges = std::max({ranges, ceil_div(d.rows, MOST_ROWS * WARPS), int64_t(1)});
    s.range_rows = std::max<int64_t>(ceil_div(d.rows, ranges), 1);  // there may be none
    s.ranges = std::max<int64_t>(ceil_div(d.rows, s.range_rows), 1);
    return s;
}

template <class T, int N> void launch_dz(const DZ& d, const Shape& s, cudaStream_t stream) {
    using S = Sum<T>;
    DZProblem p{d, s.panels, s.ranges, s.range_rows};
    constexpr int SHARED = sizeof(S) * WARPS * 2 * LANES * N;
    launch("dz", dz_kernel<T, N>, p, s.panels * s.ranges, LANES * WARPS, SHARED, 1, stream);
    if (d.bias_grad == nullptr || s.ranges == 1) return;
    int64_t columns = is_gated(d.activation) ? 2 * d.columns : d.columns;
    RangesProblem<T> sums{static_cast<const S*>(d.workspace), s.ranges, columns, static_cast<T*>(d.bias_grad)};
    launch("dz's sums", sum_ranges_kernel<T>, sums, ceil_div(columns, LANES), LANES * SUM_WARPS,
           sizeof(S) * SUM_WARPS * LANES, 1, stream);
}

template <class T> void launch_dz(const DZ& d, cudaStream_t stream) {
    Shape s = shape_of(d);
    return s.vectors ? launch_dz<T, PER_VECTOR<T>>(d, s, stream) : launch_dz<T, 1>(d, s, stream);
}

}  // namespace

int64_t workspace_bytes(const DZ& d) {
    if (d.bias_grad == nullptr || d.columns == 0) return 0;
    int64_t ranges = shape_of(d).ranges, halves = is_gated(d.activation) ? 2 : 1;
    return ranges == 1 ? 0 : ranges * halves * d.columns * (size_of(d.dtype) == 2 ? 4 : 8);
}

void dz(const DZ& d, cudaStream_t stream) {
    if (d.columns == 0) return;
    switch (d.dtype) {
        case DType::float64: return launch_dz<double>(d, stream);
        case DType::float32: return launch_dz<float>(d, stream);
        case DType::bfloat16: return launch_dz<__nv_bfloat16>(d, stream);
        case DType::float16: return launch_dz<__half>(d, stream);
    }
}

}  // namespace tilegrad::cuda
