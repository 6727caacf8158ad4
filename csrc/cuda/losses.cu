#include "losses.h"

#include "elementwise.cuh"
#include "nll_loss.cuh"

namespace tilegrad::cuda {

namespace {

constexpr int ELEMENT_THREADS = 256;
constexpr int64_t ELEMENT_BLOCKS = 4096;  // of a grid whose threads go on from element to element

int scratch_of_rows() { return scratch_bytes(ROW_THREADS, 1, sizeof(Sums<double, 3>)); }

int64_t blocks_for(int64_t rows, int64_t most) {
    return std::max<int64_t>(1, std::min(most, ceil_div(rows, ROW_THREADS)));
}

__global__ void store_number(char* to, DType dtype, double x) {
    if (threadIdx.x == 0) store(to, dtype, x);
}

template <class... Args, class... Given>
void launch_elements(const char* what, void (*kernel)(Args...), int64_t count, cudaStream_t stream, Given... given) {
    if (count == 0) return;
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(std::min(ELEMENT_BLOCKS, ceil_div(count, ELEMENT_THREADS))));
    config.blockDim = dim3(ELEMENT_THREADS);
    config.stream = stream;
    check(cudaLaunchKernelEx(&config, kernel, Args(given)...), what);
}

}  // namespace

// --- what targets alone say ------------------------------------------------------------------------------------------

void reset(const LossWorkspace& workspace, cudaStream_t stream) {
    check(cudaMemsetAsync(workspace.counter, 0, 2 * sizeof *workspace.counter, stream), "clearing a loss's counters");
}

void count(const cpu::Rows& rows, const Indices& indices, bool of_rows, bool of_classes, const LossWorkspace& workspace,
           cudaStream_t stream) {
    CountCall call{rows, indices, of_classes, {}, workspace.counted};
    call.indices.flag = nullptr;  // the loss's own launch says it
    if (!of_rows) call.indices.lines.data = nullptr;
    int64_t blocks = blocks_for(std::max(of_rows ? rows.count : 0, of_classes ? indices.classes : 0), COUNTING_BLOCKS);
    call.gathering = {workspace.parts, workspace.counter, 0, static_cast<int>(blocks)};
    launch("counting a loss's targets", count_targets, call, blocks, ROW_THREADS, 2 * scratch_of_rows(), 1, stream);
}

void count_targets(const Array& target, const Array& weight, int64_t classes, const LossOptions& o,
                   const LossWorkspace& workspace, cudaStream_t stream) {
    Indices indices = indices_of(target, weight, classes, o, {});
    cpu::Layout layout(target, -1);
    layout.elements(target, indices.lines);
    cpu::Rows rows = layout.rows();
    reset(workspace, stream);
    count(rows, indices, static_cast<bool>(target), weight && o.label_smoothing != 0, workspace, stream);
}

void fill_loss_of_no_rows(const Array& loss, const LossOptions& o, cudaStream_t stream) {
    put(loss, o.reduction == Reduction::mean ? std::nan("") : 0, stream);
}

void put(const Array& to, double x, cudaStream_t stream) {
    launch_elements("the launch of put", store_number, 1, stream, to.data, to.dtype(), x);
}

// --- negative log-likelihood -----------------------------------------------------------------------------------------

static cpu::Layout describe(NllLossCall& call, const Array& logp, const Array& target, const Array& weight,
                            const LossOptions& o, const Array& flag) {
    int axis = logp.ndim > 1;
    cpu::Layout layout(logp, axis);
    call.indices = indices_of(target, weight, columns_of(logp, axis, "nll_loss"), o, flag);
    layout.elements(target, call.indices.lines);
    call.dtype = logp.dtype();
    return layout;
}

