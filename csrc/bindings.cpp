// The only file that knows Python: arrays become addresses and strides, and the work is shared out to threads.
//
// The arrays are NumPy's, made and checked by tilegrad.cpu. Nothing is checked again here but what memory safety hangs on.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstring>
#include <string>
#include <vector>

#include "cpu/api.h"
#include "cpu/pool.h"

namespace py = pybind11;

namespace tilegrad::cpu {
namespace {

// --- arrays ----------------------------------------------------------------------------------------------------------

int bfloat16_number = -1;  // NumPy gives the numbers of types of other packages out at run time

void know_bfloat16(const py::dtype& of) { bfloat16_number = of.num(); }

struct Array {
    char* data = nullptr;
    int ndim = 0;
    const py::ssize_t* shape = nullptr;
    const py::ssize_t* strides = nullptr;
    int number = -1;  // NumPy's, of the dtype

    Array() = default;
    explicit Array(const py::handle& object) {
        if (object.is_none()) return;
        if (!py::isinstance<py::array>(object)) throw py::type_error("expected a NumPy array");
        auto* array = py::detail::array_proxy(object.ptr());
        data = array->data;
        ndim = array->nd;
        shape = array->dimensions;
        strides = array->strides;
        number = py::reinterpret_borrow<py::array>(object).dtype().num();
    }

    explicit operator bool() const { return data != nullptr; }

    int64_t size() const {
        int64_t count = 1;
        for (int i = 0; i < ndim; i++) count *= shape[i];
        return count;
    }

    DType dtype() const {
        using py::detail::npy_api;
        if (number == npy_api::NPY_FLOAT_) return DType::float32;
        if (number == npy_api::NPY_DOUBLE_) return DType::float64;
        if (number == NPY_HALF) return DType::float16;
        if (number == bfloat16_number) return DType::bfloat16;
        throw py::type_error("expected float32, float64, float16 or bfloat16, got NumPy's dtype number " + std::to_string(number));
    }

    Index index() const {
        using py::detail::npy_api;
        switch (number) {
            case npy_api::NPY_BYTE_: return Index::int8;
            case npy_api::NPY_SHORT_: return Index::int16;
            case npy_api::NPY_INT_: return Index::int32;
            case npy_api::NPY_LONG_:
            case npy_api::NPY_LONGLONG_: return sizeof(long) == 8 || number == npy_api::NPY_LONGLONG_ ? Index::int64 : Index::int32;
            case npy_api::NPY_UBYTE_: return Index::uint8;
            case npy_api::NPY_USHORT_: return Index::uint16;
            case npy_api::NPY_UINT_: return Index::uint32;
            case npy_api::NPY_ULONG_:
            case npy_api::NPY_ULONGLONG_: return sizeof(long) == 8 || number == npy_api::NPY_ULONGLONG_ ? Index::uint64 : Index::uint32;
            default: throw py::type_error("expected an integer dtype, got NumPy's dtype number " + std::to_string(number));
        }
    }

  private:
    static constexpr int NPY_HALF = 23;
};

int64_t bytes_of(DType dtype) { return dtype == DType::float64 ? 8 : dtype == DType::float32 ? 4 : 2; }

// --- rows ------------------------------------------------------------------------------------------------------------

// Collects the arrays of a call, and finds the fewest dimensions that reach the rows of all of them.
class Layout {
  public:
    // `axis` is the dimension that is reduced, of the arrays that have it.
    Layout(const Array& first, int axis) : axis_(axis) {
        for (int i = 0; i < first.ndim; i++)
            if (i != axis) sizes_.push_back(first.shape[i]);
    }

    // One line a row. `lines` is filled in by `rows()`.
    void columns(const Array& a, Lines& lines) {
        lines = Lines{};
        if (!a) return;
        lines.data = a.data;
        lines.column = a.ndim > 0 ? a.strides[axis_] : 0;
        std::vector<int64_t> strides;
        for (int i = 0; i < a.ndim; i++)
            if (i != axis_) strides.push_back(a.strides[i]);
        found_.push_back({&lines, strides});
    }

