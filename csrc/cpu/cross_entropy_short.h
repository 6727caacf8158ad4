// Cross-entropy of rows of a few vectors: of class indices, without soft-cap or smoothing. And which code takes which call.
#pragma once

#include "cross_entropy.h"
#include "lanes.h"

namespace tilegrad::cpu::TG_ISA {

// log(1 + x) for x ≥ 0, of full relative precision where x is tiny; `inverse` is about 1/(1 + x).
TG_INLINE vdouble log1p_nonnegative(vdouble x, vdouble inverse) {
    vdouble sum = 1 + x, lost = x - (sum - 1);
    return log(sum) + lost * inverse;
}

// Such rows without blocks, and several at a time: so their logarithms are taken together, and all that follows.
template <class S, Mode MODE> struct ShortRows {
    using T = compute<S>;
    CrossEntropyRows<S, MODE>& row;
    const CrossEntropy& call = row.call;

    void all(int64_t first, int64_t last) {
        if (call.classes <= FEW<T> && !row.streams)
            for_vectors<T>(last - first, [&](int64_t i, auto part) { in_lanes(first + i, part); });
        else
            for (int64_t r = first; r < last; r += W<double>) in_vectors(r, least(W<double>, last - r));
    }

    // What is known of so many rows.
    template <int64_t ROWS> struct Known {
        alignas(64) double shift[ROWS], target_logit[ROWS], others[ROWS], own[ROWS];
        alignas(64) double weight[ROWS], factor[ROWS];  // of the target, 0 if the row is ignored; the upstream gradient's
        alignas(64) T scale[ROWS], at_target[ROWS], largest[ROWS];
        alignas(64) typename Of<T>::bits target[ROWS];  // NOWHERE if the row is ignored
    };
    double per_share = 1 / call.by_share;

    template <int64_t ROWS> TG_INLINED void find(Known<ROWS>& known, int64_t first, int64_t count) const {
        int64_t at = 0;
        for_indices(call.rows, call.indices, call.index_dtype, first, first + count, [&](int64_t index) TG_INLINED {
            bool ignored = index == call.ignore_index;
            known.target[at] = ignored ? NOWHERE : index;
            known.weight[at++] = ignored ? 0 : 1;
        });
        for (int64_t i = 0; i < count && call.weight; i++)
            if (known.target[i] != NOWHERE) known.weight[i] = row.weight_of(known.target[i]);
        for (int64_t i = 0; i < count; i++)
            known.factor[i] = call.upstream.data ? row.template read<S>(call.upstream, first + i) : 1;
    }

    // The gradient of a column of rows, or of some columns of a row, from exp(z − shift).
    TG_INLINED static vec<T> gradient(vec<T> exp, typename Of<T>::mask is_target, vec<T> scale, vec<T> at_target) {
        return is_target ? at_target : exp * scale;
    }

    // --- a row in a lane ---------------------------------------------------------------------------------------------

    template <class Part> TG_INLINED void in_lanes(int64_t r, Part part) {
        Known<W<T>> known = {};
        find(known, r, rows_of<T>(part));
        auto target = *(const typename Of<T>::mask*)known.target;
        Turned<T> rows;
        read_turned(row.logits, call.classes, r, part, rows);
        vec<T> largest = splat(-infinity<T>()), own = {};
        for (int64_t c = 0; c < call.classes; c++) largest = larger(rows[c], largest);
        vec<T> shift = largest == -infinity<T>() ? vec<T>{} : largest, target_logit = shift;
        WideSum<T> others = WideSum<T>();
        for (int64_t c = 0; c < call.classes; c++) {
            vec<T> z = rows[c], e = exp_nonpositive(z - shift);
            auto is_target = target == static_cast<typename Of<T>::bits>(c);
            target_logit = is_target ? z : target_logit;
            own = is_target ? e : own;
            others.add(is_target ? vec<T>{} : e);
            rows.put(c, e);
        }
        store(known.largest, largest);
        widen(known.shift, shift);
        widen(known.target_logit, target_logit);
        widen(known.own, own);
        others.put(known.others);
        for (int64_t i = 0; i < rows_of<T>(part); i += W<double>) conclude(known, i, r + i, least(W<double>, rows_of<T>(part) - i));
        if (!row.grad.given()) return;
        vec<T> scale = load(known.scale), at_target = load(known.at_target);
        for (int64_t c = 0; c < call.classes; c++) {
            vec<T> d = gradient(rows[c], target == static_cast<typename Of<T>::bits>(c), scale, at_target);
            rows.put(c, target != NOWHERE ? d : vec<T>{});
        }
        write_turned(rows, row.grad, call.classes, r, part);
    }

    TG_INLINED static void widen(double* to, vfloat v) {
        auto halves = halves_of<float>(v);
        store(to, __builtin_convertvector(halves.low, vdouble));
        store(to + W<double>, __builtin_convertvector(halves.high, vdouble));
    }
    TG_INLINED static void widen(double* to, vdouble v) { store(to, v); }
    TG_INLINED static void narrow(float* to, vdouble v) {
        auto narrow = __builtin_convertvector(v, Halves<float>::half);
        memcpy(to, &narrow, sizeof narrow);
    }
    TG_INLINED static void narrow(double* to, vdouble v) { store(to, v); }

    // --- a row in a few vectors --------------------------------------------------------------------------------------

    TG_INLINED void in_vectors(int64_t r, int64_t count) {
        Known<W<double>> known;
        if (count < W<double>) memset(&known, 0, sizeof known);
        alignas(64) T kept[W<double>][SHORT<T> + W<T>];
        find(known, r, count);
        for (int64_t i = 0; i < count; i++) sum(known, i, row.logits.row(r + i), kept[i]);
        conclude(known, 0, r, count);
        if (!row.grad.given()) return;
        for (int64_t i = 0; i < count; i++) {
            bool counts = known.target[i] != NOWHERE;
            vec<T> scale = splat(known.scale[i]), at_target = splat(known.at_target[i]);
            write_short(row.grad.row(r + i), call.classes, row.streams, [&](int64_t c) TG_INLINED {
                vec<T> d = gradient(load(kept[i] + c), lane_is<T>(known.target[i] - c), scale, at_target);
                return counts ? d : vec<T>{};
            });
        }
    }

    TG_INLINED void sum(Known<W<double>>& known, int64_t at, const S* x, T* kept) const {
        int64_t target = known.target[at];
        vec<T> peak = splat<T>(-infinity<T>()), others = {};
        for_vectors<T>(call.classes, [&](int64_t i, auto part) TG_INLINED {
            vec<T> v = load_or_lowest(x + i, part);
            peak = larger(peak, v);
            store(kept + i, v);
        });
        T largest = largest_of<T>(peak), shift = largest == -infinity<T>() ? 0 : largest;
        for (int64_t i = 0; i < call.classes; i += W<T>) {
            vec<T> e = exp_nonpositive(load(kept + i) - shift);
            store(kept + i, e);
            others += lane_is<T>(target - i) ? vec<T>{} : e;
        }
        WideSum<T> sum = WideSum<T>();
        sum.add(others);
        known.largest[at] = largest;
        known.shift[at] = shift;
        known.target_logit[at] = target != NOWHERE ? load_one<S>((const char*)(x + target)) : shift;
        known.others[at] = sum.total();
        known.own[at] = target != NOWHERE ? kept[target] : 0;
    }

    // --- rows as a whole ---------------------------------------------------------------------------------------------

    // `end` of the rows from place `at` on, as many as a vector has doubles. The shift is the largest logit, whose
    // exponential is 1.
    template <int64_t ROWS> TG_INLINED void conclude(Known<ROWS>& known, int64_t at, int64_t r, int64_t count) const {
        vdouble others = load(known.others + at), own = load(known.own + at), shift = load(known.shift + at);
        vdouble total = others + own, by_total = 1 / total, weight = load(known.weight + at), lse = {};
        if (row.has_loss || call.z_loss != 0) {
            vdouble log_total = log1p_nonnegative(own == 1 ? others : (others - 1) + own, by_total);
            log_total = total > 0 ? log_total : splat(nan<double>());  // 0: nothing but −inf
            lse = shift + log_total;
            if (row.has_loss) report(known, at, r, count, log_total);
        }
        vdouble upstream = load(known.factor + at), q = upstream * per_share * weight, of_z = {};
        if (call.z_loss != 0) of_z = upstream / call.by_count * (2 * call.z_loss) * lse;
        narrow(known.scale + at, (q + of_z) * by_total);
        narrow(known.at_target + at, own * by_total * of_z - q * (others * by_total));
    }

    template <int64_t ROWS>
    TG_INLINED void report(const Known<ROWS>& known, int64_t at, int64_t r, int64_t count, vdouble log_total) const {
        vdouble shift = load(known.shift + at), weight = load(known.weight + at), lse = shift + log_total, counts = {};
        for (int i = 0; i < W<double>; i++) counts[i] = known.target[at + i] != NOWHERE;
        vdouble surprise = log_total - (load(known.target_logit + at) - shift);
        // Without a logsumexp there is no loss, even if the target has no weight: 0 of a NaN is one.
        vdouble cross = weight != 0 ? weight * surprise : counts != 0 ? 0 * log_total : vdouble{};
        vdouble square = {};
        if (call.z_loss != 0) square = counts != 0 ? call.z_loss * lse * lse : square;
        if (call.cross) store_part(call.cross + r, cross, count);
        if (call.square) store_part(call.square + r, square, count);
        for (int64_t i = 0; i < count && (call.loss.data || row.wants_log_sum()); i++) {
            row.template put<S>(call.loss, r + i, static_cast<T>(cross[i] + square[i]));
            if (row.wants_log_sum())
                row.report_log_sum(r + i, row.logits.row(r + i), known.largest[at + i], shift[i], log_total[i]);
        }
    }
};

// --- by dtype and options --------------------------------------------------------------------------------------------

template <class S, Mode MODE>
static void cross_entropy_as(const CrossEntropy& call, bool backward, int64_t first, int64_t last) {
    using T = compute<S>;
    Operand<S> logits{Use::read, call.rows, call.logits, call.dtype, call.classes};
    Operand<S> probabilities{Use::read, call.rows, call.probabilities, call.dtype, call.classes};
    Operand<S> grad{Use::write, call.rows, call.grad, call.dtype, call.classes};
    Operand<S> grad_target{Use::write, call.rows, call.grad_target, call.dtype, call.classes};
    Operand<S>* operands[] = {&logits, &probabilities, &grad, &grad_target};
    T* kept = MODE == Mode::kept ? exponentials<T>(call.classes) : nullptr;
    CrossEntropyRows<S, MODE> job{call, logits, probabilities, grad, grad_target, backward, kept};
    over_rows(operands, call.classes, first, last, [&](int64_t first, int64_t last) {
        if (MODE == Mode::kept && call.classes <= SHORT<T>) return ShortRows<S, MODE>{job}.all(first, last);
        pipelined(job, call.classes, first, last);
    });
    if (job.streams) streamed();
}

static void cross_entropy_of(const CrossEntropy& call, bool backward, int64_t first, int64_t last) {
    bool general = call.probabilities.data || call.label_smoothing != 0 || call.softcap != 0;
    bool summed_before = backward && call.top.data && call.log_sum.data;
    of_dtype(call.dtype, [&](auto* stored) {
        using S = pointee<decltype(stored)>;
        using T = compute<S>;
        bool keep = !summed_before && call.grad.data && call.classes <= MOST_KEPT<T>;
        keep = keep || call.classes <= SHORT<T>;  // to sum a short row again is cheaper than to read its logsumexp
        auto rows = general ? cross_entropy_as<S, Mode::general>
                    : keep  ? cross_entropy_as<S, Mode::kept>
                            : cross_entropy_as<S, Mode::remade>;
        rows(call, backward, first, last);
    });
}

static void cross_entropy(const CrossEntropy& call, int64_t first, int64_t last) {
    cross_entropy_of(call, false, first, last);
}

static void cross_entropy_backward(const CrossEntropy& call, int64_t first, int64_t last) {
    cross_entropy_of(call, true, first, last);
}

}  // namespace tilegrad::cpu::TG_ISA
