// The elements of a row that one thread works on, and how they are moved: whatever a kernel computes of them is written
// once, over either of two kinds of cells.
//
// VectorCells moves 16 bytes at a time, between rows that lie one element behind the other: of a row that begins or
// ends elsewhere than on a multiple of 16 bytes, the first and the last vector are made of single elements. TileCells
// takes any strides and dtypes, and rows so short that several of them make a vector.
//
// A row is asked for as a whole before anything is computed, straight into shared memory (cp.async). Every thread gets
// back the elements that it asked for itself, so no barrier is needed, and the row is read from memory once. What does
// not fit is read again each time.
#pragma once

#include "ptx.cuh"
#include "team.cuh"

namespace tilegrad::cuda {

// What is done to the elements of up to two inputs, in this order:
//
//     cells.ask();   and whatever there is to do meanwhile
//     cells.wait();
//     cells.each([](const A (&x)[W], const A (&y)[W], int column) { … });
//     cells.write(out, other, [](const A (&x)[W], const A (&y)[W], int column, A (&to)[W], A (&to_other)[W]) { … });
//
// `column` is that of the first of W elements. Those of them that are not in the row are `filler` in x and 0 in y; what
// is made of them is not written.

// A row of an input (null: not given) or an output (null: not wanted).
struct InRow {
    const char* data;
    int64_t column;  // from one element to the next, in bytes
    DType dtype;
    bool held;          // kept in shared memory, as far as there is room
    const char* block;  // the first row of the block: for rows that are moved together
};

struct OutRow {
    char* data;
    int64_t column;
    DType dtype;
    char* block;
};

// How the launcher of a kernel divides its work. Of the dynamic shared memory of a block come first two areas of
// scratch for reductions and one for the cluster's, then the rows.
struct Plan {
    Teams teams;
    int block;      // threads
    int scratch;    // bytes of one area
    int room;       // places for each input, as VectorCells and TileCells count them
    bool together;  // TileCells moves the rows of a block as one
    int shared;     // bytes, all in all

    __host__ __device__ int before_cells() const { return (3 * scratch + WIDE - 1) / WIDE * WIDE; }
};

// The part of a row that a block of a cluster has.
struct Part {
    int begin, end;

    __device__ Part(int count, const Teams& teams, const Team& team) {
        int each = static_cast<int>(ceil_div(count, teams.cluster));
        begin = min(count, each * team.rank);
        end = min(count, begin + each);
    }
};

// --- vectors ---------------------------------------------------------------------------------------------------------

// All arrays' rows begin the same number of elements behind a multiple of W.
template <class T, class TO> class VectorCells {
  public:
    static constexpr int W = PER_VECTOR<T>;
    using Element = T;
    using A = Compute<T>;
    static constexpr bool KEEPS = sizeof(T) == sizeof(A);  // whether the memory of an input has room for a result

    // The plan's `room` counts the vectors of a row. `first` is the address of the first element of any of the arrays.
    __device__ VectorCells(const InRow (&in)[2], const char* first, int columns, T filler, const Plan& plan,
                           const Team& team, char* memory)
        : columns_(columns), filler_(filler), thread_(team.thread), threads_(plan.teams.threads),
          shift_(static_cast<int>(reinterpret_cast<uintptr_t>(first) / sizeof(T) % W)),
          part_(columns > 0 ? (shift_ + columns + W - 1) / W : 0, plan.teams, team) {
        held_end_ = min(part_.end, part_.begin + plan.room);
        memory += static_cast<int64_t>(team.index) * plan.room * WIDE * (in[0].held + in[1].held);
#pragma unroll
        for (int i = 0; i < 2; i++) {
            rows_[i] = reinterpret_cast<const T*>(in[i].data);
            held_[i] = in[i].held ? reinterpret_cast<uint4*>(memory) - part_.begin : nullptr;
            if (in[i].held) memory += static_cast<int64_t>(plan.room) * WIDE;
        }
        bool all = in[0].held == (in[0].data != nullptr) && in[1].held == (in[1].data != nullptr);
        here_ = all ? held_end_ : part_.begin;
        whole_begin_ = max(part_.begin, shift_ > 0);
        whole_end_ = min(part_.end, (shift_ + columns) / W);
    }

    __device__ void ask() {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            if (held_[i] == nullptr) continue;
            for (int v = own_from(whole_begin_); v < min(whole_end_, held_end_); v += threads_)
                ptx::cp_async_16(&held_[i][v], rows_[i] + column_of(v));
#pragma unroll 1
            for (int side = 0; side < 2; side++) {
                int v = side == 0 ? part_.begin : part_.end - 1;
                if (is_edge_of_mine(v, side == 1) && v < held_end_) held_[i][v] = edge(i, v);
            }
        }
        ptx::cp_async_commit();
    }
    __device__ void wait() { ptx::cp_async_wait<0>(); }

