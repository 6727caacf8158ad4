// Cross-entropy of rows of logits: the loss, and in the same pass its gradient; or the gradient alone, from the
// logsumexp.
//
//     t      what the target gives a class: 1 or 0, or its probability
//     q      how much −log p of each class counts: w·((1 − ε)·t + ε/C), smoothed as in Szegedy et al. 2016, section 7
//     m, s   the row's maximum, and the log of Σ exp(z − m); m + s is the logsumexp, and kept apart they lose nothing
//     loss   Σq·s − Σ q·(z − m) + λ·(m + s)²
//     dz     f·(p·Σq − q) + f_z·2λ·(m + s)·p,  p being exp(z − m − s), f and f_z the upstream gradient of the two terms
//
// The few numbers of a row's loss are float64. Where w·t is 0 a class takes no part: 0·(−inf) must not make a NaN of a
// row whose −inf logits are of classes without weight.
#pragma once

#include "finish.cuh"
#include "softmax.cuh"
#include "targets.cuh"

namespace tilegrad::cuda {

struct CrossEntropyCall {
    cpu::Rows rows;
    int classes;
    cpu::Lines logits;
    DType dtype;
    Indices indices;           // the targets: one class for each row …
    cpu::Lines probabilities;  // … or one number for each class
    DType target_dtype;
    double label_smoothing, z_loss, softcap;  // softcap 0: none

    // What Σ q·log p and λ·lse² are divided by, and Σ w of all classes. What has to be counted first is in the memory
    // of the device, and null where the numbers here hold.
    double by_share, by_count, of_weights;
    const double* counted_rows;     // by_share, by_count
    const double* counted_weights;  // of_weights

    // Forward: the rows' losses, or their sum over all blocks, as a number of `loss_dtype`.
    cpu::Lines loss;
    char* total;
    Gathering gathering;
    DType loss_dtype;
    cpu::Lines top, log_sum;  // of Compute<logits>; backward: read
    cpu::Lines argmax;        // int64

    cpu::Lines upstream;  // backward: of each row, or one for all
    DType upstream_dtype;
    cpu::Lines grad, grad_target;
    DType grad_dtype, grad_target_dtype;
    Plan plan;

    __device__ bool has_indices() const { return indices.lines.data != nullptr; }
};

// --- soft-capping ----------------------------------------------------------------------------------------------------

// c·tanh(z/c), and its slope 1 − tanh², as a product that loses nothing near 0.
template <class A> struct Cap {
    A c, by;
    bool on;

    __device__ explicit Cap(double softcap) : c(softcap), by(softcap != 0 ? 1 / softcap : 0), on(softcap != 0) {}
    __device__ A operator()(A z) const { return on ? c * tanh(z * by) : z; }
    __device__ A slope(A z) const {
        if (!on) return 1;
        A r = 1 / (1 + exp(2 * fabs(z * by)));
        return 4 * r * (1 - r);
    }
};

// --- the largest logit and its place ---------------------------------------------------------------------------------

template <class A> struct Best {
    A value;
    int column;
};

template <class A> __device__ Best<A> shuffled(const Best<A>& best, int by) {
    return {shuffled(best.value, by), __shfl_xor_sync(~0u, best.column, by)};
}

struct Better {  // the first of the largest; before it the first NaN
    template <class A> __device__ Best<A> operator()(const Best<A>& a, const Best<A>& b) const {
        bool a_nan = a.value != a.value, b_nan = b.value != b.value;
        bool tied = a_nan == b_nan && (a_nan || a.value == b.value);
        bool first = tied ? a.column < b.column : a_nan || (!b_nan && a.value > b.value);
        return first ? a : b;
    }
};

// --- what is summed over a row ---------------------------------------------------------------------------------------

// The sums of one pass, against a maximum that need not be the row's.
template <class A> struct RowSums {
    A top;
    Sums<A, 6> sums;
    __device__ A& exps() { return sums.x[0]; }
    __device__ A& at_target() { return sums.x[1]; }  // the target's logit
    __device__ A& share() { return sums.x[2]; }      // Σ w·t of probabilities
    __device__ A& dot() { return sums.x[3]; }        // Σ w·t·(z − top)
    __device__ A& weights() { return sums.x[4]; }    // Σ w
    __device__ A& all_dot() { return sums.x[5]; }    // Σ w·(z − top)
};

// Of two blocks of a cluster.
struct JoinedSums {
    template <class A> __device__ RowSums<A> operator()(RowSums<A> a, RowSums<A> b) const {
        A top = Larger()(a.top, b.top);
        RowSums<A> both{top, Plus()(at(a, top), at(b, top))};
        return both;
    }

