// What bindings.cpp offers to Python. Arrays that are "not given" or "not wanted" are empty ones.
#pragma once

#include <array>
#include <optional>
#include <vector>

#include "arrays.h"

namespace tilegrad::cpu {

// While one exists, other Python threads may run. (bindings.cpp knows how.)
class Unlocked {
  public:
    Unlocked();
    ~Unlocked();
    Unlocked(const Unlocked&) = delete;

  private:
    void* state_;
};

// --- rows ------------------------------------------------------------------------------------------------------------

// Forward without y; with it, x is the gradient of the output y.
void run_softmax(const Array& x, const Array& y, int axis, bool log, const Array& out);

enum class Reduction : int { none, sum, mean };

struct LossArguments {
    Reduction reduction;
    int64_t ignore_index;
    double label_smoothing, z_loss, softcap;
    double by_share, by_count;  // the denominators, if the rows are not all there are; else −1
};

void run_cross_entropy(const Array& logits, const Array& target, const Array& weight, const LossArguments& o, const Array& loss,
                       const Array& lse, const Array& argmax, const Array& grad);
void run_cross_entropy_backward(const Array& upstream, const Array& logits, const Array& target, const Array& weight, const Array& lse,
                                const LossArguments& o, const Array& grad, const Array& grad_target);

// The first index outside of [0, classes) that is not the one to ignore.
std::optional<int64_t> first_bad_index(const Array& target, int64_t classes, int64_t ignore_index);

// --- linear ----------------------------------------------------------------------------------------------------------

// c = a·b, or c += a·b where c is float32. Operands are bfloat16, or float32 and rounded to it, of any strides; c is
// either, dense within a row. Only where the processor has instructions for it.
bool multiplies_bfloat16();
void run_product(const Array& a, const Array& b, const Array& c, bool add);

// Of (rows, columns), dense within a row, as engine/cpu.py makes them; z may be float32 where the rest has 16 bits. Sums
// over the rows are rounded into grad_bias.
void run_epilogue(const Array& z, const Array& bias, int activation, const Array& pre, const Array& out);
void run_epilogue_backward(const Array& grad, const Array& saved, int activation, const Array& dz, const Array& grad_bias);

// All of a linear in one call, if it is so small that the calls would cost more than the work; otherwise false, and
// nothing is written.
bool run_small_linear(const Array& input, const Array& weights, const Array& bias, int activation, const Array& pre, const Array& out);
bool run_small_linear_backward(const Array& of_out, const Array& input, const Array& weights, const Array& saved, int activation,
                               const Array& grad_input, const Array& grad_weight, const Array& grad_bias);

// --- elements of dense arrays ----------------------------------------------------------------------------------------

void run_activation(const Array& x, int activation, const Array& out);
void run_activation_backward(const Array& grad, const Array& saved, int activation, const Array& out);
void run_convert(const Array& from, const Array& to);
void run_scale(const Array& x, double factor);

// --- optimisers ------------------------------------------------------------------------------------------------------

struct Updated {
    std::array<Array, 5> arrays;  // as in Parameter: value, grad, first, second, largest
    int64_t step;
};

// One step on all parameters; false, and nothing is done, if they are not arrays for these kernels.
bool run_sgd(const std::vector<Updated>& parameters, const Sgd& options);
bool run_adam(const std::vector<Updated>& parameters, const Adam& options);

}  // namespace tilegrad::cpu