    // Whether all of the row is in shared memory, so that results can take its place there.
    __device__ bool keeps() const { return KEEPS && here_ == part_.end; }

    template <class F> __device__ void each(F f) const {
#pragma unroll 2
        for (int v = own_from(part_.begin); v < here_; v += threads_) {
            A x[W], y[W];
            take(v, x, y);
            f(x, y, column_of(v));
        }
#pragma unroll 1
        for (int v = own_from(here_); v < part_.end; v += threads_) {
            A x[W], y[W];
            fetch(v, x, y);
            f(x, y, column_of(v));
        }
    }

    // As `each`; what f leaves in x is what `each` and `write` find there from now on. Only if it `keeps`.
    template <class F> __device__ void replace(F f) {
        if constexpr (KEEPS) {
#pragma unroll 2
            for (int v = own_from(part_.begin); v < part_.end; v += threads_) {
                A x[W], y[W];
                take(v, x, y);
                f(x, y, column_of(v));
                held_[0][v] = packed(x);
            }
        }
    }

    template <class F> __device__ void write(const OutRow& out, const OutRow& other, F f) const {
        int plain_end = out.data != nullptr && other.data == nullptr ? min(here_, whole_end_) : whole_begin_;
#pragma unroll 2
        for (int v = own_from(whole_begin_); v < plain_end; v += threads_) {
            A x[W], y[W], to[W], unwanted[W];
            take(v, x, y);
            f(x, y, column_of(v), to, unwanted);
            put(out, v, to);
        }
        // All others, one by one: what is not held, and the edges.
        int first = own_from(max(plain_end, whole_begin_));
#pragma unroll 1
        for (int k = -2;; k++) {
            int v = k == -2 ? part_.begin : k == -1 ? part_.end - 1 : first + k * threads_;
            if (k >= 0 && v >= whole_end_) break;
            if (k < 0 && !is_edge_of_mine(v, k == -1)) continue;
            A x[W], y[W], to[W], to_other[W];
            fetch(v, x, y);
            f(x, y, column_of(v), to, to_other);
            if (out.data != nullptr) put_some(out, v, to);
            if (other.data != nullptr) put_some(other, v, to_other);
        }
    }

  private:
    __device__ int column_of(int v) const { return v * W - shift_; }
    __device__ bool is_whole(int v) const { return v >= whole_begin_ && v < whole_end_; }

    // This thread's first vector from there on.
    __device__ int own_from(int v) const { return v + ((thread_ - (v - part_.begin)) & (threads_ - 1)); }

    // Whether this vector, the first or the last of a part, is not whole, and this thread's.
    __device__ bool is_edge_of_mine(int v, bool last) const {
        return v >= part_.begin && v < part_.end && !is_whole(v) && own_from(v) == v && !(last && v == part_.begin);
    }

    __device__ uint4 edge(int i, int v) const {
        Vector<T> found;
        for (int j = 0; j < W; j++) {
            int column = column_of(v) + j;
            found.x[j] = column >= 0 && column < columns_ ? rows_[i][column] : i == 0 ? filler_ : T(0.f);
        }
        uint4 bits;
        memcpy(&bits, &found, sizeof bits);
        return bits;
    }

