// The operations of engine/cpu.py: arrays become addresses and strides, and the work is shared out to threads.
//
// The arrays were made and checked in Python. Nothing is checked again here but what memory safety hangs on.

#include "operations.h"

#include <algorithm>
#include <utility>

#include "cpu/pool.h"

namespace tilegrad::cpu {

// --- threads ---------------------------------------------------------------------------------------------------------

constexpr int64_t SERIAL = 1 << 15;    // elements that are not worth a second thread
constexpr int64_t STREAMED = 8 << 20;  // bytes of an output that goes past the caches
constexpr int64_t SUMS = 32;           // of the rows' blocks whose sums are kept apart

// f(first, last) over rows of `columns` elements, without Python's lock where it takes long enough for that to matter.
template <class F> static void over_rows(int64_t rows, int64_t columns, F f) {
    int64_t elements = rows * columns;
    if (elements <= SERIAL) {
        f(0, rows);
        return;
    }
    Unlocked unlocked;
    int64_t most = elements / (SERIAL / 2);
    int threads = num_threads();
    share(rows, 1, most < threads ? static_cast<int>(most) : threads, f);
}

// --- softmax ---------------------------------------------------------------------------------------------------------

void run_softmax(const Array& x, const Array& y, int axis, bool log, const Array& out) {
    Softmax s{};
    Layout layout(out, axis);
    layout.columns(x, s.x);
    layout.columns(y, s.y);
    layout.columns(out, s.out);
    s.rows = layout.rows();
    s.columns = out.ndim > 0 ? out.shape[axis] : 1;
    s.log = log;
    s.in_dtype = x.dtype();
    s.out_dtype = out.dtype();
    if (y && y.dtype() != s.in_dtype) throw std::invalid_argument("expected a gradient and an output of one dtype");
    auto kernel = y ? kernels().softmax_backward : kernels().softmax;
    over_rows(s.rows.count, s.columns, [&](int64_t first, int64_t last) { kernel(s, first, last); });
}

// --- cross-entropy ---------------------------------------------------------------------------------------------------

static double weight_at(const char* weight, DType dtype, int64_t i) {
    double x;
    kernels().convert(weight + i * bytes_of(dtype), dtype, reinterpret_cast<char*>(&x), DType::float64, 1);
    return x;
}

static void store_number(char* to, DType dtype, double x) {
    kernels().convert(reinterpret_cast<const char*>(&x), DType::float64, to, dtype, 1);
}

// What a mean divides by: the weights of the targets that count, and their number.
static void denominators(CrossEntropy& c) {
    c.by_share = c.by_count = static_cast<double>(c.rows.count);
    if (!c.indices.data) return;
    int64_t count = 0, ignored = c.ignore_index;
    for_indices(c.rows, c.indices, c.index_dtype, 0, c.rows.count, [&](int64_t index) { count += index != ignored; });
    c.by_share = c.by_count = static_cast<double>(count);
    if (!c.weight) return;
    c.by_share = 0;
    for_indices(c.rows, c.indices, c.index_dtype, 0, c.rows.count, [&](int64_t index) {
        if (index != ignored) c.by_share += weight_at(c.weight, c.dtype, index);
    });
}

// In an order that hangs on nothing but their number, in chains that do not wait for each other.
static double sum_of(const double* terms, int64_t count) {
    constexpr int CHAINS = 8;
    double sums[CHAINS] = {};
    int64_t i = 0;
    for (; i + CHAINS <= count; i += CHAINS)
        for (int j = 0; j < CHAINS; j++) sums[j] += terms[i + j];
    for (; i < count; i++) sums[0] += terms[i];
    return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
}

std::optional<int64_t> first_bad_index(const Array& target, int64_t classes, int64_t ignore_index) {
    Index dtype = target.index();
    Lines lines;
    Layout layout(target, -1);
    layout.elements(target, lines);
    std::optional<int64_t> bad;
    Rows rows = layout.rows();
    for_indices(rows, lines, dtype, 0, rows.count, [&](int64_t index) {
        bool is_bad = index != ignore_index && static_cast<uint64_t>(index) >= static_cast<uint64_t>(classes);
        if (is_bad && !bad) bad = index;
    });
    return bad;
}

// What forward and backward have in common, into `c`: the layout keeps the places of its lines, so it must not move.
static Layout describe(CrossEntropy& c, const Array& logits, const Array& target, const Array& weight, const Array& lse,
                       const LossArguments& o, const Array& grad) {
    int axis = logits.ndim > 1;
    Layout layout(logits, axis);
    layout.columns(logits, c.logits);
    if (target.ndim == logits.ndim) {
        layout.columns(target, c.probabilities);
    } else {
        layout.elements(target, c.indices);
        c.index_dtype = target.index();
    }
    layout.columns(grad, c.grad);
    if (lse) {  // (2, rows): the halves of the logsumexp
        layout.elements(lse.data, lse.strides + 1, lse.ndim - 1, c.top);
        layout.elements(lse.data + lse.strides[0], lse.strides + 1, lse.ndim - 1, c.log_sum);
    }
    c.classes = logits.shape[axis];
    c.dtype = logits.dtype();
    c.weight = weight.data;
    c.ignore_index = o.ignore_index;
    c.label_smoothing = o.label_smoothing;
    c.z_loss = o.z_loss;
    c.softcap = o.softcap;
    c.by_share = o.by_share >= 0 ? o.by_share : 1;
    c.by_count = o.by_count >= 0 ? o.by_count : 1;
    return layout;
}

// Once all arrays are in the layout.
static void run(CrossEntropy& c, const Layout& layout, Reduction reduction, void (*kernel)(const CrossEntropy&, int64_t, int64_t),
                std::vector<double>* terms = nullptr) {
    c.rows = layout.rows();
    c.stream = c.rows.count * c.classes * bytes_of(c.dtype) >= STREAMED;
    if (reduction == Reduction::mean) denominators(c);
    if (terms) {
        *terms = numbers(2 * c.rows.count);
        c.cross = terms->data();
        c.square = terms->data() + c.rows.count;
    }
    over_rows(c.rows.count, c.classes, [&](int64_t first, int64_t last) { kernel(c, first, last); });
}

void run_cross_entropy(
    const Array& logits, const Array& target, const Array& weight, const LossArguments& o, const Array& loss,
    const Array& lse, const Array& argmax, const Array& grad) {
    CrossEntropy c{};
    Layout layout = describe(c, logits, target, weight, lse, o, grad);
    layout.elements(argmax, c.argmax);
    if (o.reduction == Reduction::none) layout.elements(loss, c.loss);
    std::vector<double> terms;
    run(c, layout, o.reduction, kernels().cross_entropy, &terms);
    if (o.reduction == Reduction::none) return;
    double cross = sum_of(c.cross, c.rows.count), square = o.z_loss != 0 ? sum_of(c.square, c.rows.count) : 0;
    store_number(loss.data, c.dtype, cross / c.by_share + (o.z_loss != 0 ? square / c.by_count : 0));
}

void run_cross_entropy_backward(
    const Array& upstream, const Array& logits, const Array& target, const Array& weight, const Array& lse,
    const LossArguments& o, const Array& grad, const Array& grad_target) {
    CrossEntropy c{};
    Layout layout = describe(c, logits, target, weight, lse, o, grad);
    layout.elements(upstream, c.upstream);
    layout.columns(grad_target, c.grad_target);
    run(c, layout, o.reduction, kernels().cross_entropy_backward);
}

// --- linear ----------------------------------------------------------------------------------------------------------

void run_epilogue(const Array& z, const Array& bias, int activation, const Array& pre, const Array& out) {
    Epilogue e{};
    e.rows = out.shape[0];
    e.columns = out.shape[1];
    e.dtype = out.dtype();
    e.z_dtype = z.dtype();
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

void run_epilogue_backward(
    const Array& grad, const Array& saved, int activation, const Array& dz, const Array& grad_bias) {
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
    std::vector<double> sums = numbers(grad_bias ? blocks * width : 0);
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

// --- small linears ---------------------------------------------------------------------------------------------------

// c = a·b, each transposed or not.
static void multiply(DType dtype, const Matrix& a, bool turn_a, const Matrix& b, bool turn_b, const Matrix& c) {
    int64_t size = bytes_of(dtype), a_row = a.columns * size, b_row = b.columns * size;
    Product p{};
    p.dtype = dtype;
    p.rows = c.rows;
    p.columns = c.columns;
    p.depth = turn_a ? a.rows : a.columns;
    p.a = a.data;
    p.a_row = turn_a ? size : a_row;
    p.a_column = turn_a ? a_row : size;
    p.b = b.data;
    p.b_row = turn_b ? size : b_row;
    p.b_column = turn_b ? b_row : size;
    p.c = c.data;
    p.c_row = c.columns * size;
    kernels().product(p);
}

bool run_small_linear(const Array& input, const Array& weights, const Array& bias, int activation, const Array& pre, const Array& out) {
    DType dtype = out.dtype();
    Matrix x, weight, z, y, b;
    if (out.size() > MOST_PRODUCT || bytes_of(dtype) == 2) return false;
    if (!is_matrix(input, dtype, x) || !is_matrix(weights, dtype, weight) || !is_matrix(out, dtype, y)) return false;
    if (bias && !is_matrix(bias, dtype, b)) return false;
    if (x.rows == 0 || x.columns == 0 || x.rows * weight.rows * weight.columns > MOST_PRODUCT) return false;
    if (pre ? !is_matrix(pre, dtype, z) : y.columns != weight.rows) return false;
    if (!pre) z = y;
    multiply(dtype, x, false, weight, true, z);
    if (!bias && activation < 0 && !pre) return true;
    Epilogue e{};
    e.rows = y.rows;
    e.columns = y.columns;
    e.dtype = e.z_dtype = dtype;
    e.activation = activation;
    e.z = z.data;
    e.z_row = z.columns * bytes_of(dtype);
    e.bias = b.data;
    e.pre = pre ? z.data : nullptr;
    e.pre_row = e.z_row;
    e.out = y.data;
    e.out_row = y.columns * bytes_of(dtype);
    kernels().epilogue(e, 0, e.rows);
    return true;
}

bool run_small_linear_backward(const Array& of_out, const Array& input, const Array& weights, const Array& saved, int activation,
                               const Array& grad_input, const Array& grad_weight, const Array& grad_bias) {
    DType dtype = of_out.dtype();
    int64_t size = bytes_of(dtype);
    Matrix grad, x, weight, kept, of_input, of_weight;
    if (of_out.size() > MOST_PRODUCT || size == 2) return false;
    if (!is_matrix(of_out, dtype, grad) || !is_matrix(input, dtype, x) || !is_matrix(weights, dtype, weight)) return false;
    if (saved && !is_matrix(saved, dtype, kept)) return false;
    if (grad_input && !is_matrix(grad_input, dtype, of_input)) return false;
    if (grad_weight && !is_matrix(grad_weight, dtype, of_weight)) return false;
    if (x.rows == 0 || x.columns == 0 || weight.rows == 0 || x.rows * weight.rows * weight.columns > MOST_PRODUCT) return false;
    alignas(64) char room[MOST_PRODUCT * sizeof(double)];
    Matrix dz{grad.data, grad.rows, weight.rows};
    if (activation >= 0 || grad_bias) {
        double sums[MOST_PRODUCT];
        std::fill(sums, sums + weight.rows, 0.0);
        EpilogueBackward e{};
        e.rows = grad.rows;
        e.columns = grad.columns;
        e.dtype = dtype;
        e.activation = activation;
        e.grad = grad.data;
        e.grad_row = grad.columns * size;
        e.grad_column = size;
        e.saved = kept.data;
        e.saved_row = kept.columns * size;
        if (activation >= 0) e.dz = dz.data = room;
        e.dz_row = dz.columns * size;
        e.bias_sums = grad_bias ? sums : nullptr;
        kernels().epilogue_backward(e, 0, e.rows);
        if (grad_bias)
            kernels().convert(reinterpret_cast<const char*>(sums), DType::float64, grad_bias.data, dtype, weight.rows);
    }
    if (grad_input) multiply(dtype, dz, false, weight, false, of_input);
    if (grad_weight) multiply(dtype, dz, true, x, false, of_weight);
    return true;
}

// --- elements --------------------------------------------------------------------------------------------------------

void run_activation(const Array& x, int activation, const Array& out) {
    if (x.size() != out.size() || x.dtype() != out.dtype()) throw std::invalid_argument("activation: expected an output like the input");
    Epilogue e{};
    e.dtype = e.z_dtype = out.dtype();
    e.activation = activation;
    int64_t size = bytes_of(e.dtype);
    over_rows(x.size(), 1, [&](int64_t first, int64_t last) {
        Epilogue part = e;
        part.columns = last - first;
        part.z = x.data + first * size;
        part.out = out.data + first * size;
        kernels().epilogue(part, 0, 1);
    });
}

void run_activation_backward(const Array& grad, const Array& saved, int activation, const Array& out) {
    if (grad.size() != out.size() || saved.size() != out.size() || grad.dtype() != out.dtype() || saved.dtype() != out.dtype())
        throw std::invalid_argument("activation_backward: expected an output like the gradient and what was saved");
    EpilogueBackward e{};
    e.dtype = out.dtype();
    e.activation = activation;
    e.grad_column = bytes_of(e.dtype);
    over_rows(grad.size(), 1, [&](int64_t first, int64_t last) {
        EpilogueBackward part = e;
        part.columns = last - first;
        part.grad = grad.data + first * e.grad_column;
        part.saved = saved.data + first * e.grad_column;
        part.dz = out.data + first * e.grad_column;
        kernels().epilogue_backward(part, 0, 1);
    });
}

void run_convert(const Array& from, const Array& to) {
    DType a = from.dtype(), b = to.dtype();
    over_rows(from.size(), 1, [&](int64_t first, int64_t last) {
        kernels().convert(from.data + first * bytes_of(a), a, to.data + first * bytes_of(b), b, last - first);
    });
}

void run_scale(const Array& x, double factor) {
    DType dtype = x.dtype();
    over_rows(x.size(), 1, [&](int64_t first, int64_t last) {
        kernels().scale(dtype, x.data + first * bytes_of(dtype), last - first, factor);
    });
}

// --- optimisers ------------------------------------------------------------------------------------------------------

// Parameters are of all sizes: each is cut by itself, and the pieces of all are shared out together.
template <class Options> static void over_parameters(
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

// Nothing at all if one of the arrays is not for these kernels: of another dtype, with gaps, or in the memory of another.
static std::vector<Parameter> checked(const std::vector<Updated>& updated) {
    std::vector<Parameter> found(updated.size());
    std::vector<std::pair<char*, char*>> written;
    for (size_t i = 0; i < found.size(); i++) {
        auto& [arrays, step] = updated[i];
        Parameter& p = found[i];
        if (arrays[0].floating != DType::float32 && arrays[0].floating != DType::float64) return {};
        p.dtype = arrays[0].dtype();
        p.count = arrays[0].size();
        for (size_t j = 0; j < arrays.size(); j++) {
            const Array& array = arrays[j];
            if (!array) continue;
            Matrix matrix;
            bool dense = array.ndim == 0 || is_matrix(array, p.dtype, matrix);
            if (!dense || array.floating != p.dtype || array.size() != p.count) return {};
            if (j != 1) written.push_back({array.data, array.data + p.count * bytes_of(p.dtype)});
        }
        p.value = arrays[0].data;
        p.grad = arrays[1].data;
        p.first = arrays[2].data;
        p.second = arrays[3].data;
        p.largest = arrays[4].data;
        p.step = step;
    }
    std::sort(written.begin(), written.end());
    for (size_t i = 1; i < written.size(); i++)
        if (written[i].first < written[i - 1].second) return {};
    return found;
}

bool run_sgd(const std::vector<Updated>& updated, const Sgd& options) {
    auto parameters = checked(updated);
    over_parameters(parameters, options, kernels().sgd);
    return !parameters.empty();
}

bool run_adam(const std::vector<Updated>& updated, const Adam& options) {
    auto parameters = checked(updated);
    over_parameters(parameters, options, kernels().adam);
    return !parameters.empty();
}

}  // namespace tilegrad::cpu
