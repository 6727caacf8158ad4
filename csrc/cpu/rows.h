// From the number of a row to where an array keeps it, and rows of any layout made dense for the kernels.
//
// A kernel sees rows of one stored type, dense from their first element to the last. An array that has its rows like
// this is used where it is. The rows of others (strided columns, other dtypes) pass a tile at a time through scratch
// memory of the thread.
#pragma once

#include <cstdlib>

#include "convert.h"
#include "vec.h"

namespace tilegrad::cpu::TG_ISA {

// --- scratch memory --------------------------------------------------------------------------------------------------

class Scratch {
  public:
    ~Scratch() { free(data_); }

    // At least so many bytes, aligned to a cache line; what they held before is lost.
    char* reserve(int64_t bytes) {
        if (bytes > size_) {
            free(data_);
            size_ = (least(bytes, INT64_MAX - KEPT) + KEPT - 1) / KEPT * KEPT;
            data_ = (char*)aligned_alloc(64, size_);
            if (!data_) {
                size_ = 0;
                no_memory(bytes);
            }
        }
        return data_;
    }

    // Give back what only a very large call needed.
    void trim() {
        if (size_ <= MOST) return;
        free(data_);
        data_ = nullptr;
        size_ = 0;
    }

  private:
    static constexpr int64_t KEPT = 1 << 20, MOST = 8 << 20;
    char* data_ = nullptr;
    int64_t size_ = 0;
};

static thread_local Scratch gathered;

// --- operands --------------------------------------------------------------------------------------------------------

template <class S> constexpr DType dtype_of = DType::float32;
template <> constexpr DType dtype_of<double> = DType::float64;
template <> constexpr DType dtype_of<bf16> = DType::bfloat16;
template <> constexpr DType dtype_of<f16> = DType::float16;

template <class A, class B> constexpr bool same = false;
template <class A> constexpr bool same<A, A> = true;

template <class P> struct PointeeOf;
template <class S> struct PointeeOf<S*> {
    using type = S;
};
template <class P> using pointee = typename PointeeOf<P>::type;

enum class Use { read, write };

constexpr int64_t MOST_TILE_ROWS = 256;
constexpr int64_t TILE_BYTES = 16 << 10;    // half of a first-level cache
constexpr int64_t INTERLEAVED_BYTES = 256;  // of neighbouring rows, in one column

// An array of a call whose rows a kernel reads or writes as rows of S.
template <class S> class Operand {
  public:
    Operand(Use use, const Rows& rows, const Lines& lines, DType dtype, int64_t columns)
        : use_(use), rows_(&rows), lines_(&lines), dtype_(dtype), columns_(columns) {}

    bool given() const { return lines_->data; }
    bool dense() const { return dtype_ == dtype_of<S> && (lines_->column == sizeof(S) || columns_ <= 1); }
    bool staged() const { return given() && !dense(); }

    // Whether rows that follow each other share cache lines of which one row alone uses a part.
    bool interleaved() const {
        int64_t next = rows_->dims ? lines_->rows[rows_->dims - 1] : 0;
        return next && llabs(next) < llabs(lines_->column);
    }

    // Whether all elements lie at multiples of their size.
    bool aligned() const {
        uintptr_t all = (uintptr_t)lines_->data;
        for (int d = 0; d < rows_->dims; d++) all |= lines_->rows[d];
        return all % sizeof(S) == 0;
    }

    S* row(int64_t r) const {
        if (tile_) return tile_ + (r - tile_first_) * tile_stride_;
        return (S*)(lines_->data + offset(*rows_, *lines_, r));
    }

    // The rows from r on, for those who ask for many: without a division or a look at memory for each, if they can be.
    auto from(int64_t r) const {
        bool even = tile_ || rows_->dims <= 1;
        char* first = (char*)row(r);
        int64_t step = !even ? 0 : tile_ ? tile_stride_ * static_cast<int64_t>(sizeof(S)) : rows_->dims ? lines_->rows[0] : 0;
        return [=](int64_t i) TG_INLINED { return even ? (S*)(first + i * step) : row(r + i); };
    }

    void stage(S* tile, int64_t stride, int64_t first) {
        tile_ = tile;
        tile_stride_ = stride;
        tile_first_ = first;
    }

    void gather(int64_t first, int64_t last) const {
        if (use_ == Use::read) transfer<Use::read>(first, last);
    }
    void scatter(int64_t first, int64_t last) const {
        if (use_ == Use::write) transfer<Use::write>(first, last);
    }

  private:
    template <Use USE> void transfer(int64_t first, int64_t last) const {
        of_dtype(dtype_, [&](auto* stored) {
            using D = pointee<decltype(stored)>;
            // Rows of 16 bits are staged only for their strides, in their own dtype.
            if constexpr (!same<S, D> && !same<S, compute<S>>) return;
            else if (interleaved()) transfer_columns<USE, D>(first, last);
            else for (int64_t r = first; r < last; r++) transfer_row<USE, D>(there(r), row(r));
        });
    }

    // Column by column, so that a cache line of the array serves all the rows that have a part of it.
    template <Use USE, class D> void transfer_columns(int64_t first, int64_t last) const {
        constexpr int64_t line = 64 / sizeof(D), ahead = 12;
        int64_t count = last - first, column = lines_->column, columns = columns_, stride = tile_stride_;
        char* at[MOST_TILE_ROWS];
        bool adjacent = true;
        for (int64_t i = 0; i < count; i++) {
            at[i] = there(first + i);
            adjacent = adjacent && at[i] == at[0] + i * static_cast<int64_t>(sizeof(D));
        }
        S* tile = tile_;
        for (int64_t c = 0; c < columns; c++, tile++) {
            if (c + ahead < columns)
                for (int64_t i = 0; i < count; i += line)
                    __builtin_prefetch(at[i] + (c + ahead) * column, USE == Use::write);
            char* from = at[0] + c * column;
            if (adjacent)
                for (int64_t i = 0; i < count; i++) transfer_one<USE, D>(from + i * sizeof(D), tile + i * stride);
            else
                for (int64_t i = 0; i < count; i++) transfer_one<USE, D>(at[i] + c * column, tile + i * stride);
        }
    }

    template <Use USE, class D> void transfer_row(char* array, S* tile) const {
        int64_t column = lines_->column, columns = columns_;
        if (column == sizeof(D))
            return USE == Use::read ? convert_all((const D*)array, tile, columns)
                                    : convert_all((const S*)tile, (D*)array, columns);
        for (int64_t c = 0; c < columns; c++) transfer_one<USE, D>(array + c * column, tile + c);
    }

    template <Use USE, class D> TG_INLINED static void transfer_one(char* array, S* tile) {
        if constexpr (same<S, D>)
            USE == Use::read ? memcpy(tile, array, sizeof(S)) : memcpy(array, tile, sizeof(S));
        else if constexpr (USE == Use::read)
            *tile = static_cast<S>(load_one<D>(array));
        else
            store_one<D>(array, static_cast<compute<D>>(*tile));
    }

    char* there(int64_t r) const { return lines_->data + offset(*rows_, *lines_, r); }

    Use use_;
    const Rows* rows_;
    const Lines* lines_;
    DType dtype_;
    int64_t columns_;
    S* tile_ = nullptr;
    int64_t tile_stride_ = 0, tile_first_ = 0;
};

// Call kernel(first, last) for all of the rows, or for a tile of them at a time if an operand's have to be staged.
template <class S, int N, class Kernel>
static void over_rows(Operand<S>* const (&operands)[N], int64_t columns, int64_t first, int64_t last, Kernel kernel) {
    int64_t staged = 0, least_rows = 1;
    for (auto* operand : operands) {
        staged += operand->staged();
        if (operand->staged() && operand->interleaved()) least_rows = INTERLEAVED_BYTES / sizeof(S);
    }
    if (first >= last) return;
    // An odd number of cache lines, so that equal columns of the rows do not compete for one set of the cache.
    constexpr int64_t line = 64 / sizeof(S);
    int64_t stride = ((columns + line - 1) / line | 1) * line;
    int64_t rows = TILE_BYTES / (stride * static_cast<int64_t>(sizeof(S)));
    rows = least(rows < least_rows ? least_rows : least(rows, MOST_TILE_ROWS), last - first);
    if (!staged) rows = last - first;
    S* tile = staged ? (S*)gathered.reserve(staged * rows * stride * sizeof(S)) : nullptr;
    for (int64_t from = first; from < last; from += rows) {
        int64_t to = least(from + rows, last);
        S* next = tile;
        for (auto* operand : operands) {
            if (!operand->staged()) continue;
            operand->stage(next, stride, from);
            operand->gather(from, to);
            next += rows * stride;
        }
        kernel(from, to);
        for (auto* operand : operands)
            if (operand->staged()) operand->scatter(from, to);
    }
    if (staged) gathered.trim();
}

// --- reading ---------------------------------------------------------------------------------------------------------

// Asks for what will be read behind [begin, end) of a row, or of the row after it: what a processor foresees by itself
// ends with the page, and it sees less of that the more a kernel computes in between.
template <class S> TG_INLINE void ask_ahead(const S* row, int64_t begin, int64_t end) {
    constexpr uintptr_t AHEAD = 8192;  // bytes
    uintptr_t last = (uintptr_t)(row + end) + AHEAD;
    for (uintptr_t p = (uintptr_t)(row + begin) + AHEAD; p < last; p += 64) __builtin_prefetch((const void*)p, 0, 2);
}

// --- writing ---------------------------------------------------------------------------------------------------------

// How many elements p is from where streamed stores may begin.
template <class S> TG_INLINE int64_t to_aligned(const S* p) {
    constexpr uintptr_t size = W<compute<S>> * sizeof(S);
    return (size - (uintptr_t)p % size) % size / sizeof(S);
}

// out[i…] = value(i, part) for i from `begin` to `end`, in whole vectors but for the ends. If it is streamed, `head`
// elements come before the first aligned one, and begin is 0 or such that out + begin is aligned.
template <class S, class F>
TG_INLINE void write(S* out, int64_t begin, int64_t end, int64_t head, bool streams, F value) {
    constexpr int64_t w = W<compute<S>>;
    int64_t i = begin;
    if (i < head) {
        int64_t n = least(head, end) - i;
        store_part(out + i, value(i, n), n);
        i += n;
    }
    for (; i + w <= end; i += w) {
        vec<compute<S>> v = value(i, Whole{});
        streams ? stream(out + i, v) : store(out + i, v);
    }
    if (i < end) store_part(out + i, value(i, end - i), end - i);
}

// Large outputs are streamed past the caches: nobody will find them there, and lines need not be read to be written.
constexpr int64_t STREAMED_BYTES = 4 << 20;

// Not so short rows whose ends share cache lines with their neighbours: ordinary stores to these lines, close together,
// hold the streamed ones up.
template <class S> TG_INLINE bool may_stream(const Operand<S>& out, int64_t columns) {
    int64_t bytes = columns * static_cast<int64_t>(sizeof(S));
    return out.given() && !out.staged() && out.aligned() && (bytes % 64 == 0 || bytes >= 2048);
}

constexpr int64_t BLOCK = 256;  // columns

// For each row, job.begin(r), job.collect(r, begin, end) for its blocks and job.end(r); in between, job.write(r - 1, …)
// for the blocks of the row before. Reads and streamed writes are mixed like this, which memory likes best.
//
// `head`: how many elements come before the first aligned one, 0 unless the output is streamed. Blocks that are written
// begin behind the head.
template <class Job> TG_INLINE void pipelined(Job& job, int64_t columns, int64_t first, int64_t last) {
    for (int64_t r = first; r <= last; r++) {
        int64_t head = r > first ? job.head(r - 1) : 0, written = 0;
        if (r < last) job.begin(r);
        for (int64_t begin = 0; begin < columns; begin += BLOCK) {
            int64_t end = least(begin + BLOCK, columns);
            if (r > first) {
                int64_t until = end == columns ? columns : least(end + head, columns);
                job.write(written, until, head);
                written = until;
            }
            if (r < last) job.collect(begin, end);
        }
        if (r < last) job.end(r);
    }
}

// out[i] = value(i) for a short row.
template <class S, class F> TG_INLINE void write_short(S* out, int64_t columns, bool streams, F value) {
    if (streams)
        return write(out, 0, columns, to_aligned(out), true, [&](int64_t i, auto) TG_INLINED { return value(i); });
    for_vectors<compute<S>>(columns, [&](int64_t i, auto part) TG_INLINED { store(out + i, value(i), part); });
}

}  // namespace tilegrad::cpu::TG_ISA