    // From shared memory; and wherever they are.
    __device__ void take(int v, A (&x)[W], A (&y)[W]) const {
        unpack<T>(held_[0][v], x);
        if (held_[1] != nullptr) unpack<T>(held_[1][v], y);
    }
    __device__ void fetch(int v, A (&x)[W], A (&y)[W]) const {
        if (rows_[0] != nullptr) unpack<T>(found(0, v), x);
        if (rows_[1] != nullptr) unpack<T>(found(1, v), y);
    }
    __device__ uint4 found(int i, int v) const {
        if (held_[i] != nullptr && v < held_end_) return held_[i][v];
        return is_whole(v) ? *reinterpret_cast<const uint4*>(rows_[i] + column_of(v)) : edge(i, v);
    }

    __device__ void put(const OutRow& out, int v, const A (&x)[W]) const {
        Pack<TO, W> made;
#pragma unroll
        for (int j = 0; j < W; j++) made.x[j] = rounded<TO>(x[j]);
        *reinterpret_cast<Pack<TO, W>*>(reinterpret_cast<TO*>(out.data) + column_of(v)) = made;
    }
    __device__ void put_some(const OutRow& out, int v, const A (&x)[W]) const {
        if (is_whole(v)) return put(out, v, x);
#pragma unroll
        for (int j = 0; j < W; j++) {
            int column = column_of(v) + j;
            if (column >= 0 && column < columns_) reinterpret_cast<TO*>(out.data)[column] = rounded<TO>(x[j]);
        }
    }

    const T* rows_[2];
    uint4* held_[2];  // the place of vector 0, which may be another block's
    int columns_;
    T filler_;
    int thread_, threads_, shift_;
    Part part_;
    int held_end_, here_;          // up to which there is room; up to which all that is given is held
    int whole_begin_, whole_end_;  // the vectors that no edge cuts
};

// --- tiles -----------------------------------------------------------------------------------------------------------

