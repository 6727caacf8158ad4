#include "cross_entropy.cuh"

#include "losses.h"

namespace tilegrad::cuda {
namespace {

using Kernel = void (*)(CrossEntropyCall);

template <class T, class TO, bool BACKWARD> Kernel kernel_of_vectors(bool general) {
    return general ? cross_entropy_vectors<T, TO, true, BACKWARD> : cross_entropy_vectors<T, TO, false, BACKWARD>;
}

template <bool BACKWARD> Kernel kernel_of_vectors(const CrossEntropyCall& call, bool general) {
    switch (call.dtype) {
        case DType::bfloat16: return kernel_of_vectors<__nv_bfloat16, __nv_bfloat16, BACKWARD>(general);
        case DType::float16: return kernel_of_vectors<__half, __half, BACKWARD>(general);
        default: break;
    }
    if constexpr (!BACKWARD) {  // the logits of a chunk are float32 where their gradient goes on as 16 bits
        if (call.grad_dtype == DType::bfloat16) return kernel_of_vectors<float, __nv_bfloat16, false>(general);
        if (call.grad_dtype == DType::float16) return kernel_of_vectors<float, __half, false>(general);
    }
    return kernel_of_vectors<float, float, BACKWARD>(general);
}

// Whether kernels of vectors exist for the dtypes: float64 is moved element by element, as half a vector is one.
bool has_vectors(const CrossEntropyCall& call, bool backward) {
    bool narrows =
        call.dtype == DType::float32 && size_of(call.grad_dtype) == 2 && !backward && call.grad_target.data == nullptr;
    bool grad = call.grad.data == nullptr || call.grad_dtype == call.dtype || narrows;
    bool target = call.probabilities.data == nullptr || call.target_dtype == call.dtype;
    bool grad_target = call.grad_target.data == nullptr || call.grad_target_dtype == call.dtype;
    return call.dtype != DType::float64 && grad && target && grad_target;
}

// What forward and backward have in common. The layout keeps the places of the call's lines, so neither may move.
cpu::Layout describe(CrossEntropyCall& call, const Array& logits, const Array& target, const Array& weight,
                     const Array& lse, const LossOptions& o, const Array& grad, const Array& flag) {
    int axis = logits.ndim > 1;
    call.classes = columns_of(logits, axis, "cross_entropy");
    cpu::Layout layout(logits, axis);
    layout.columns(logits, call.logits);
    call.dtype = logits.dtype();
    call.indices = indices_of(target, weight, call.classes, o, flag);
    if (target.ndim == logits.ndim) {
        layout.columns(target, call.probabilities);
        call.target_dtype = target.dtype();
    } else {
        layout.elements(target, call.indices.lines);
    }
    layout.columns(grad, call.grad);
    call.grad_dtype = grad ? grad.dtype() : call.dtype;
    call.grad_target_dtype = call.dtype;
    if (lse) {  // (2, rows)
        layout.elements(lse.data, lse.strides + 1, lse.ndim - 1, call.top);
        layout.elements(lse.data + lse.strides[0], lse.strides + 1, lse.ndim - 1, call.log_sum);
    }
    call.label_smoothing = o.label_smoothing;
    call.z_loss = o.z_loss;
    call.softcap = o.softcap;
    return layout;
}

void add_upstream(CrossEntropyCall& call, cpu::Layout& layout, const Array& upstream, const Array& grad_target) {
    layout.elements(upstream, call.upstream);
    if (upstream) call.upstream_dtype = upstream.dtype();
    layout.columns(grad_target, call.grad_target);
    if (grad_target) call.grad_target_dtype = grad_target.dtype();
}

Planned planned(CrossEntropyCall& call, bool backward) {
    return plan_rows(call.rows, call.classes,
                     {{&call.logits, call.dtype, Moved::held},
                      {&call.probabilities, call.target_dtype, Moved::held},
                      {&call.grad, call.grad_dtype, Moved::written},
                      {&call.grad_target, call.grad_target_dtype, Moved::written}},
                     has_vectors(call, backward), chip());
}

// Once all arrays are in the layout.
void place(CrossEntropyCall& call, const cpu::Layout& layout) {
    call.rows = layout.rows();
    close_last(call.rows, {&call.logits, &call.probabilities, &call.indices.lines, &call.grad, &call.grad_target,
                           &call.top, &call.log_sum, &call.argmax, &call.loss, &call.upstream});
}

template <bool BACKWARD>
void run(CrossEntropyCall& call, const LossOptions& o, const Planned& planned, const LossWorkspace& workspace,
         cudaStream_t stream) {
    const char* what = BACKWARD ? "the launch of cross_entropy_backward" : "the launch of cross_entropy";
    call.plan = planned.plan;
    int64_t rows = workspace.shared ? workspace.rows : call.rows.count;
    call.by_share = call.by_count = o.reduction == Reduction::mean ? static_cast<double>(rows) : 1;
    call.of_weights = call.classes;
    bool has_indices = call.indices.lines.data != nullptr;
    bool of_rows = o.reduction == Reduction::mean && has_indices,
         of_classes = o.label_smoothing != 0 && call.indices.weights.data != nullptr;
    bool counts = of_rows || of_classes;
    if (!workspace.shared && (counts || call.total != nullptr)) reset(workspace, stream);
    if (!workspace.shared && counts) count(call.rows, call.indices, of_rows, of_classes, workspace, stream);
    if (of_rows) call.counted_rows = workspace.counted;
    if (of_classes) call.counted_weights = workspace.counted + 2;
    bool general = o.label_smoothing != 0 || o.softcap != 0 || !has_indices || call.argmax.data != nullptr;
    bool wide = call.dtype == DType::float64;
    Kernel kernel = planned.access == Access::vectors ? kernel_of_vectors<BACKWARD>(call, general)
                    : wide                            ? cross_entropy_tiles<double, BACKWARD>
                                                      : cross_entropy_tiles<float, BACKWARD>;
    launch(what, kernel, call, call.plan, call.rows.count, stream);
}

}  // namespace

int64_t cross_entropy_blocks(const Array& logits, const Array& target, const Array& grad) {
    CrossEntropyCall call{};
    cpu::Layout layout = describe(call, logits, target, {}, {}, {}, grad, {});
    place(call, layout);
    return ceil_div(call.rows.count, planned(call, false).plan.teams.rows);
}

void cross_entropy(const Array& upstream, const Array& logits, const Array& target, const Array& weight,
                   const LossOptions& o, const Array& loss, const Array& lse, const Array& argmax, const Array& grad,
                   const Array& grad_target, const Array& flag, const LossWorkspace& workspace, cudaStream_t stream) {
    CrossEntropyCall call{};
    cpu::Layout layout = describe(call, logits, target, weight, lse, o, grad, flag);
    layout.elements(argmax, call.argmax);
    add_upstream(call, layout, upstream, grad_target);
    if (loss) {
        call.loss_dtype = loss.dtype();
        if (o.reduction == Reduction::none)
            layout.elements(loss, call.loss);
        else
            call.total = loss.data;
    }
    place(call, layout);
    Planned plan = planned(call, false);
    int64_t blocks = ceil_div(call.rows.count, plan.plan.teams.rows);
    if (call.total != nullptr) {
        if (call.rows.count == 0 && !workspace.shared) {
            fill_loss_of_no_rows(loss, o, stream);
            return;
        }
        call.gathering = {workspace.parts + 3 * COUNTING_BLOCKS, workspace.counter + 1, workspace.first,
                          workspace.shared ? workspace.blocks : static_cast<int>(blocks)};
    }
    run<false>(call, o, plan, workspace, stream);
}

void cross_entropy_backward(const Array& upstream, const Array& logits, const Array& target, const Array& weight,
                            const Array& lse, const LossOptions& o, const Array& grad, const Array& grad_target,
                            const LossWorkspace& workspace, cudaStream_t stream) {
    CrossEntropyCall call{};
    cpu::Layout layout = describe(call, logits, target, weight, lse, o, grad, {});
    add_upstream(call, layout, upstream, grad_target);
    place(call, layout);
    run<true>(call, o, planned(call, true), workspace, stream);
}

}  // namespace tilegrad::cuda
