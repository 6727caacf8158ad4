"""The elementwise operations, casts and sums: each forward above its derivative, once for both array libraries.

A derivative uses operators, ``namespace(grad)`` and the classes of this file, so that handed tensors it is recorded in
its turn. The functions that apply these classes are in functions.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from . import activations
from .graph import ArrayFunction, Variable
from .storage import Array, is_floating, namespace, wide_dtype

# --- dtypes -----------------------------------------------------------------------------------------------------------


class To(ArrayFunction):
    keeps_half = False
    torch_name = "ToCopyBackward0"

    @staticmethod
    def forward(ctx: Any, x: Array, dt: np.dtype) -> Array:
        ctx.was = x.dtype
        return x.astype(dt, copy=False)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        return cast(grad, ctx.was), None


def cast(x: Any, dt: np.dtype) -> Any:
    """``x`` (tensor or array) in another dtype; itself where it has it already."""
    return x if dtype_of(x) == dt else To.apply(x, dt)


def dtype_of(x: Any) -> np.dtype:
    """The NumPy dtype of a tensor's or array's elements."""
    return x._array.dtype if isinstance(x, Variable) else x.dtype


def widened(x: Any) -> Any:
    """``x`` in the dtype it is computed with: 16-bit floats become float32."""
    return cast(x, wide_dtype(dtype_of(x)))


# --- elementwise, two operands ----------------------------------------------------------------------------------------


def _kept(shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(1 if i in axes else n for i, n in enumerate(shape))


class Broadcast(ArrayFunction):
    """A view in which dimensions of size 1, and new leading ones, are repeated with stride 0."""

    torch_name = "ExpandBackward0"

    @staticmethod
    def forward(ctx: Any, x: Array, shape: tuple[int, ...]) -> Array:
        ctx.shape = x.shape
        view = namespace(x).broadcast_to(x, shape)
        if isinstance(view, np.ndarray) and x.flags.writeable:
            view = np.lib.stride_tricks.as_strided(x, shape, view.strides)  # broadcast_to's views are read-only
        return view

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        return sum_to(grad, ctx.shape), None


class Sum(ArrayFunction):
    @staticmethod
    def forward(ctx: Any, x: Array, axes: tuple[int, ...], keepdim: bool) -> Array:
        ctx.shape, ctx.axes = x.shape, axes
        if len(axes) < x.ndim:
            ctx.torch_name = "SumBackward1"
        return x.sum(axis=axes, keepdims=keepdim, dtype=wide_dtype(x.dtype) if is_floating(x.dtype) else np.int64)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        return Broadcast.apply(grad.reshape(_kept(ctx.shape, ctx.axes)), ctx.shape), None, None


def sum_to(grad: Any, like: Any) -> Any:
    """Undo broadcasting: sum ``grad`` over the dimensions in which ``like`` (a shape, None: a scalar) was repeated."""
    if like is None:
        return None
    if grad.shape == like:
        return grad
    lead = len(grad.shape) - len(like)
    axes = tuple(range(lead)) + tuple(i + lead for i, n in enumerate(like) if n == 1 and grad.shape[i + lead] != 1)
    summed = Sum.apply(grad, axes, True)
    return summed.reshape(like)


def _shape(x: Any) -> tuple[int, ...] | None:
    return getattr(x, "shape", None)


class Add(ArrayFunction):
    @staticmethod
    def forward(ctx: Any, a: Array, b: Array) -> Array:
        ctx.shapes = _shape(a), _shape(b)
        return a + b

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        return sum_to(grad, ctx.shapes[0]), sum_to(grad, ctx.shapes[1])


class Sub(ArrayFunction):
    @staticmethod
    def forward(ctx: Any, a: Array, b: Array) -> Array:
        ctx.shapes = _shape(a), _shape(b)
        return a - b

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        return sum_to(grad, ctx.shapes[0]), sum_to(-grad, ctx.shapes[1]) if ctx.needs_input_grad[1] else None


class Mul(ArrayFunction):
    @staticmethod
    def forward(ctx: Any, a: Array, b: Array) -> Array:
        # Each factor is kept only for the other's gradient.
        need_a, need_b = ctx.needs_input_grad or (False, False)
        ctx.save(b if need_a else None, a if need_b else None)
        ctx.shapes = _shape(a), _shape(b)
        return a * b

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        b, a = ctx.saved
        need_a, need_b = ctx.needs_input_grad
        return (
            sum_to(grad * b, ctx.shapes[0]) if need_a else None,
            sum_to(grad * a, ctx.shapes[1]) if need_b else None,
        )


class Div(ArrayFunction):
    @staticmethod
    def forward(ctx: Any, a: Array, b: Array) -> Array:
        ctx.save(a, b)
        return a / b

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        a, b = ctx.saved
        need_a, need_b = ctx.needs_input_grad
        return (
            sum_to(grad / b, _shape(a)) if need_a else None,
            sum_to(-grad * (a / b / b), _shape(b)) if need_b else None,
        )


class Pow(ArrayFunction):
    @staticmethod
    def forward(ctx: Any, a: Array, b: Array) -> Array:
        y = a**b
        ctx.save(a, b, y)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        a, b, y = ctx.saved
        xp = namespace(grad)
        need_a, need_b = ctx.needs_input_grad
        grad_a = grad_b = None
        if need_a:
            if _shape(b) is None:
                grad_a = grad * (b * a ** (b - 1)) if b != 0 else xp.zeros_like(grad)
            else:  # x⁰ has slope 0 also at 0, where 0·x⁻¹ would be NaN
                grad_a = sum_to(grad * xp.where(b == 0, 0, b * a ** (b - 1)), _shape(a))
        if need_b:  # 0ᵇ has slope 0 for b ≥ 0
            log_a = float(np.log(a)) if _shape(a) is None else xp.log(a)
            grad_b = sum_to(grad * xp.where((a == 0) & (b >= 0), 0, y * log_a), _shape(b))
        return grad_a, grad_b


class Maximum(ArrayFunction):
    pick = "maximum"

    @staticmethod
    def forward(ctx: Any, a: Array, b: Array) -> Array:
        ctx.save(a, b)
        return getattr(namespace(a if hasattr(a, "dtype") else b), type(ctx).pick)(a, b)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        a, b = ctx.saved
        # The one picked gets the gradient, equals share it, and beside NaN both get it (torch's convention).
        xp = namespace(grad)
        zero, shared = xp.zeros_like(grad), xp.where(a == b, 0.5 * grad, grad)
        a_loses, b_loses = (a < b, a > b) if type(ctx).pick == "maximum" else (a > b, a < b)
        return sum_to(xp.where(a_loses, zero, shared), _shape(a)), sum_to(xp.where(b_loses, zero, shared), _shape(b))


class Minimum(Maximum):
    pick = "minimum"


class Where(ArrayFunction):
    @staticmethod
    def forward(ctx: Any, condition: Array, a: Array, b: Array) -> Array:
        ctx.save(condition)
        ctx.shapes = _shape(a), _shape(b)
        dt = (a if hasattr(a, "dtype") else b).dtype  # of bfloat16 and a number NumPy's where makes float64
        return namespace(condition).where(condition, a, b).astype(dt, copy=False)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        (condition,) = ctx.saved
        xp = namespace(grad)
        zero = xp.zeros_like(grad)
        return (
            None,
            sum_to(xp.where(condition, grad, zero), ctx.shapes[0]),
            sum_to(xp.where(condition, zero, grad), ctx.shapes[1]),
        )


class Clamp(ArrayFunction):
    torch_name = "ClampBackward1"

    @staticmethod
    def forward(ctx: Any, x: Array, low: float | None, high: float | None) -> Array:
        ctx.save(x)
        ctx.bounds = low, high
        xp = namespace(x)
        y = x if low is None else xp.maximum(x, low)  # in this order NaN survives, and high wins over low
        return y if high is None else xp.minimum(y, high)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        (x,) = ctx.saved
        low, high = ctx.bounds
        xp = namespace(grad)
        inside = (x >= low) if high is None else (x <= high) if low is None else (x >= low) & (x <= high)
        return xp.where(inside, grad, xp.zeros_like(grad)), None, None


# --- elementwise, one operand -----------------------------------------------------------------------------------------


class Neg(ArrayFunction):
    @staticmethod
    def forward(ctx: Any, x: Array) -> Array:
        return -x

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        return -grad


class Unary(ArrayFunction):
    """y = of(xp, x, *parameters), with dy/dx = slope(xp, x or y, *parameters)."""

    uses_output = False  # slope is a function of y, and x need not be kept
    of: Callable[..., Any]
    slope: Callable[..., Any]

    @staticmethod
    def forward(ctx: Any, x: Array, *parameters: float) -> Array:
        y = type(ctx).of(namespace(x), widened(x), *parameters)
        ctx.save(y if type(ctx).uses_output else x)
        ctx.parameters = parameters
        return y

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        (kept,) = ctx.saved
        slope = type(ctx).slope(namespace(grad), widened(kept), *ctx.parameters)
        return (grad * slope, *[None] * len(ctx.parameters))


class Exp(Unary):
    uses_output = True
    of = staticmethod(lambda xp, x: xp.exp(x))
    slope = staticmethod(lambda xp, y: y)


class Expm1(Unary):
    uses_output = True
    of = staticmethod(lambda xp, x: xp.expm1(x))
    slope = staticmethod(lambda xp, y: y + 1)


class Log(Unary):
    of = staticmethod(lambda xp, x: xp.log(x))
    slope = staticmethod(lambda xp, x: 1 / x)


class Log2(Unary):
    of = staticmethod(lambda xp, x: xp.log2(x))
    slope = staticmethod(lambda xp, x: 1 / (x * math.log(2)))


class Log10(Unary):
    of = staticmethod(lambda xp, x: xp.log10(x))
    slope = staticmethod(lambda xp, x: 1 / (x * math.log(10)))


class Log1p(Unary):
    of = staticmethod(lambda xp, x: xp.log1p(x))
    slope = staticmethod(lambda xp, x: 1 / (x + 1))


class Sqrt(Unary):
    uses_output = True
    of = staticmethod(lambda xp, x: xp.sqrt(x))
    slope = staticmethod(lambda xp, y: 0.5 / y)


class Rsqrt(Unary):
    uses_output = True
    of = staticmethod(lambda xp, x: 1 / xp.sqrt(x))
    slope = staticmethod(lambda xp, y: -0.5 * y * y * y)


class Reciprocal(Unary):
    uses_output = True
    of = staticmethod(lambda xp, x: 1 / x)
    slope = staticmethod(lambda xp, y: -y * y)


class Abs(Unary):
    of = staticmethod(lambda xp, x: xp.abs(x))
    slope = staticmethod(lambda xp, x: Sign.apply(x))


class Step(Unary):
    """Flat wherever it has a slope."""

    slope = staticmethod(lambda xp, x, *parameters: xp.zeros_like(x))


class Sign(Step):
    of = staticmethod(lambda xp, x: (x > 0).astype(x.dtype) - (x < 0).astype(x.dtype))  # of NaN 0, as in torch


class Floor(Step):
    of = staticmethod(lambda xp, x: xp.floor(x))


class Ceil(Step):
    of = staticmethod(lambda xp, x: xp.ceil(x))


class Round(Step):
    of = staticmethod(lambda xp, x, decimals: xp.around(x, decimals))


class Sin(Unary):
    of = staticmethod(lambda xp, x: xp.sin(x))
    slope = staticmethod(lambda xp, x: xp.cos(x))


class Cos(Unary):
    of = staticmethod(lambda xp, x: xp.cos(x))
    slope = staticmethod(lambda xp, x: -xp.sin(x))


class Tan(Unary):
    uses_output = True
    of = staticmethod(lambda xp, x: xp.tan(x))
    slope = staticmethod(lambda xp, y: 1 + y * y)


class Tanh(Unary):
    uses_output = True
    of = staticmethod(lambda xp, x: xp.tanh(x))
    slope = staticmethod(lambda xp, y: 1 - y * y)


class Erfc(Unary):
    of = staticmethod(lambda xp, x: activations.erfc(x))
    slope = staticmethod(lambda xp, x: -2 / math.sqrt(math.pi) * xp.exp(-x * x))


class Sigmoid(Unary):
    of = staticmethod(activations.sigmoid)
    slope = staticmethod(activations.sigmoid_grad)


class LogSigmoid(Unary):
    of = staticmethod(activations.log_sigmoid)
    slope = staticmethod(activations.log_sigmoid_grad)


class Relu(Unary):
    uses_output = True  # y > 0 exactly where x > 0
    of = staticmethod(activations.relu)
    slope = staticmethod(activations.relu_grad)


class LeakyRelu(Unary):
    of = staticmethod(activations.leaky_relu)
    slope = staticmethod(activations.leaky_relu_grad)


class Elu(Unary):
    of = staticmethod(activations.elu)
    slope = staticmethod(activations.elu_grad)


class Selu(Unary):
    of = staticmethod(activations.selu)
    slope = staticmethod(activations.selu_grad)


class Gelu(Unary):
    of = staticmethod(activations.gelu)
    slope = staticmethod(activations.gelu_grad)


class GeluTanh(Unary):
    of = staticmethod(activations.gelu_tanh)
    slope = staticmethod(activations.gelu_tanh_grad)


class Silu(Unary):
    of = staticmethod(activations.silu)
    slope = staticmethod(activations.silu_grad)


class Mish(Unary):
    of = staticmethod(activations.mish)
    slope = staticmethod(activations.mish_grad)


class Softplus(Unary):
    of = staticmethod(activations.softplus)
    slope = staticmethod(activations.softplus_grad)


class BinaryCrossEntropy(ArrayFunction):
    """−(y log p + (1 − y) log(1 − p)), the logarithms not below −100: finite, with finite slopes, at p = 0 and 1."""

    @staticmethod
    def forward(ctx: Any, p: Array, y: Array) -> Array:
        ctx.save(p, y)
        xp = namespace(p)
        q = widened(p)
        return -(y * xp.maximum(xp.log(q), -100) + (1 - y) * xp.maximum(xp.log1p(-q), -100))

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        p, y = ctx.saved
        xp = namespace(grad)
        of_p = grad * (p - y) / xp.maximum(p * (1 - p), 1e-12)
        return of_p, grad * (xp.maximum(xp.log(1 - p), -100) - xp.maximum(xp.log(p), -100))