    // One element a row, from `data` on with these strides; none at all: one element for all rows.
    void elements(char* data, const py::ssize_t* strides, int ndim, Lines& lines) {
        lines = Lines{};
        if (data == nullptr) return;
        lines.data = data;
        std::vector<int64_t> of_rows(sizes_.size(), 0);
        for (int i = 0; i < ndim; i++) of_rows[i] = strides[i];
        found_.push_back({&lines, of_rows});
    }
    void elements(const Array& a, Lines& lines) { elements(a.data, a.strides, a.ndim, lines); }

    Rows rows() const {
        Rows rows{};
        rows.count = 1;
        for (size_t i = 0; i < sizes_.size(); i++) {
            rows.count *= sizes_[i];
            if (sizes_[i] == 1) continue;
            bool joins = rows.dims > 0;
            for (auto& [lines, strides] : found_) joins = joins && lines->rows[rows.dims - 1] == strides[i] * sizes_[i];
            if (!joins && rows.dims == MAX_DIMS)
                throw py::value_error("expected at most " + std::to_string(MAX_DIMS) + " dimensions that no stride joins");
            int at = joins ? rows.dims - 1 : rows.dims++;
            rows.sizes[at] = joins ? rows.sizes[at] * sizes_[i] : sizes_[i];
            for (auto& [lines, strides] : found_) lines->rows[at] = strides[i];
        }
        return rows;
    }

