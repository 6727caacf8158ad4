// Softmax and log-softmax of rows, and their gradients.
#pragma once

#include "exp.h"
#include "lanes.h"

namespace tilegrad::cpu::TG_ISA {

// --- sums ------------------------------------------------------------------------------------------------------------

// A sum in float64, of vectors that are each a short sum in T: as exact for a million columns as for a hundred.
template <class T> struct WideSum {
    vdouble parts;
    TG_INLINED void add(vec<T> v) { parts += v; }
    TG_INLINED void scale(double factor) { parts *= factor; }
    TG_INLINED double total() const { return sum_of<double>(parts); }
    TG_INLINED void put(double* lanes) const { store(lanes, parts); }  // of each lane
};
template <> struct WideSum<float> {
    vdouble low, high;
    TG_INLINED void add(vfloat v) {
        auto halves = halves_of<float>(v);
        low += __builtin_convertvector(halves.low, vdouble);
        high += __builtin_convertvector(halves.high, vdouble);
    }
    TG_INLINED void scale(double factor) {
        low *= factor;
        high *= factor;
    }
    TG_INLINED double total() const { return sum_of<double>(low + high); }
    TG_INLINED void put(double* lanes) const {
        store(lanes, low);
        store(lanes + W<double>, high);
    }
};

// Σ term(i, part) over [0, count), in four independent chains.
template <class T, class F> TG_INLINE vec<T> sum_over(int64_t count, F term) {
    constexpr int64_t w = W<T>;
    vec<T> sums[4] = {};
    int64_t i = 0;
    for (; i + 4 * w <= count; i += 4 * w)
        for (int j = 0; j < 4; j++) sums[j] += term(i + j * w, Whole{});
    for (; i + w <= count; i += w) sums[0] += term(i, Whole{});
    if (i < count) sums[1] += term(i, count - i);
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

template <class S> TG_INLINE vec<compute<S>> load_or_lowest(const S* p, Whole) { return load(p); }
template <class S> TG_INLINE vec<compute<S>> load_or_lowest(const S* p, int64_t n) {
    return load_part<S>(p, n, -infinity<compute<S>>());
}

// Σ exp(x − reference) of a row, and the largest x, a block after the other in one pass. The reference is the largest
// of the first block. It changes only where a later block exceeds it by so much that x − reference would be coarse.
template <class T> struct ExpSum {
    static constexpr T TOLERATED = 4;

    T reference;
    vec<T> peak;
    WideSum<T> sum;
    int64_t alive, mark;  // columns before `alive` have exponentials of 0; those before `mark` will …
    T mark_reference;     // … when the reference is so much larger than this that none is left

    TG_INLINED void begin() {
        peak = splat<T>(-infinity<T>());
        sum = WideSum<T>();
    }

    // What is subtracted from x: a row that begins with −inf has exponentials of 0, not of NaN.
    TG_INLINED T shift() const { return reference == -infinity<T>() ? 0 : reference; }
    TG_INLINED T largest() const { return largest_of<T>(peak); }

    // The block x[0, count) behind the first `before` columns. `beside` is an x that the caller adds himself. KEEP: the
    // exponentials stay in kept, where those of the columns before are.
    template <bool KEEP, class P>
    TG_INLINED void add(const P* x, int64_t before, int64_t count, T beside, T* kept) {
        if (before == 0) {
            vec<T> most[2] = {splat(beside), splat(beside)};
            constexpr int64_t w = W<T>;
            int64_t i = 0;
            for (; i + 2 * w <= count; i += 2 * w)
                for (int j = 0; j < 2; j++) most[j] = larger(most[j], load(x + i + j * w));
            for (; i < count; i += w)
                most[0] = larger(most[0], i + w <= count ? load(x + i) : load_or_lowest(x + i, count - i));
            reference = mark_reference = largest_of<T>(larger(most[0], most[1]));
            alive = mark = 0;
        }
        peak = larger(peak, splat(beside));
        vec<T> block;
        while (block = block_sum<KEEP>(x, count, kept + before), any(peak > splat(reference + TOLERATED))) {
            T factor = exp(reference - largest());
            reference = largest();
            sum.scale(factor);
            if (KEEP) rescale(kept, before, factor);
        }
        sum.add(block);
    }

  private:
    // What has become 0 is left alone: a row that rises all the way takes no time that grows with its square.
    TG_INLINED void rescale(T* kept, int64_t before, T factor) {
        constexpr T none_left = sizeof(T) == 4 ? 110 : 750;
        for (int64_t i = alive; i < before; i += W<T>) store(kept + i, load(kept + i) * factor);
        if (reference - mark_reference > none_left) {
            alive = mark;
            mark = before;
            mark_reference = reference;
        }
    }

    template <bool KEEP, class P> TG_INLINED vec<T> block_sum(const P* x, int64_t count, T* kept) {
        constexpr int64_t w = W<T>;
        vec<T> reference = splat(shift()), sums[4] = {}, peaks[4] = {peak, peak, peak, peak};
        int64_t i = 0;
        for (; i + 4 * w <= count; i += 4 * w)
            for (int j = 0; j < 4; j++) {
                vec<T> v = load(x + i + j * w), e = exp_nonpositive(v - reference);
                peaks[j] = larger(peaks[j], v);
                sums[j] += e;
                if (KEEP) store(kept + i + j * w, e);
            }
        for (; i < count; i += w) {
            bool whole = i + w <= count;
            vec<T> v = whole ? load(x + i) : load_or_lowest(x + i, count - i), e = exp_nonpositive(v - reference);
            peaks[0] = larger(peaks[0], v);
            sums[0] += e;
            if (KEEP) store(kept + i, e);
        }
        peak = larger(larger(peaks[0], peaks[1]), larger(peaks[2], peaks[3]));
        return (sums[0] + sums[1]) + (sums[2] + sums[3]);
    }
};

// --- forward ---------------------------------------------------------------------------------------------------------

// Rows of which so much stays in the second-level cache keep their exponentials; those of longer ones are made again.
template <class T> constexpr int64_t MOST_KEPT = (256 << 10) / sizeof(T);  // columns

static thread_local Scratch kept_exponentials;

template <class T> static T* exponentials(int64_t columns) {
    return (T*)kept_exponentials.reserve((columns + W<T>) * sizeof(T));
}

template <class S, bool LOG, bool KEEP> struct SoftmaxForward {
    using T = compute<S>;
    const Operand<S>& x;
    const Operand<S>& out;
    bool streams;
    T* kept;

    const S* summed = nullptr;  // the row whose exponentials are summed
    ExpSum<T> sum = {};
    const S* done = nullptr;    // the row before it, which is written
    S* written = nullptr;
    T shift = 0, log_total = 0, scale = 0;

    int64_t head(int64_t r) { return streams ? to_aligned(out.row(r)) : 0; }

    TG_INLINED void begin(int64_t r) {
        summed = x.row(r);
        sum.begin();
    }

    TG_INLINED void collect(int64_t begin, int64_t end) {
        ask_ahead(summed, begin, end);
        sum.template add<KEEP>(summed + begin, begin, end - begin, -infinity<T>(), kept);
    }

    TG_INLINED void end(int64_t r) {
        double total = sum.sum.total();
        done = summed;
        written = out.row(r);
        shift = sum.shift();
        if (LOG) log_total = static_cast<T>(log(total));
        scale = static_cast<T>(1 / total);
    }

    TG_INLINED void write(int64_t begin, int64_t end, int64_t head) {
        TG_ISA::write(written, begin, end, head, streams, [this](int64_t i, auto part) TG_INLINED {
            if (KEEP) return load(kept + i, part) * scale;
            vec<T> z = load(done + i, part) - shift;
            return LOG ? z - log_total : exp_nonpositive(z) * scale;
        });
    }
};

// Rows of a few vectors, as many at a time as a vector has elements: so their logarithms are taken together.
template <class T> constexpr int64_t SHORT = W<T> < 8 ? 4 * W<T> : 256;  // columns; few vectors, for exact sums

template <class S, bool LOG>
static void softmax_of_short(
    const Operand<S>& x, const Operand<S>& out, int64_t columns, bool streams, int64_t first, int64_t last) {
    using T = compute<S>;
    int64_t together = least(W<T>, 4 * SHORT<T> / (columns + 1) + 1);  // so that their stores are no burst
    for (int64_t from = first; from < last; from += together) {
        int64_t count = least(together, last - from);
        alignas(64) T rows[W<T>][SHORT<T> + W<T>];
        alignas(64) T totals[W<T>] = {};
        for (int64_t r = 0; r < count; r++) {
            const S* in = x.row(from + r);
            vec<T> peak = splat(-infinity<T>()), sum = {};
            for_vectors<T>(columns, [&](int64_t i, auto part) TG_INLINED {
                vec<T> v = load_or_lowest(in + i, part);
                peak = larger(peak, v);
                store(rows[r] + i, v);
            });
            vec<T> largest = splat(largest_of<T>(peak));
            for (int64_t i = 0; i < columns; i += W<T>) {
                vec<T> z = load(rows[r] + i) - largest, e = exp_nonpositive(z);
                store(rows[r] + i, LOG ? z : e);
                sum += e;
            }
            totals[r] = sum_of<T>(sum);
        }
        vec<T> all = load(totals);
        store(totals, LOG ? log(all) : 1 / all);
        for (int64_t r = 0; r < count; r++) {
            vec<T> total = splat(totals[r]);
            write_short(out.row(from + r), columns, streams, [&](int64_t i) TG_INLINED {
                vec<T> v = load(rows[r] + i);
                return LOG ? v - total : v * total;
            });
        }
    }
}

// Rows of so few columns that they lie in lanes.
template <class S, bool LOG>
static void softmax_of_few(const Operand<S>& x, const Operand<S>& out, int64_t columns, int64_t first, int64_t last) {
    using T = compute<S>;
    for_vectors<T>(last - first, [&](int64_t i, auto part) {
        Turned<T> rows;
        read_turned(x, columns, first + i, part, rows);
        vec<T> largest = splat(-infinity<T>()), even = {}, odd = {};
        for (int64_t c = 0; c < columns; c++) largest = larger(rows[c], largest);
        auto taken = [&](int64_t c) TG_INLINED {
            vec<T> z = rows[c] - largest, e = exp_nonpositive(z);
            rows.put(c, LOG ? z : e);
            return e;
        };
        for (int64_t c = 0; c + 1 < columns; c += 2) {
            even += taken(c);
            odd += taken(c + 1);
        }
        if (columns % 2) even += taken(columns - 1);
        vec<T> total = LOG ? log(even + odd) : 1 / (even + odd);
        for (int64_t c = 0; c < columns; c++) rows.put(c, LOG ? rows[c] - total : rows[c] * total);
        write_turned(rows, out, columns, first + i, part);
    });
}

template <class S> static bool is_large(const Softmax& call) {
    return call.rows.count * call.columns * static_cast<int64_t>(sizeof(S)) >= STREAMED_BYTES;
}

template <class S> static bool streams(const Softmax& call, const Operand<S>& out) {
    return is_large<S>(call) && may_stream(out, call.columns);
}

template <class S, bool LOG> static void softmax_as(const Softmax& call, int64_t first, int64_t last) {
    using T = compute<S>;
    Operand<S> x{Use::read, call.rows, call.x, call.in_dtype, call.columns};
    Operand<S> out{Use::write, call.rows, call.out, call.out_dtype, call.columns};
    Operand<S>* operands[] = {&x, &out};
    bool streams = TG_ISA::streams(call, out), keep = !LOG && call.columns <= MOST_KEPT<T>;
    // Half as short where the stores go to memory, but not as a stream: they should not come in bursts.
    bool is_short = call.columns <= (is_large<S>(call) && !streams ? SHORT<T> / 2 : SHORT<T>);
    T* kept = keep ? exponentials<T>(call.columns) : nullptr;
    over_rows(operands, call.columns, first, last, [&](int64_t first, int64_t last) {
        if (call.columns <= FEW<T> && !streams) return softmax_of_few<S, LOG>(x, out, call.columns, first, last);
        if (is_short) return softmax_of_short<S, LOG>(x, out, call.columns, streams, first, last);
        if constexpr (!LOG) {
            SoftmaxForward<S, LOG, true> job{x, out, streams, kept};
            if (keep) return pipelined(job, call.columns, first, last);
        }
        SoftmaxForward<S, LOG, false> job{x, out, streams, nullptr};
        pipelined(job, call.columns, first, last);
    });
    if (streams) streamed();
}

// --- backward --------------------------------------------------------------------------------------------------------

template <class S, bool LOG> struct SoftmaxBackward {
    using T = compute<S>;
    const Operand<S>& grad;
    const Operand<S>& y;
    const Operand<S>& out;
    bool streams;

    const S* g = nullptr;  // the row that is summed
    const S* p = nullptr;
    WideSum<T> sum = WideSum<T>();
    const S* done_g = nullptr;  // the row that is written
    const S* done_p = nullptr;
    S* written = nullptr;
    T total = 0;

    int64_t head(int64_t r) { return streams ? to_aligned(out.row(r)) : 0; }

    TG_INLINED void begin(int64_t r) {
        g = grad.row(r);
        p = y.row(r);
        sum = WideSum<T>();
    }

    TG_INLINED void collect(int64_t begin, int64_t end) {
        ask_ahead(g, begin, end);
        ask_ahead(p, begin, end);
        sum.add(sum_over<T>(end - begin, [&](int64_t i, auto part) TG_INLINED {
            vec<T> v = load(g + begin + i, part);
            return LOG ? v : v * load(p + begin + i, part);
        }));
    }

    TG_INLINED void end(int64_t r) {
        done_g = g;
        done_p = p;
        written = out.row(r);
        total = static_cast<T>(sum.total());
    }

    TG_INLINED void write(int64_t begin, int64_t end, int64_t head) {
        TG_ISA::write(written, begin, end, head, streams, [this](int64_t i, auto part) TG_INLINED {
            vec<T> v = load(done_g + i, part), probability = load(done_p + i, part);
            return LOG ? v - exp_nonpositive(probability) * total : probability * (v - total);
        });
    }
};

template <class S, bool LOG> static void softmax_backward_as(const Softmax& call, int64_t first, int64_t last) {
    Operand<S> grad{Use::read, call.rows, call.x, call.in_dtype, call.columns};
    Operand<S> y{Use::read, call.rows, call.y, call.in_dtype, call.columns};
    Operand<S> out{Use::write, call.rows, call.out, call.out_dtype, call.columns};
    Operand<S>* operands[] = {&grad, &y, &out};
    bool streams = TG_ISA::streams(call, out);
    over_rows(operands, call.columns, first, last, [&](int64_t first, int64_t last) {
        SoftmaxBackward<S, LOG> job{grad, y, out, streams};
        pipelined(job, call.columns, first, last);
    });
    if (streams) streamed();
}

// --- by dtype --------------------------------------------------------------------------------------------------------

// Call f with a null pointer of what the rows are staged as: their own type, if input and output share it.
template <class F> TG_INLINE void of_dtypes(DType in, DType out, F f) {
    if (in == out) return of_dtype(in, f);
    bool wide = in == DType::float64 || out == DType::float64;
    wide ? f((double*)nullptr) : f((float*)nullptr);
}

static void softmax(const Softmax& call, int64_t first, int64_t last) {
    of_dtypes(call.in_dtype, call.out_dtype, [&](auto* stored) {
        using S = pointee<decltype(stored)>;
        call.log ? softmax_as<S, true>(call, first, last) : softmax_as<S, false>(call, first, last);
    });
}

static void softmax_backward(const Softmax& call, int64_t first, int64_t last) {
    of_dtypes(call.in_dtype, call.out_dtype, [&](auto* stored) {
        using S = pointee<decltype(stored)>;
        call.log ? softmax_backward_as<S, true>(call, first, last) : softmax_backward_as<S, false>(call, first, last);
    });
}

}  // namespace tilegrad::cpu::TG_ISA
