#include "softmax.cuh"

#include "operations.h"

namespace tilegrad::cuda {
namespace {

using Kernel = void (*)(SoftmaxCall);

template <bool BACKWARD> Kernel kernel_of_vectors(DType dtype) {
    switch (dtype) {
        case DType::bfloat16: return softmax_vectors<__nv_bfloat16, BACKWARD>;
        case DType::float16: return softmax_vectors<__half, BACKWARD>;
        default: return softmax_vectors<float, BACKWARD>;
    }
}

template <bool BACKWARD> Kernel kernel_of_tiles(const SoftmaxCall& call) {
    bool wide = call.in_dtype == DType::float64 || call.out_dtype == DType::float64;
    return wide ? softmax_tiles<double, BACKWARD> : softmax_tiles<float, BACKWARD>;
}

}  // namespace

void softmax(const Array& x, const Array& y, int axis, bool log, const Array& out, cudaStream_t stream) {
    const char* what = y ? "the launch of softmax_backward" : "the launch of softmax";
    SoftmaxCall call{};
    cpu::Layout layout(out, axis);
    layout.columns(x, call.x);
    layout.columns(y, call.y);
    layout.columns(out, call.out);
    call.rows = layout.rows();
    call.columns = columns_of(out, axis, what);
    call.log = log;
    call.in_dtype = x.dtype();
    call.out_dtype = out.dtype();
    if (y && y.dtype() != call.in_dtype) throw std::invalid_argument("expected a gradient and an output of one dtype");
    close_last(call.rows, {&call.x, &call.y, &call.out});
    // The output that a log-softmax's gradient is made of is needed once, at the end: it can wait if there is no room.
    Chip on = chip();
    call.holds_y = y && (!log || fits(call.columns, 2 * size_of(call.in_dtype), on));
    auto of_y = call.holds_y ? Moved::held : Moved::read;
    Planned planned = plan_rows(call.rows, call.columns,
                                {{&call.x, call.in_dtype, Moved::held},
                                 {&call.y, call.in_dtype, of_y},
                                 {&call.out, call.out_dtype, Moved::written}},
                                call.in_dtype == call.out_dtype && call.in_dtype != DType::float64, on);
    call.plan = planned.plan;
    bool vectors = planned.access == Access::vectors;
    Kernel kernel = y ? (vectors ? kernel_of_vectors<true>(call.in_dtype) : kernel_of_tiles<true>(call))
                      : (vectors ? kernel_of_vectors<false>(call.in_dtype) : kernel_of_tiles<false>(call));
    launch(what, kernel, call, call.plan, call.rows.count, stream);
}

}  // namespace tilegrad::cuda
