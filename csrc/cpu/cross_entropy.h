// Cross-entropy of rows of logits: the loss, and in the same pass its gradient; or the gradient alone, from the
// logsumexp.
//
// A row's loss is −Σ q·log p + λ·lse². For class indices q is w·(1 − smoothing) at the target plus w·smoothing/C
// everywhere; for class probabilities t it is w·((1 − smoothing)·t + smoothing/C).
#pragma once

#include "softmax.h"

namespace tilegrad::cpu::TG_ISA {

template <class T> TG_INLINE vec<T> only(vec<T> v, Whole) { return v; }
template <class T> TG_INLINE vec<T> only(vec<T> v, int64_t n) {  // the first n; 0 for the rest
    return lanes_below<T>(n) ? v : vec<T>{};
}

constexpr int64_t NOWHERE = -1;

// The first element that `found` holds for.
template <class S, class F> TG_INLINE int64_t first_where(const S* x, int64_t count, F found) {
    constexpr int64_t w = W<compute<S>>;
    for (int64_t i = 0; i < count; i += w) {
        int64_t n = least(w, count - i);
        auto holds = found(n == w ? load(x + i) : load_or_lowest(x + i, n));
        if (!any(holds)) continue;
        for (int64_t j = 0; j < n; j++)
            if (holds[j]) return i + j;
    }
    return NOWHERE;
}

enum class Mode {
    kept,     // the exponentials are kept from the sum to the gradient
    remade,   // they are made again
    general,  // and there may be a soft-cap, and q beside the target
};

// The rows of one call, as a job of `pipelined`.
template <class S, Mode MODE> struct CrossEntropyRows {
    using T = compute<S>;
    const CrossEntropy& call;
    const Operand<S>& logits;
    const Operand<S>& probabilities;
    const Operand<S>& grad;
    const Operand<S>& grad_target;
    bool backward;
    T* kept;

    bool streams = call.stream && may_stream(grad, call.classes);
    bool summed_before = backward && call.top.data && call.log_sum.data;  // the forward has kept the logsumexp
    bool has_loss = !backward;
    bool capped = call.softcap != 0;
    bool spread = call.label_smoothing != 0 || probabilities.given();  // q is not 0 beside the target
    double smooth = 1 - call.label_smoothing, each = call.label_smoothing / call.classes;
    double spread_of_indices = spread && !probabilities.given() ? each * sum_of_weights() : 0;
    T cap = static_cast<T>(call.softcap), uncap = static_cast<T>(1 / call.softcap);

    // What is known of the row that is being summed.
    const S* x = nullptr;
    const S* q_row = nullptr;
    int64_t target = NOWHERE;
    bool ignored = false, idle = false;
    T target_logit = 0, origin = 0;
    ExpSum<T> sum = {};  // without the target
    WideSum<T> q_sum = WideSum<T>(), q_logits = WideSum<T>();  // Σ q and Σ q·(z − origin), of the q beside the target

    // What the row before it is written from.
    struct Done {
        const S* x;
        const S* q_row;
        S* grad;
        S* grad_target;
        int64_t target;
        bool ignored;
        T shift, log_total, factor, at_target;
        T scale, z_scale;  // of exp(z − shift); in the general mode without the factor, and the z-loss's apart
    } done = {};

    double sum_of_weights() const {
        if (!call.weight) return static_cast<double>(call.classes);
        double total = 0;
        for (int64_t c = 0; c < call.classes; c++) total += weight_of(c);
        return total;
    }
    double weight_of(int64_t c) const { return call.weight ? load_one<S>(call.weight + c * sizeof(S)) : 1; }

    TG_INLINED vec<T> squashed(vec<T> logit) const { return tanh(logit * uncap); }
    TG_INLINED vec<T> seen(vec<T> logit) const {
        if constexpr (MODE == Mode::general) return capped ? squashed(logit) * cap : logit;
        return logit;
    }

    // q beside the target; 0 behind the end of the row, which `part` tells.
    template <class Part> TG_INLINED vec<T> spread_at(const S* q_row, int64_t i, Part part) const {
        vec<T> q = splat(static_cast<T>(each));
        if (q_row) q += static_cast<T>(smooth) * load(q_row + i, part);
        return only<T>(call.weight ? q * load((const S*)call.weight + i, part) : q, part);
    }

    // --- the sum -----------------------------------------------------------------------------------------------------

    // The row and its target.
    TG_INLINED void find(int64_t r) {
        x = logits.row(r);
        q_row = probabilities.given() ? probabilities.row(r) : nullptr;
        target = NOWHERE;
        ignored = false;
        if (!probabilities.given()) {
            target = index_at(call.indices.data + offset(call.rows, call.indices, r), call.index_dtype);
            ignored = target == call.ignore_index;
            if (ignored) target = NOWHERE;
        }
    }

    TG_INLINED void begin(int64_t r) {
        find(r);
        idle = ignored && !(has_loss && (call.top.data || call.log_sum.data || call.argmax.data));
        if (summed_before && target != NOWHERE) __builtin_prefetch(x + target);  // not read before `end`
        sum.begin();
        q_sum = q_logits = WideSum<T>();
    }

    TG_INLINED void read_target() { target_logit = seen(splat(load_one<S>((const char*)(x + target))))[0]; }

    TG_INLINED void collect(int64_t begin, int64_t end) {
        if (idle) return;
        if (!summed_before) collect_exponentials(begin, end);
        if constexpr (MODE == Mode::general)
            if (spread && !ignored && (q_row || has_loss)) collect_spread(begin, end);
    }

    TG_INLINED void collect_exponentials(int64_t begin, int64_t end) {
        constexpr bool KEEP = MODE == Mode::kept;
        ask_ahead(x, begin, end);
        bool here = begin <= target && target < end;
        if (here) read_target();
        alignas(64) T block[BLOCK];
        const T* z = block;
        if (same<S, T> && !here && !(MODE == Mode::general && capped)) {
            z = (const T*)(x + begin);
        } else {
            for_vectors<T>(end - begin, [&](int64_t i, auto part) TG_INLINED {
                vec<T> v = seen(load(x + begin + i, part));
                store(block + i, lane_is<T>(target - begin - i) ? splat(-infinity<T>()) : v);
            });
        }
        sum.template add<KEEP>(z, begin, end - begin, here ? target_logit : -infinity<T>(), kept);
    }

    TG_INLINED void collect_spread(int64_t begin, int64_t end) {
        if (begin == 0) origin = summed_before ? 0 : sum.shift();
        q_sum.add(sum_over<T>(end - begin, [&](int64_t i, auto part) TG_INLINED {
            return spread_at(q_row, begin + i, part);
        }));
        if (!has_loss) return;
        q_logits.add(sum_over<T>(end - begin, [&](int64_t i, auto part) TG_INLINED {
            vec<T> q = spread_at(q_row, begin + i, part), z = seen(load(x + begin + i, part));
            return q == 0 ? vec<T>{} : q * (z - origin);  // a class that does not count may have p = 0
        }));
    }

    // --- the row as a whole ------------------------------------------------------------------------------------------

    TG_INLINED void end(int64_t r) {
        done.x = x;
        done.q_row = q_row;
        done.grad = grad.given() ? grad.row(r) : nullptr;
        done.grad_target = grad_target.given() ? grad_target.row(r) : nullptr;
        done.target = target;
        done.ignored = ignored;
        double shift, log_total, by_total = 1;
        double chance = 0, miss = 1, surprise = 0;  // p of the target, 1 − p, −log p
        if (summed_before) {
            shift = read<T>(call.top, r);
            log_total = read<T>(call.log_sum, r);
            by_total = exp(-log_total);
            if (target != NOWHERE) {
                read_target();
                double log_chance = (target_logit - shift) - log_total;
                chance = __builtin_exp(log_chance);
                miss = -__builtin_expm1(log_chance);
            }
        } else {
            // The others' sum apart from the target's: nothing is lost where one of the two is tiny.
            double others = idle ? 1 : sum.sum.total(), own = 0, total;
            shift = idle ? 0 : sum.shift();
            if (target != NOWHERE) own = exp_nonpositive(splat(target_logit - sum.shift()))[0];
            total = others + own;
            log_total = total > 0 ? log(total) : nan<double>();  // 0: nothing but −inf
            by_total = 1 / total;
            chance = own * by_total;
            miss = others * by_total;
            if (target != NOWHERE)
                surprise = chance > 0.5 ? __builtin_log1p(others / own) : log_total - (target_logit - shift);
        }
        double lse = shift + log_total;
        if (has_loss) report(r, shift, log_total, lse, surprise);
        if (!done.grad && !done.grad_target) return;

        double upstream = call.upstream.data ? read<S>(call.upstream, r) : 1;
        double factor = upstream / call.by_share;
        double own = target == NOWHERE ? 0 : (smooth + (spread ? each : 0)) * weight_of(target);
        double beside = 0, of_z = 0;  // Σ q without the target's; the z-loss's part of the factor of p
        if (spread) beside = q_row ? q_sum.total() : spread_of_indices - each * weight_at_target();
        if (call.z_loss != 0) of_z = upstream / call.by_count * (2 * call.z_loss) * lse;
        double at_target = chance * (factor * beside + of_z) - factor * own * miss;
        if (capped && target != NOWHERE) {
            double t = target_logit / call.softcap;
            at_target *= 1 - t * t;
        }
        done.shift = static_cast<T>(shift);
        done.log_total = static_cast<T>(log_total);
        if constexpr (MODE == Mode::general) {  // p·Σq − q before the factor: exactly 0 where p is 1 and q all there is
            done.scale = static_cast<T>((own + beside) * by_total);
            done.z_scale = static_cast<T>(of_z * by_total);
        } else {
            done.scale = static_cast<T>((factor * (own + beside) + of_z) * by_total);
        }
        done.factor = static_cast<T>(factor);
        done.at_target = static_cast<T>(at_target);
    }

    double weight_at_target() const { return target == NOWHERE ? 0 : weight_of(target); }
    template <class U> double read(const Lines& lines, int64_t r) const {
        return load_one<U>(lines.data + offset(call.rows, lines, r));
    }
    template <class U> void put(const Lines& lines, int64_t r, compute<U> value) const {
        if (lines.data) store_one<U>(lines.data + offset(call.rows, lines, r), value);
    }

    // What the forward is asked for, of one row.
    void report(int64_t r, double shift, double log_total, double lse, double surprise) const {
        double cross = 0, square = 0;
        if (!ignored) {
            double q = target == NOWHERE ? 0 : smooth * weight_of(target);
            if (q != 0) cross = q * surprise;
            double beside = q_row ? q_sum.total() : spread_of_indices;
            // Without a logsumexp there is no loss, even if no class counts: 0 of a NaN is one.
            cross += beside * (log_total + (shift - origin)) - q_logits.total();
            if (call.z_loss != 0) square = call.z_loss * lse * lse;
        }
        if (call.cross) call.cross[r] = cross;
        if (call.square) call.square[r] = square;
        put<S>(call.loss, r, static_cast<T>(cross + square));
        if (!idle && wants_log_sum()) report_log_sum(r, x, sum.largest(), shift, log_total);
    }

    bool wants_log_sum() const { return call.top.data || call.log_sum.data || call.argmax.data; }

    void report_log_sum(int64_t r, const S* x, T largest, double shift, double log_total) const {
        double lse = shift + log_total;
        int64_t nan_at = lse == lse ? NOWHERE : first_where(x, call.classes, [](vec<T> v) { return v != v; });
        if (nan_at != NOWHERE) largest = nan<T>();
        put<T>(call.top, r, largest);
        put<T>(call.log_sum, r, static_cast<T>(log_total + (shift - largest)));
        if (!call.argmax.data) return;
        int64_t at = nan_at;
        if (at == NOWHERE)
            at = first_where(x, call.classes, [&](vec<T> v) TG_INLINED { return seen(v) == splat(largest); });
        memcpy(call.argmax.data + offset(call.rows, call.argmax, r), &at, sizeof at);
    }

    // --- the gradients -----------------------------------------------------------------------------------------------

    int64_t head(int64_t r) const { return streams ? to_aligned(grad.row(r)) : 0; }

    TG_INLINED void write(int64_t begin, int64_t end, int64_t head) const {
        if (done.grad_target) write_grad_target(begin, end);
        if (!done.grad) return;
        if (done.ignored) {
            TG_ISA::write(done.grad, begin, end, head, streams, [](int64_t, auto) TG_INLINED { return vec<T>{}; });
            return;
        }
        auto gradient = [this, x = done.x, kept = kept, shift = splat(done.shift),
                         scale = splat(done.scale)](int64_t i, auto part) TG_INLINED {
            if constexpr (MODE == Mode::kept) return load(kept + i, part) * scale;
            static_cast<void>(kept);  // in the other modes
            vec<T> z = load(x + i, part), tanh = {};
            if constexpr (MODE == Mode::remade) return exp_nonpositive(z - shift) * scale;
            if (capped) {
                tanh = squashed(z);
                z = tanh * cap;
            }
            vec<T> e = exp_nonpositive(z - shift), d = e * scale;
            if (spread) d -= spread_at(done.q_row, i, part);
            d *= done.factor;
            if (call.z_loss != 0) d += e * done.z_scale;
            return d * (1 - tanh * tanh);
        };
        if (begin <= done.target && done.target < end) {
            // Put in before the store: what is streamed must not be touched again.
            TG_ISA::write(done.grad, begin, end, head, streams, [&](int64_t i, auto part) TG_INLINED {
                return lane_is<T>(done.target - i) ? splat(done.at_target) : gradient(i, part);
            });
        } else {
            TG_ISA::write(done.grad, begin, end, head, streams, gradient);
        }
    }

    void write_grad_target(int64_t begin, int64_t end) const {
        T factor = static_cast<T>(-smooth) * done.factor;
        TG_ISA::write(done.grad_target, begin, end, 0, false, [&](int64_t i, auto part) TG_INLINED {
            vec<T> d = factor * (seen(load(done.x + i, part)) - done.shift - done.log_total);
            return call.weight ? d * load((const S*)call.weight + i, part) : d;
        });
    }
};

}  // namespace tilegrad::cpu::TG_ISA