// Elements one by one. Rows that lie one behind the other, in the outputs as in the inputs and at the same distance
// from a multiple of 16 bytes, are moved `together`, as one piece of memory, 16 bytes at a time. What is made of them
// takes the place of the inputs until all of it is written.
template <class Accumulator> class TileCells {
  public:
    static constexpr int W = 1;
    using Element = Accumulator;
    using A = Accumulator;
    static constexpr bool KEEPS = false;

    // The plan's `room` counts the elements of a thread; of rows that move together, the bytes of an input.
    __device__ TileCells(const InRow (&in)[2], int columns, int64_t rows, const Plan& plan, const Team& team,
                         char* memory)
        : columns_(columns), thread_(team.thread), threads_(plan.teams.threads), room_(plan.room), together_(0),
          part_(team.row < rows ? columns : 0, plan.teams, team) {
        if (plan.together)
            together_ = static_cast<int>(min(static_cast<int64_t>(plan.teams.rows), rows - (team.row - team.index)));
#pragma unroll
        for (int i = 0; i < 2; i++) {
            in_[i] = in[i];
            int size = size_of(in[i].dtype);
            if (together_ > 0) {
                int lead = static_cast<int>(reinterpret_cast<uintptr_t>(in[i].block) % WIDE);
                own_[i] = memory + lead + static_cast<int64_t>(team.index) * columns * size;
                pieces_[i] = memory;
                if (in[i].block != nullptr) memory += room_;
            } else {
                own_[i] = memory + static_cast<int64_t>(threadIdx.x) * size;
                if (in[i].held) memory += static_cast<int64_t>(room_) * blockDim.x * size;
            }
        }
    }

    __device__ void ask() {
        if (together_ > 0) {
#pragma unroll
            for (int i = 0; i < 2; i++)
                if (in_[i].data != nullptr)
                    move<true>(const_cast<char*>(in_[i].block), pieces_[i], size_of(in_[i].dtype));
            ptx::cp_async_commit();
            return;
        }
#pragma unroll
        for (int i = 0; i < 2; i++) {
            if (!in_[i].held) continue;
            int k = 0;
            for (int c = part_.begin + thread_; c < part_.end && k < room_; c += threads_, k++)
                copy(place(i, c, k), from(i, c), size_of(in_[i].dtype));
        }
    }

    __device__ void wait() {
        if (together_ == 0) return;
        ptx::cp_async_wait<0>();
        __syncthreads();  // elements are taken from what other threads asked for
    }

    __device__ bool keeps() const { return false; }
    template <class F> __device__ void replace(F) {}

    template <class F> __device__ void each(F f) const {
        int k = 0;
        for (int c = part_.begin + thread_; c < part_.end; c += threads_, k++) {
            A x[1], y[1];
            read(0, c, k, x);
            read(1, c, k, y);
            f(x, y, c);
        }
    }

    template <class F> __device__ void write(const OutRow& out, const OutRow& other, F f) const {
        int k = 0;
        for (int c = part_.begin + thread_; c < part_.end; c += threads_, k++) {
            A x[1], y[1], to[1], to_other[1];
            read(0, c, k, x);
            read(1, c, k, y);
            f(x, y, c, to, to_other);
            if (out.data != nullptr)
                store(together_ > 0 ? place(0, c, k) : out.data + c * out.column, out.dtype, to[0]);
            if (other.data != nullptr)
                store(together_ > 0 ? place(1, c, k) : other.data + c * other.column, other.dtype, to_other[0]);
        }
        if (together_ == 0) return;
        __syncthreads();  // so that all of a piece is made before it is moved
        if (out.data != nullptr) move<false>(out.block, pieces_[0], size_of(out.dtype));
        if (other.data != nullptr) move<false>(other.block, pieces_[1], size_of(other.dtype));
    }

  private:
    __device__ const char* from(int i, int c) const { return in_[i].data + c * in_[i].column; }
    __device__ char* place(int i, int c, int k) const {
        int64_t at = together_ > 0 ? c : static_cast<int64_t>(k) * blockDim.x;
        return own_[i] + at * size_of(in_[i].dtype);
    }

    __device__ void read(int i, int c, int k, A (&x)[1]) const {
        if (in_[i].data == nullptr) return;
        bool here = together_ > 0 || (in_[i].held && k < room_);
        x[0] = load<A>(here ? place(i, c, k) : from(i, c), in_[i].dtype);
    }

    __device__ static void copy(char* to, const char* from, int size) {
        if (size == 8)
            *reinterpret_cast<uint64_t*>(to) = *reinterpret_cast<const uint64_t*>(from);
        else if (size == 4)
            *reinterpret_cast<uint32_t*>(to) = *reinterpret_cast<const uint32_t*>(from);
        else
            *reinterpret_cast<uint16_t*>(to) = *reinterpret_cast<const uint16_t*>(from);
    }

    // The rows of the block between global and shared memory, where they lie at the same distance from 16 bytes.
    template <bool IN> __device__ void move(char* global, char* shared, int size) const {
        int lead = static_cast<int>(reinterpret_cast<uintptr_t>(global) % WIDE),
            end = lead + together_ * columns_ * size;
        char* start = global - lead;
        for (int at = static_cast<int>(threadIdx.x) * WIDE; at < end; at += static_cast<int>(blockDim.x) * WIDE) {
            if (at >= lead && at + WIDE <= end) {
                if constexpr (IN)
                    ptx::cp_async_16(shared + at, start + at);
                else
                    *reinterpret_cast<uint4*>(start + at) = *reinterpret_cast<const uint4*>(shared + at);
            } else {
                for (int b = max(at, lead); b < min(at + WIDE, end); b += size) {
                    if constexpr (IN)
                        copy(shared + b, start + b, size);
                    else
                        copy(start + b, shared + b, size);
                }
            }
        }
    }

    InRow in_[2];
    char* own_[2];     // this thread's first element, or its row's
    char* pieces_[2];  // the rows together
    int columns_, thread_, threads_, room_;
    int together_;  // rows
    Part part_;
};

}  // namespace tilegrad::cuda