  private:
    struct Found {
        Lines* lines;
        std::vector<int64_t> strides;
    };
    int axis_;
    std::vector<int64_t> sizes_;
    std::vector<Found> found_;
};

// --- threads ---------------------------------------------------------------------------------------------------------

constexpr int64_t SERIAL = 1 << 15;    // elements that are not worth a second thread
constexpr int64_t STREAMED = 8 << 20;  // bytes of an output that goes past the caches
constexpr int64_t SUMS = 32;           // of the rows' blocks whose sums are kept apart

// f(first, last) over rows of `columns` elements, without Python's lock where it takes long enough for that to matter.
template <class F> void over_rows(int64_t rows, int64_t columns, F f) {
    int64_t elements = rows * columns;
    if (elements <= SERIAL) {
        f(0, rows);
        return;
    }
    py::gil_scoped_release release;
    int64_t most = elements / (SERIAL / 2);
    int threads = num_threads();
    share(rows, 1, most < threads ? static_cast<int>(most) : threads, f);
}

// --- softmax ---------------------------------------------------------------------------------------------------------

void run_softmax(const py::object& x, const py::object& y, int axis, bool log, const py::object& out) {
    Array input(x), output(y), result(out);
    Softmax s{};
    Layout layout(result, axis);
    layout.columns(input, s.x);
    layout.columns(output, s.y);
    layout.columns(result, s.out);
    s.rows = layout.rows();
    s.columns = result.ndim > 0 ? result.shape[axis] : 1;
    s.log = log;
    s.in_dtype = input.dtype();
    s.out_dtype = result.dtype();
    if (output && output.dtype() != s.in_dtype) throw py::type_error("expected a gradient and an output of one dtype");
    auto kernel = output ? kernels().softmax_backward : kernels().softmax;
    over_rows(s.rows.count, s.columns, [&](int64_t first, int64_t last) { kernel(s, first, last); });
}

// --- cross-entropy ---------------------------------------------------------------------------------------------------

int64_t index_at(const char* p, Index dtype) {
    switch (dtype) {
        case Index::int8: return *reinterpret_cast<const int8_t*>(p);
        case Index::int16: return *reinterpret_cast<const int16_t*>(p);
        case Index::int32: return *reinterpret_cast<const int32_t*>(p);
        case Index::int64: return *reinterpret_cast<const int64_t*>(p);
        case Index::uint8: return *reinterpret_cast<const uint8_t*>(p);
        case Index::uint16: return *reinterpret_cast<const uint16_t*>(p);
        case Index::uint32: return *reinterpret_cast<const uint32_t*>(p);
        case Index::uint64: return static_cast<int64_t>(*reinterpret_cast<const uint64_t*>(p));
    }
    return 0;
}

double weight_at(const char* weight, DType dtype, int64_t i) {
    double x;
    kernels().convert(weight + i * bytes_of(dtype), dtype, reinterpret_cast<char*>(&x), DType::float64, 1);
    return x;
}

void store_number(char* to, DType dtype, double x) {
    kernels().convert(reinterpret_cast<const char*>(&x), DType::float64, to, dtype, 1);
}

const char* at_row(const Rows& rows, const Lines& lines, int64_t row) {
    const char* p = lines.data;
    for (int i = rows.dims - 1; i >= 0; i--) {
        p += row % rows.sizes[i] * lines.rows[i];
        row /= rows.sizes[i];
    }
    return p;
}


// What a mean divides by: the weights of the targets that count, and their number.
void denominators(CrossEntropy& c) {
    c.by_share = c.by_count = static_cast<double>(c.rows.count);
    if (!c.indices.data) return;
    c.by_share = c.by_count = 0;
    for (int64_t row = 0; row < c.rows.count; row++) {
        int64_t target = index_at(at_row(c.rows, c.indices, row), c.index_dtype);
        if (target == c.ignore_index) continue;
        c.by_count += 1;
        c.by_share += c.weight ? weight_at(c.weight, c.dtype, target) : 1;
    }
}

enum class Reduction : int { none, sum, mean };

struct LossArguments {
    Reduction reduction;
    int64_t ignore_index;
    double label_smoothing, z_loss, softcap;
    double by_share, by_count;  // the denominators, if the rows are not all there are; else −1
};

CrossEntropy cross_entropy_of(const Array& logits, const Array& target, const Array& weight, const LossArguments& o, Layout& layout) {
    CrossEntropy c{};
    layout.columns(logits, c.logits);
    if (target.ndim == logits.ndim) {
        layout.columns(target, c.probabilities);
    } else {
        layout.elements(target, c.indices);
        c.index_dtype = target.index();
    }
    c.dtype = logits.dtype();
    c.weight = weight.data;
    c.ignore_index = o.ignore_index;
    c.label_smoothing = o.label_smoothing;
    c.z_loss = o.z_loss;
    c.softcap = o.softcap;
    c.by_share = o.by_share >= 0 ? o.by_share : 1;
    c.by_count = o.by_count >= 0 ? o.by_count : 1;
    return c;
}

// The two halves of the logsumexp, (2, rows).
void halves(Layout& layout, const Array& lse, CrossEntropy& c) {
    if (!lse) return;
    layout.elements(lse.data, lse.strides + 1, lse.ndim - 1, c.top);
    layout.elements(lse.data + lse.strides[0], lse.strides + 1, lse.ndim - 1, c.log_sum);
}

void finish(CrossEntropy& c, const Layout& layout, const Array& logits, int axis, Reduction reduction) {
    c.rows = layout.rows();
    c.classes = logits.shape[axis];
    c.stream = c.rows.count * c.classes * bytes_of(c.dtype) >= STREAMED;
    if (reduction == Reduction::mean) denominators(c);
}

void run_cross_entropy(
    const py::object& logits_, const py::object& target_, const py::object& weight_, const LossArguments& o, const py::object& loss_,
    const py::object& lse_, const py::object& argmax_, const py::object& grad_) {
    Array logits(logits_), target(target_), weight(weight_), loss(loss_), lse(lse_), argmax(argmax_), grad(grad_);
    int axis = logits.ndim > 1;
    Layout layout(logits, axis);
    CrossEntropy c = cross_entropy_of(logits, target, weight, o, layout);
    layout.columns(grad, c.grad);
    halves(layout, lse, c);
    layout.elements(argmax, c.argmax);
    if (o.reduction == Reduction::none) layout.elements(loss, c.loss);
    finish(c, layout, logits, axis, o.reduction);
    // Sums are over all rows in their order, and so the same whatever the threads are.
    std::vector<double> terms(2 * c.rows.count);
    c.cross = terms.data();
    c.square = terms.data() + c.rows.count;
    auto kernel = kernels().cross_entropy;
    over_rows(c.rows.count, c.classes, [&](int64_t first, int64_t last) { kernel(c, first, last); });
    if (o.reduction == Reduction::none) return;
    double cross = 0, square = 0;
    for (int64_t row = 0; row < c.rows.count; row++) cross += c.cross[row];
    if (o.z_loss != 0)
        for (int64_t row = 0; row < c.rows.count; row++) square += c.square[row];
    store_number(loss.data, c.dtype, cross / c.by_share + (o.z_loss != 0 ? square / c.by_count : 0));
}

void run_cross_entropy_backward(
    const py::object& upstream_, const py::object& logits_, const py::object& target_, const py::object& weight_, const py::object& lse_,
    const LossArguments& o, const py::object& grad_, const py::object& grad_target_) {
    Array upstream(upstream_), logits(logits_), target(target_), weight(weight_), lse(lse_), grad(grad_), grad_target(grad_target_);
    int axis = logits.ndim > 1;
    Layout layout(logits, axis);
    CrossEntropy c = cross_entropy_of(logits, target, weight, o, layout);
    layout.elements(upstream, c.upstream);
    layout.columns(grad, c.grad);
    layout.columns(grad_target, c.grad_target);
    halves(layout, lse, c);
    finish(c, layout, logits, axis, o.reduction);
    auto kernel = kernels().cross_entropy_backward;
    over_rows(c.rows.count, c.classes, [&](int64_t first, int64_t last) { kernel(c, first, last); });
}

// --- linear ----------------------------------------------------------------------------------------------------------

// (rows, columns), dense within a row, as tilegrad.cpu makes them.
void run_epilogue(const py::object& z_, const py::object& bias_, int activation, const py::object& pre_, const py::object& out_) {
    Array z(z_), bias(bias_), pre(pre_), out(out_);
    Epilogue e{};
    e.rows = out.shape[0];
    e.columns = out.shape[1];
    e.dtype = out.dtype();
    e.activation = activation;
    e.z = z.data;
    e.z_row = z.strides[0];
    e.bias = bias.data;
    e.pre = pre.data;
    e.pre_row = pre ? pre.strides[0] : 0;
    e.out = out.data;
    e.out_row = out.strides[0];
    auto kernel = kernels().epilogue;
    over_rows(e.rows, e.columns, [&](int64_t first, int64_t last) { kernel(e, first, last); });
}

// Returns nothing; the sums over the rows are rounded into grad_bias.
void run_epilogue_backward(
    const py::object& grad_, const py::object& saved_, int activation, const py::object& dz_, const py::object& grad_bias_) {
    Array grad(grad_), saved(saved_), dz(dz_), grad_bias(grad_bias_);
    EpilogueBackward e{};
    e.rows = grad.shape[0];
    e.columns = grad.shape[1];
    e.dtype = grad.dtype();
    e.activation = activation;
    e.grad = grad.data;
    e.grad_row = grad.strides[0];
    e.grad_column = grad.strides[1];
    e.saved = saved.data;
    e.saved_row = saved ? saved.strides[0] : 0;
    e.dz = dz.data;
    e.dz_row = dz ? dz.strides[0] : 0;
    int64_t width = grad_bias ? grad_bias.size() : 0;
    // Blocks of rows that do not depend on the threads, so that the sums do not either.
    int64_t block = e.rows / SUMS + 1, blocks = (e.rows + block - 1) / block;
    std::vector<double> sums(grad_bias ? blocks * width : 0, 0.0);
    auto kernel = kernels().epilogue_backward;
    over_rows(blocks, block * e.columns, [&](int64_t first, int64_t last) {
        for (int64_t i = first; i < last; i++) {
            EpilogueBackward part = e;
            if (grad_bias) part.bias_sums = sums.data() + i * width;
            int64_t end = (i + 1) * block;
            kernel(part, i * block, end < e.rows ? end : e.rows);
        }
    });
    for (int64_t j = 0; j < width; j++) {
        double total = 0;
        for (int64_t i = 0; i < blocks; i++) total += sums[i * width + j];
        store_number(grad_bias.data + j * grad_bias.strides[0], grad_bias.dtype(), total);
    }
}

// Both dense in the same order.
void run_convert(const py::object& from_, const py::object& to_) {
    Array from(from_), to(to_);
    DType a = from.dtype(), b = to.dtype();
    over_rows(from.size(), 1, [&](int64_t first, int64_t last) {
        kernels().convert(from.data + first * bytes_of(a), a, to.data + first * bytes_of(b), b, last - first);
    });
}

void run_scale(const py::object& x_, double factor) {
    Array x(x_);
    DType dtype = x.dtype();
    over_rows(x.size(), 1, [&](int64_t first, int64_t last) {
        kernels().scale(dtype, x.data + first * bytes_of(dtype), last - first, factor);
    });
}

// --- optimisers ------------------------------------------------------------------------------------------------------

// Parameters are of all sizes: each is cut by itself, and the pieces of all are shared out together.
template <class Options> void over_parameters(
    const std::vector<Parameter>& parameters, const Options& options, void (*kernel)(const Options&, const Parameter&, int64_t, int64_t)) {
    struct Piece {
        const Parameter* of;
        int64_t first, last;
    };
    std::vector<Piece> pieces;
    int64_t all = 0;
    for (auto& p : parameters) {
        for (int64_t first = 0; first < p.count; first += SERIAL)
            pieces.push_back({&p, first, first + SERIAL < p.count ? first + SERIAL : p.count});
        all += p.count;
    }
    int64_t count = static_cast<int64_t>(pieces.size());
    over_rows(count, count ? all / count + 1 : 1, [&](int64_t first, int64_t last) {
        for (int64_t i = first; i < last; i++) kernel(options, *pieces[i].of, pieces[i].first, pieces[i].last);
    });
}

std::vector<Parameter> parameters_of(const py::list& values, const py::list& grads, const py::list& first, const py::list& second, const py::list& largest) {
    std::vector<Parameter> found(values.size());
    for (size_t i = 0; i < found.size(); i++) {
        Array value(values[i]), grad(grads[i]);
        auto state = [&](const py::list& list) { return list.size() ? Array(list[i]).data : nullptr; };
        found[i] = {value.dtype(), value.size(), value.data, grad.data, state(first), state(second), state(largest)};
    }
    return found;
}

void run_sgd(const py::list& values, const py::list& grads, const py::list& momenta, double lr, double momentum, double dampening,
             double weight_decay, bool nesterov, bool maximize, bool first_step) {
    Sgd options{lr, momentum, dampening, weight_decay, nesterov, maximize, first_step};
    over_parameters(parameters_of(values, grads, momenta, py::list(), py::list()), options, kernels().sgd);
}

void run_adam(const py::list& values, const py::list& grads, const py::list& first, const py::list& second, const py::list& largest,
              double lr, double beta1, double beta2, double eps, double weight_decay, bool decoupled, bool maximize, int64_t step) {
    Adam options{lr, beta1, beta2, eps, weight_decay, decoupled, maximize, step};
    over_parameters(parameters_of(values, grads, first, second, largest), options, kernels().adam);
}
}  // namespace
}  // namespace tilegrad::cpu