void nll_loss(const Array& logp, const Array& target, const Array& weight, const LossOptions& o, const Array& loss,
              const Array& flag, const LossWorkspace& workspace, cudaStream_t stream) {
    NllLossCall call{};
    cpu::Layout layout = describe(call, logp, target, weight, o, flag);
    layout.columns(logp, call.logp);
    if (o.reduction == Reduction::none)
        layout.elements(loss, call.loss);
    else
        call.total = loss.data;
    call.rows = layout.rows();
    call.mean = o.reduction == Reduction::mean;
    int64_t blocks = blocks_for(call.rows.count, GATHERING_BLOCKS);
    if (call.total != nullptr) {
        reset(workspace, stream);
        call.gathering = {workspace.parts, workspace.counter, 0, static_cast<int>(blocks)};
    }
    auto kernel = call.dtype == DType::float64 ? nll_loss_rows<double> : nll_loss_rows<float>;
    launch("the launch of nll_loss", kernel, call, blocks, ROW_THREADS, 2 * scratch_of_rows(), 1, stream);
}

void nll_loss_backward(const Array& upstream, const Array& logp, const Array& target, const Array& weight,
                       const LossOptions& o, const Array& grad, const LossWorkspace& workspace, cudaStream_t stream) {
    NllLossCall call{};
    cpu::Layout layout = describe(call, logp, target, weight, o, {});
    layout.elements(upstream, call.upstream);
    call.upstream_dtype = upstream.dtype();
    layout.columns(grad, call.grad);
    call.rows = layout.rows();
    close_last(call.rows, {&call.grad, &call.upstream, &call.indices.lines});
    if (o.reduction == Reduction::mean) {
        reset(workspace, stream);
        count(call.rows, call.indices, true, false, workspace, stream);
        call.counted = workspace.counted;
    }
    Planned planned =
        plan_rows(call.rows, call.indices.classes, {{&call.grad, call.dtype, Moved::written}}, true, chip());
    call.plan = planned.plan;
    bool vectors = planned.access == Access::vectors;
    void (*kernel)(NllLossCall) = nullptr;
    switch (call.dtype) {
        case DType::float64:
            kernel = vectors ? nll_loss_backward_vectors<double> : nll_loss_backward_tiles<double>;
            break;
        case DType::float32:
            kernel = vectors ? nll_loss_backward_vectors<float> : nll_loss_backward_tiles<float>;
            break;
        case DType::bfloat16:
            kernel = vectors ? nll_loss_backward_vectors<__nv_bfloat16> : nll_loss_backward_tiles<float>;
            break;
        default: kernel = vectors ? nll_loss_backward_vectors<__half> : nll_loss_backward_tiles<float>;
    }
    launch("the launch of nll_loss_backward", kernel, call, call.plan, call.rows.count, stream);
}

// --- elements --------------------------------------------------------------------------------------------------------

void scale(const Array& x, const Array& factor, cudaStream_t stream) {
    int64_t count = x.size();
    auto run = [&](auto* data) {
        using T = std::remove_pointer_t<decltype(data)>;
        launch_elements("the launch of scale", scale_elements<T>, ceil_div(count, PER_VECTOR<T>), stream, data, count,
                        factor.data, factor.dtype());
    };
    switch (x.dtype()) {
        case DType::float64: return run(reinterpret_cast<double*>(x.data));
        case DType::float32: return run(reinterpret_cast<float*>(x.data));
        case DType::bfloat16: return run(reinterpret_cast<__nv_bfloat16*>(x.data));
        default: return run(reinterpret_cast<__half*>(x.data));
    }
}

void copy(const Array& from, const Array& to, const Array& index, int64_t ignored, cudaStream_t stream) {
    CopyCall call{};
    int axis = to.ndim - 1;
    cpu::Layout layout(to, axis);
    layout.columns(from, call.from);
    layout.columns(to, call.to);
    layout.elements(index, call.index);
    call.rows = layout.rows();
    call.columns = to.ndim > 0 ? to.shape[axis] : 1;
    call.from_dtype = from.dtype();
    call.to_dtype = to.dtype();
    if (index) call.index_dtype = index.index();
    call.ignored = ignored;
    bool wide = call.from_dtype == DType::float64;
    launch_elements("the launch of copy", wide ? copy_elements<double> : copy_elements<float>,
                    call.rows.count * call.columns, stream, call);
}

}  // namespace tilegrad::cuda