  private:
    template <class A> __device__ static Sums<A, 6> at(RowSums<A>& part, A top) {
        A less = finite(part.top) - finite(top);
        part.exps() *= exp(less);
        if (part.share() != 0) part.dot() += part.share() * less;
        if (part.weights() != 0) part.all_dot() += part.weights() * less;
        return part.sums;
    }
};

// --- one row ---------------------------------------------------------------------------------------------------------

// What is read once a row, by one thread of each block.
template <class A> struct RowFacts {
    Target<A> target;
    double by_share, by_count, of_weights;
    A upstream;
    A top, log_sum;  // backward
};

template <bool GENERAL, class Cells> struct CrossEntropyRow {
    using A = typename Cells::A;
    using Above = Exp<typename Cells::Element>;
    static constexpr int W = Cells::W;

    Cells& cells;
    const CrossEntropyCall& call;
    const Team& team;
    int64_t row;  // −1: none
    char* scratch;
    const Teams& teams;
    int area;  // of the scratch
    bool smoothed, probable;
    Cap<A> cap;
    RowFacts<A> facts;

    // `cells` has been asked.
    __device__ CrossEntropyRow(Cells& cells, const CrossEntropyCall& call, const Team& team, char* scratch,
                               bool backward)
        : cells(cells), call(call), team(team), row(team.row < call.rows.count ? team.row : -1), scratch(scratch),
          teams(call.plan.teams), area(call.plan.scratch), smoothed(GENERAL && call.label_smoothing != 0),
          probable(GENERAL && !call.has_indices()), cap(call.softcap),
          facts(once(teams, team, scratch + 2 * area, [&] { return read(backward); })) {
        cells.wait();
    }

    __device__ RowFacts<A> read(bool backward) const {
        RowFacts<A> found = {
            {-1, row >= 0, false, A(0)}, call.by_share, call.by_count, call.of_weights, A(1), A(0), A(0)};
        if (row < 0) return found;
        if (call.has_indices()) found.target = read_target<A>(call.indices, call.rows, row);
        if (call.counted_rows != nullptr) {
            found.by_share = call.counted_rows[0];
            found.by_count = call.counted_rows[1];
        }
        if (call.counted_weights != nullptr) found.of_weights = *call.counted_weights;
        if (call.upstream.data != nullptr)
            found.upstream = load<A>(row_of(call.rows, call.upstream, row), call.upstream_dtype);
        if (backward) {
            found.top = *reinterpret_cast<const A*>(row_of(call.rows, call.top, row));
            found.log_sum = *reinterpret_cast<const A*>(row_of(call.rows, call.log_sum, row));
        }
        return found;
    }

    __device__ A seen(A logit) const { return GENERAL ? cap(logit) : logit; }
    __device__ bool is_in(int column) const { return column >= 0 && column < call.classes; }
    __device__ bool near_target(int column) const {
        return static_cast<unsigned>(static_cast<int>(facts.target.index) - column) < W && facts.target.index >= 0;
    }

    // --- forward -----------------------------------------------------------------------------------------------------

    __device__ A largest() {
        A top = -infinity<A>();
        if (GENERAL && call.argmax.data != nullptr) {
            Best<A> best = {top, INT_MAX};
            cells.each([&](const A(&x)[W], const A(&)[W], int column) {
#pragma unroll
                for (int j = 0; j < W; j++)
                    if (is_in(column + j)) best = Better()(best, Best<A>{x[j], column + j});
            });
            best = reduce(best, Better(), teams, scratch);
            best = reduce_over_cluster(best, Better(), teams, team, scratch + 2 * area);
            leave(teams);
            if (row >= 0 && team.leads())
                *reinterpret_cast<int64_t*>(row_of(call.rows, call.argmax, row)) = best.column;
            return seen(best.value);
        }
        cells.each([&](const A(&x)[W], const A(&)[W], int) {
#pragma unroll
            for (int j = 0; j < W; j++) top = Larger()(top, x[j]);
        });
        return seen(reduce(top, Larger(), teams, scratch));
    }

    // The sums over a row; with `keep`, the exponentials take the place of the logits.
    __device__ RowSums<A> sums(A top, bool keep) {
        RowSums<A> of_row{top, {}};
        A origin = finite(top);
        Above above(origin);
        auto add = [&](A(&x)[W], const A(&y)[W], int column) {
            if (near_target(column)) {
#pragma unroll
                for (int j = 0; j < W; j++)
                    if (column + j == facts.target.index) of_row.at_target() = seen(x[j]);
            }
#pragma unroll
            for (int j = 0; j < W; j++) {
                if constexpr (GENERAL) {
                    if (!is_in(column + j)) continue;  // what is not there, a soft-cap would make finite
                    A z = seen(x[j]), w = smoothed || probable ? weight_of(column + j) : A(0);
                    of_row.exps() += above(z);
                    if (probable) {
                        of_row.share() += w * y[j];
                        if (w * y[j] != 0) of_row.dot() += w * y[j] * (z - origin);
                    }
                    if (smoothed) {
                        of_row.weights() += w;
                        if (w != 0) of_row.all_dot() += w * (z - origin);
                    }
                } else {
                    of_row.exps() += x[j] = above(x[j]);
                }
            }
        };
        if (keep)
            cells.replace(add);
        else
            cells.each([&](A(&x)[W], const A(&y)[W], int column) { add(x, y, column); });
        if constexpr (GENERAL) {
            of_row.sums = reduce(of_row.sums, Plus(), teams, scratch + area);
        } else {
            Sums<A, 2> two = reduce(Sums<A, 2>{{of_row.exps(), of_row.at_target()}}, Plus(), teams, scratch + area);
            of_row.exps() = two.x[0];
            of_row.at_target() = two.x[1];
        }
        of_row.exps() = above.corrected(of_row.exps());
        return reduce_over_cluster(of_row, JoinedSums(), teams, team, scratch + 2 * area);
    }

    __device__ A weight_of(int64_t c) const { return call.indices.weights.template at<A>(c); }

    // The row's two terms, in float64.
    __device__ Sums<double, 2> loss(RowSums<A>& of_row, A log_sum, double share) const {
        if (!facts.target.valid) return {};
        if (facts.target.bad) return {{static_cast<double>(not_a_number()), static_cast<double>(not_a_number())}};
        double top = of_row.top, dot = of_row.dot();
        if (!probable)
            dot = facts.target.weight == 0 ? 0 : facts.target.weight * (static_cast<double>(of_row.at_target()) - top);
        if (smoothed) dot = (1 - call.label_smoothing) * dot + call.label_smoothing / call.classes * of_row.all_dot();
        double lse = top + log_sum;
        return {{share * log_sum - dot, call.z_loss * lse * lse}};
    }

    __device__ Sums<double, 2> forward(const OutRow& grad, const OutRow& grad_target) {
        bool keep = !GENERAL && grad.data != nullptr && cells.keeps();
        A block_top = largest();
        RowSums<A> of_row = sums(block_top, keep);
        A total = of_row.top == -infinity<A>() ? A(not_a_number()) : of_row.exps(), log_sum = log(total);
        double share = share_of(of_row.share());
        Sums<double, 2> terms{};
        if (row >= 0 && team.leads()) {
            if (call.top.data != nullptr) *reinterpret_cast<A*>(row_of(call.rows, call.top, row)) = of_row.top;
            if (call.log_sum.data != nullptr) *reinterpret_cast<A*>(row_of(call.rows, call.log_sum, row)) = log_sum;
            terms = loss(of_row, log_sum, share);
            if (call.loss.data != nullptr)
                store(row_of(call.rows, call.loss, row), call.loss_dtype, terms.x[0] + terms.x[1]);
        }
        if (call.grad.data != nullptr || call.grad_target.data != nullptr)
            write(of_row.top, log_sum, total, share, keep, keep ? exp(finite(block_top) - finite(of_row.top)) : A(1),
                  grad, grad_target);
        leave(teams);
        return terms;
    }

    // Σq, from Σ w·t of probabilities.
    __device__ double share_of(A of_probabilities) const {
        double share = probable ? of_probabilities : facts.target.weight;
        if (!smoothed) return share;
        return (1 - call.label_smoothing) * share + call.label_smoothing / call.classes * facts.of_weights;
    }

    // --- backward ----------------------------------------------------------------------------------------------------

    __device__ void backward(const OutRow& grad, const OutRow& grad_target) {
        A share = 0;
        if (probable) {
            cells.each([&](const A(&)[W], const A(&y)[W], int column) {
#pragma unroll
                for (int j = 0; j < W; j++)
                    if (is_in(column + j)) share += weight_of(column + j) * y[j];
            });
            share = reduce(share, Plus(), teams, scratch);
            share = reduce_over_cluster(share, Plus(), teams, team, scratch + 2 * area);
        }
        write(facts.top, facts.log_sum, exp(facts.log_sum), share_of(share), false, A(1), grad, grad_target);
        if (probable) leave(teams);
    }

    // --- the gradients -----------------------------------------------------------------------------------------------

    // `kept`: x is exp(z − m′) already, m′ being the maximum of a part of the row, `from_part` exp(m′ − m).
    __device__ void write(A top, A log_sum, A total, double share, bool kept, A from_part, const OutRow& grad,
                          const OutRow& grad_target) {
        A f = facts.upstream / static_cast<A>(facts.by_share), f_z = facts.upstream / static_cast<A>(facts.by_count);
        A mass = facts.target.bad ? A(not_a_number()) : f * static_cast<A>(share);
        A scale = mass / total,
          scale_z = call.z_loss != 0 ? f_z * static_cast<A>(2 * call.z_loss) * (top + log_sum) / total : A(0);
        A smooth = static_cast<A>(1 - call.label_smoothing),
          each = f * static_cast<A>(call.label_smoothing / call.classes);
        A at_target = f * static_cast<A>(smooth + call.label_smoothing / call.classes) * facts.target.weight;
        Above above(finite(top));
        if (!facts.target.valid) {  // whatever the row holds: not something that is multiplied by 0
            cells.write(grad, grad_target, [](const A(&)[W], const A(&)[W], int, A(&to)[W], A(&to_target)[W]) {
#pragma unroll
                for (int j = 0; j < W; j++) to[j] = to_target[j] = 0;
            });
            return;
        }
        A factor = kept ? from_part : above.corrected(A(1)), of_exp = (scale + scale_z) * factor;
        cells.write(grad, grad_target, [&](const A(&x)[W], const A(&y)[W], int column, A(&to)[W], A(&to_target)[W]) {
#pragma unroll
            for (int j = 0; j < W; j++) {
                if constexpr (GENERAL) {
                    bool in = is_in(column + j);
                    A z = seen(x[j]), e = above(z) * factor,
                      w = in && (smoothed || probable) ? weight_of(column + j) : A(0);
                    A d = e * scale;
                    if (probable) d -= smooth * f * (w * y[j]);
                    if (smoothed) d -= each * w;
                    d = (d + e * scale_z) * cap.slope(x[j]);
                    to[j] = d;
                    to_target[j] = -smooth * f * ((z - top) - log_sum) * w;
                } else {
                    to[j] = (kept ? x[j] : above(x[j])) * of_exp;
                }
            }
            if (!near_target(column)) return;
#pragma unroll
            for (int j = 0; j < W; j++) {
                if (column + j != facts.target.index) continue;
                A e = (kept ? x[j] : above(seen(x[j]))) * factor;
                // p − 1 as (e − total) / total: as precise for a p next to 1 as for any other.
                A d = smoothed ? e * scale - at_target : (e - total) * scale;
                to[j] = d + e * scale_z;
                if constexpr (GENERAL) to[j] *= cap.slope(x[j]);
            }
        });
    }
};

// --- the kernels -----------------------------------------------------------------------------------------------------

// After its rows, what a block adds to the loss.
__device__ inline void add_loss(Sums<double, 2> terms, const CrossEntropyCall& call, const Team& team, char* scratch) {
    if (call.total == nullptr || team.rank > 0) return;
    Teams block = {1, static_cast<int>(blockDim.x), 1, 1};
    if (call.plan.teams.rows > 1) {
        terms = reduce(terms, Plus(), block, scratch);
        scratch += call.plan.scratch;
    }
    if (!gather(terms, call.gathering, blockIdx.x / call.plan.teams.cluster, scratch) || threadIdx.x > 0) return;
    double by_share = call.counted_rows != nullptr ? call.counted_rows[0] : call.by_share;
    double by_count = call.counted_rows != nullptr ? call.counted_rows[1] : call.by_count;
    store(call.total, call.loss_dtype, terms.x[0] / by_share + (call.z_loss != 0 ? terms.x[1] / by_count : 0));
}

template <bool GENERAL, bool BACKWARD, class Cells>
__device__ void run_cross_entropy(Cells& cells, const CrossEntropyCall& call, const Team& team, const OutRow& grad,
                                  const OutRow& grad_target, char* memory) {
    cells.ask();
    CrossEntropyRow<GENERAL, Cells> of_row(cells, call, team, memory, BACKWARD);
    if constexpr (BACKWARD)
        of_row.backward(grad, grad_target);
    else
        add_loss(of_row.forward(grad, grad_target), call, team, memory);
}

// Logits of T that lie one behind the other, gradients of TO. Not GENERAL: class indices, no soft-cap, no smoothing,
// and no argmax.
template <class T, class TO, bool GENERAL, bool BACKWARD>
__global__ void __launch_bounds__(MAX_THREADS, 2) cross_entropy_vectors(const __grid_constant__ CrossEntropyCall call) {
    EXTERN_SHARED(char, memory);
    Team team(call.plan.teams);
    bool exists = team.row < call.rows.count;
    int64_t row = exists ? team.row : 0;
    InRow in[2] = {{row_of(call.rows, call.logits, row), 0, call.dtype, true, nullptr},
                   {GENERAL ? row_of(call.rows, call.probabilities, row) : nullptr, 0, call.dtype,
                    GENERAL && call.probabilities.data != nullptr, nullptr}};
    OutRow grad = {row_of(call.rows, call.grad, row), 0, call.grad_dtype, nullptr};
    OutRow grad_target = {GENERAL ? row_of(call.rows, call.grad_target, row) : nullptr, 0, call.grad_dtype, nullptr};
    VectorCells<T, TO> cells(in, in[0].data, exists ? call.classes : 0, rounded<T>(-infinity<Compute<T>>()), call.plan,
                             team, memory + call.plan.before_cells());
    run_cross_entropy<GENERAL, BACKWARD>(cells, call, team, grad, grad_target, memory);
}

template <class A, bool BACKWARD>
__global__ void __launch_bounds__(MAX_THREADS, 2) cross_entropy_tiles(const __grid_constant__ CrossEntropyCall call) {
    EXTERN_SHARED(char, memory);
    Team team(call.plan.teams);
    bool exists = team.row < call.rows.count;
    int64_t row = exists ? team.row : 0, first = team.row - team.index;
    auto in_row = [&](const cpu::Lines& lines, DType dtype, bool held) {
        return InRow{row_of(call.rows, lines, row), lines.column, dtype, held, row_of(call.rows, lines, first)};
    };
    auto out_row = [&](const cpu::Lines& lines, DType dtype) {
        return OutRow{row_of(call.rows, lines, row), lines.column, dtype, row_of(call.rows, lines, first)};
    };
    InRow in[2] = {in_row(call.logits, call.dtype, true),
                   in_row(call.probabilities, call.target_dtype, call.probabilities.data != nullptr)};
    TileCells<A> cells(in, call.classes, call.rows.count, call.plan, team, memory + call.plan.before_cells());
    run_cross_entropy<true, BACKWARD>(cells, call, team, out_row(call.grad, call.grad_dtype),
                                      out_row(call.grad_target, call.grad_target_dtype), memory);
}

}  // namespace tilegrad::cuda