PYBIND11_MODULE(_C, m) {
    using namespace tilegrad::cpu;
    m.doc() = "The compiled kernels of tilegrad, for the use of tilegrad.cpu.";
    py::enum_<Reduction>(m, "Reduction").value("none", Reduction::none).value("sum", Reduction::sum).value("mean", Reduction::mean);
    py::class_<LossArguments>(m, "LossArguments")
        .def(py::init<Reduction, int64_t, double, double, double, double, double>(), py::arg("reduction"), py::arg("ignore_index"),
             py::arg("label_smoothing"), py::arg("z_loss"), py::arg("softcap"), py::arg("by_share") = -1.0, py::arg("by_count") = -1.0);
    m.def("know_bfloat16", &know_bfloat16, py::arg("dtype"));
    m.def("isa", [] { return std::string(kernels().name); }, "The instruction set that the kernels use here.");
    m.def("num_threads", &num_threads);
    m.def("set_num_threads", &set_num_threads, py::arg("threads"));
    m.def("softmax", &run_softmax, py::arg("x"), py::arg("y"), py::arg("axis"), py::arg("log"), py::arg("out"));
    m.def("cross_entropy", &run_cross_entropy);
    m.def("cross_entropy_backward", &run_cross_entropy_backward);
    m.def("epilogue", &run_epilogue);
    m.def("epilogue_backward", &run_epilogue_backward);
    m.def("convert", &run_convert);
    m.def("scale", &run_scale);
    m.def("sgd", &run_sgd);
    m.def("adam", &run_adam);
}
