"""Reductions, scans and matrix products: each forward above its derivative, then the functions by torch's names.

Sums of 16-bit floats are kept in float32 and rounded once. ``dim`` is an int, a tuple of them, or None for all.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from .elementwise import Broadcast, Sign, Sqrt, Sum, _kept, cast, dtype_of, sum_to, widened
from .functions import _float, abs, exp, log, same_device
from .graph import ArrayFunction, Variable
from .storage import Array, is_floating, namespace, numpy_dtype, on_device_of, wide, wide_dtype

Dim = int | tuple[int, ...] | list[int] | None
Function = TypeVar("Function", bound=Callable[..., Any])
_TORCH_NAMES = {"axis": "dim", "keepdims": "keepdim"}


def axes_of(name: str, ndim: int, dim: Dim) -> tuple[int, ...]:
    """``dim`` as distinct non-negative axes; IndexError if out of range, ValueError if repeated."""
    if dim is None:
        return tuple(range(ndim))
    dims = (dim,) if isinstance(dim, (int, np.integer)) else tuple(dim)
    if not dims:
        return tuple(range(ndim))
    axes = []
    for d in dims:
        if not -max(ndim, 1) <= d < max(ndim, 1):
            raise IndexError(f"{name}: dim {d} is out of range for a tensor of {ndim} dimensions")
        if ndim:
            axes.append(int(d) % ndim)
    if len(set(axes)) != len(axes):
        raise ValueError(f"{name}: dim {list(dims)} names a dimension twice")
    return tuple(axes)


def axis_of(name: str, ndim: int, dim: int) -> int:
    """One ``dim`` as a non-negative axis (0 for a 0-d tensor)."""
    if isinstance(dim, bool) or not isinstance(dim, (int, np.integer)):
        raise TypeError(f"{name}: expected dim to be an int, got {type(dim).__name__}")
    return (axes_of(name, ndim, int(dim)) or (0,))[0]


def numpy_names(function: Function) -> Function:
    """NumPy's names, ``axis`` and ``keepdims``, serve beside ``dim`` and ``keepdim``, as they do in torch."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if kwargs:
            kwargs = {_TORCH_NAMES.get(k, k): v for k, v in kwargs.items()}
        return function(*args, **kwargs)

    return wrapped  # type: ignore[return-value]


class Mean(ArrayFunction):
    @staticmethod
    def forward(ctx: Any, x: Array, axes: tuple[int, ...], keepdim: bool) -> Array:
        ctx.shape, ctx.axes = x.shape, axes
        ctx.count = math.prod(x.shape[i] for i in axes)
        if len(axes) < x.ndim:
            ctx.torch_name = "MeanBackward1"
        return x.sum(axis=axes, keepdims=keepdim, dtype=wide_dtype(x.dtype)) / ctx.count  # of nothing: 0/0

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        share = grad / max(ctx.count, 1)
        return Broadcast.apply(share.reshape(_kept(ctx.shape, ctx.axes)), ctx.shape), None, None

    @staticmethod
    def deviation(x: Any, axes: tuple[int, ...]) -> Any:
        return x - Mean.apply(x, axes, True)


class Var(ArrayFunction):
    """Squared deviations from the mean, summed and divided by ``degrees`` of freedom."""

    @staticmethod
    def forward(ctx: Any, x: Array, axes: tuple[int, ...], keepdim: bool, degrees: float) -> Array:
        ctx.save(x)
        ctx.axes, ctx.degrees = axes, degrees
        deviation = Mean.deviation(wide(x), axes)
        return (deviation * deviation).sum(axis=axes, keepdims=keepdim) / degrees

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        (x,) = ctx.saved
        grad = 2 * grad.reshape(_kept(x.shape, ctx.axes)) / ctx.degrees
        return grad * Mean.deviation(widened(x), ctx.axes), None, None, None


class Std(Sqrt):
    """The root of a variance: where that is 0, so is the gradient."""

    slope = staticmethod(lambda xp, y: xp.where(y == 0, xp.zeros_like(y), 0.5 / y))


class CumSum(ArrayFunction):
    torch_name = "CumsumBackward0"

    @staticmethod
    def forward(ctx: Any, x: Array, axis: int) -> Array:
        ctx.axis = axis
        return x.cumsum(axis=axis, dtype=wide_dtype(x.dtype) if is_floating(x.dtype) else np.int64)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        return Flip.apply(CumSum.apply(Flip.apply(grad, ctx.axis), ctx.axis), ctx.axis), None


class Flip(ArrayFunction):
    @staticmethod
    def forward(ctx: Any, x: Array, axis: int | tuple[int, ...]) -> Array:
        ctx.axis = axis
        return namespace(x).flip(x, axis).copy()  # torch has no negative strides either

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        return Flip.apply(grad, ctx.axis), None


class Extreme(ArrayFunction):
    """The largest (or smallest) over axes; those that attain it share the gradient equally."""

    torch_name = "AmaxBackward0"

    @staticmethod
    def forward(ctx: Any, x: Array, axes: tuple[int, ...], keepdim: bool, largest: bool) -> Array:
        y = x.max(axis=axes, keepdims=True) if largest else x.min(axis=axes, keepdims=True)
        y = y if keepdim else y.reshape(tuple(n for i, n in enumerate(x.shape) if i not in axes))
        ctx.save(x, y)
        ctx.keepdim_shape, ctx.axes = _kept(x.shape, axes), axes
        return y

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        x, y = ctx.saved
        y = y.reshape(ctx.keepdim_shape)
        hit = (x == y) | ((x != x) & (y != y))
        share = grad.reshape(ctx.keepdim_shape) / Sum.apply(hit, ctx.axes, True)
        return namespace(grad).where(hit, share, namespace(grad).zeros_like(share)), None, None, None


class LogSumExp(ArrayFunction):
    torch_name = "LogsumexpBackward0"

    @staticmethod
    def forward(ctx: Any, x: Array, axes: tuple[int, ...], keepdim: bool) -> Array:
        xp = namespace(x)
        z = wide(x)
        top = z.max(axis=axes, keepdims=True) if x.size else xp.zeros(_kept(x.shape, axes), z.dtype)
        top = xp.where(xp.isinf(top), xp.zeros_like(top), top)  # all −inf: exp(−inf − 0), and not −inf − (−inf)
        y = xp.log(xp.exp(z - top).sum(axis=axes, keepdims=True)) + top
        y = y if keepdim else y.reshape(tuple(n for i, n in enumerate(x.shape) if i not in axes))
        ctx.save(x, y)
        ctx.keepdim_shape = _kept(x.shape, axes)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        x, y = ctx.saved
        return grad.reshape(ctx.keepdim_shape) * namespace(grad).exp(x - y.reshape(ctx.keepdim_shape)), None, None


class Norm(ArrayFunction):
    """(Σ |x|ᵖ)^(1/p) over axes, with gradient 0 at 0."""

    torch_name = "LinalgVectorNormBackward0"

    @staticmethod
    def forward(ctx: Any, x: Array, p: float, axes: tuple[int, ...], keepdim: bool) -> Array:
        z = wide(x)
        y = (z * z if p == 2 else namespace(x).abs(z) ** p).sum(axis=axes, keepdims=keepdim) ** (1 / p)
        ctx.save(x, y)
        ctx.p, ctx.keepdim_shape = p, _kept(x.shape, axes)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        x, y = ctx.saved
        xp = namespace(grad)
        y = y.reshape(ctx.keepdim_shape)
        slope = x / xp.where(y == 0, xp.ones_like(y), y)
        if ctx.p != 2:  # |x/y|ᵖ⁻¹, with the sign of x
            slope = xp.where(x == 0, xp.zeros_like(x), Sign.apply(x) * abs(slope) ** (ctx.p - 1))
        return grad.reshape(ctx.keepdim_shape) * slope, None, None, None


class MatMul(ArrayFunction):
    """Matrices (…, N, K) @ (…, K, M), both at least 2-d; the leading dimensions broadcast."""

    torch_name = "MmBackward0"

    @staticmethod
    def forward(ctx: Any, a: Array, b: Array) -> Array:
        need_a, need_b = ctx.needs_input_grad or (False, False)
        ctx.save(b if need_a else None, a if need_b else None)
        ctx.shapes = a.shape, b.shape
        a, b = wide(a), wide(b)
        if b.ndim == 2 and a.ndim > 2:  # one large product instead of many small ones
            return (a.reshape(-1, a.shape[-1]) @ b).reshape(*a.shape[:-1], b.shape[-1])
        return namespace(a).matmul(a, b)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        b, a = ctx.saved
        need_a, need_b = ctx.needs_input_grad
        grad_a = grad_b = None
        if need_a:
            grad_a = sum_to(MatMul.apply(grad, b.swapaxes(-1, -2)), ctx.shapes[0])
        if need_b:
            if len(ctx.shapes[1]) == 2 and len(ctx.shapes[0]) > 2:
                a, grad = a.reshape(-1, ctx.shapes[0][-1]), grad.reshape(-1, grad.shape[-1])
            grad_b = sum_to(MatMul.apply(a.swapaxes(-1, -2), grad), ctx.shapes[1])
        return grad_a, grad_b


# --- the functions, by torch's names ----------------------------------------------------------------------------------


@numpy_names
def sum(input: Any, dim: Dim = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    """The sum over ``dim``; integers and bools are summed as int64."""
    if dtype is not None:
        input = cast(input, numpy_dtype(dtype))
    return Sum.apply(input, axes_of("sum", input.ndim, dim), keepdim)


@numpy_names
def mean(input: Any, dim: Dim = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    """The mean over ``dim``; TypeError for integers unless a floating ``dtype`` is given."""
    if dtype is not None:
        input = cast(input, numpy_dtype(dtype))
    if not is_floating(dtype_of(input)):
        raise TypeError(f"mean: expected a floating dtype, got {input.dtype}; pass dtype= or convert with .float()")
    return Mean.apply(input, axes_of("mean", input.ndim, dim), keepdim)


@numpy_names
def var(
    input: Any, dim: Dim = None, unbiased: bool = True, keepdim: bool = False, *, correction: float | None = None
) -> Any:
    """The variance over ``dim``: squared deviations divided by n − correction (1 unless ``unbiased`` is False)."""
    if isinstance(dim, bool):  # var(input, unbiased)
        unbiased, dim = dim, None
    axes = axes_of("var", input.ndim, dim)
    degrees = math.prod(input.shape[i] for i in axes) - (int(unbiased) if correction is None else correction)
    return Var.apply(_floating("var", input), axes, keepdim, max(degrees, 0))


@numpy_names
def std(
    input: Any, dim: Dim = None, unbiased: bool = True, keepdim: bool = False, *, correction: float | None = None
) -> Any:
    """The square root of ``var``."""
    spread = Std.apply(var(widened(_floating("std", input)), dim, unbiased, keepdim, correction=correction))
    return cast(spread, dtype_of(input))


@numpy_names
def prod(input: Any, dim: int | None = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    """The product over one ``dim``, or of all elements; integers and bools are multiplied as int64."""
    kept = dtype_of(input) if is_floating(dtype_of(input)) else np.dtype(np.int64)
    kept = kept if dtype is None else numpy_dtype(dtype)
    axis = 0 if dim is None or input.ndim == 0 else axis_of("prod", input.ndim, dim)
    x = input.reshape(-1) if dim is None or input.ndim == 0 else input.movedim(axis, -1)
    x = cast(x, wide_dtype(kept))
    product: Any = 1
    # One half times the other: no derivative of its own, and right beside any number of zeros.
    while n := x.shape[-1]:
        product = x[..., n - 1] * product if n % 2 else product
        x = x[..., : n // 2] * x[..., n // 2 : n // 2 * 2]
    product = cast(sum(x, -1) + product, kept)  # x is empty, and gives an empty product its shape
    return product.unsqueeze(axis) if keepdim and input.ndim else product


@numpy_names
def cumsum(input: Any, dim: int, *, dtype: Any = None) -> Any:
    """The running sum along ``dim``."""
    if dtype is not None:
        input = cast(input, numpy_dtype(dtype))
    return CumSum.apply(input, axis_of("cumsum", input.ndim, dim)) if input.ndim else input.clone()


def flip(input: Any, dims: Any) -> Any:
    """The elements along ``dims`` in reverse order (a copy)."""
    return Flip.apply(input, axes_of("flip", input.ndim, dims))


@numpy_names
def amax(input: Any, dim: Dim = None, keepdim: bool = False) -> Any:
    """The largest over ``dim``; equals share the gradient."""
    return Extreme.apply(_nonempty("amax", input, dim), axes_of("amax", input.ndim, dim), keepdim, True)


@numpy_names
def amin(input: Any, dim: Dim = None, keepdim: bool = False) -> Any:
    """The smallest over ``dim``; equals share the gradient."""
    return Extreme.apply(_nonempty("amin", input, dim), axes_of("amin", input.ndim, dim), keepdim, False)


def _nonempty(name: str, input: Any, dim: Dim) -> Any:
    if 0 in [input.shape[i] for i in axes_of(name, input.ndim, dim)]:
        raise ValueError(f"{name}: expected at least one element to reduce, got shape {list(input.shape)}")
    return input


@numpy_names
def logsumexp(input: Any, dim: Dim, keepdim: bool = False) -> Any:
    """log Σ exp over ``dim``, the maximum subtracted first; −inf where all are −inf."""
    input = _float(input)
    return LogSumExp.apply(input, axes_of("logsumexp", input.ndim, dim), keepdim)


@numpy_names
def log_softmax(input: Any, dim: int, dtype: Any = None) -> Any:
    """log(softmax) along ``dim``: what nn.functional.log_softmax gives, in ordinary operations."""
    x = _floating("log_softmax", input if dtype is None else cast(input, numpy_dtype(dtype)))
    axis, z = axis_of("log_softmax", x.ndim, dim), widened(x)
    z = z - amax(z.detach(), axis, True)
    return cast(z - log(sum(exp(z), axis, True)), dtype_of(x))


@numpy_names
def softmax(input: Any, dim: int, dtype: Any = None) -> Any:
    """exp(x) / Σ exp(x) along ``dim``: what nn.functional.softmax gives, in ordinary operations."""
    x = _floating("softmax", input if dtype is None else cast(input, numpy_dtype(dtype)))
    return cast(exp(log_softmax(widened(x), dim)), dtype_of(x))


@numpy_names
def norm(input: Any, p: float | str = 2, dim: Dim = None, keepdim: bool = False) -> Any:
    """The vector p-norm over ``dim`` (``"fro"`` is 2; inf the largest |x|; 0 the count of non-zeros)."""
    if isinstance(p, str) and p != "fro":
        raise ValueError(f"norm: expected p to be a number or 'fro', got {p!r}")
    size = abs(_floating("norm", input))
    if p == math.inf:
        return amax(size, dim, keepdim)
    if p == -math.inf:
        return amin(size, dim, keepdim)
    if p == 0:
        return cast(sum(size != 0, dim, keepdim), dtype_of(input))
    if p == 1:
        return sum(size, dim, keepdim)
    return Norm.apply(input, 2 if p == "fro" else p, axes_of("norm", input.ndim, dim), keepdim)


def _floating(name: str, input: Any) -> Any:
    if not is_floating(dtype_of(input)):
        raise TypeError(f"{name}: expected a floating dtype, got {input.dtype}")
    return input


def _index_of(input: Any, which: str, dim: int | None, keepdim: bool) -> Any:
    x = input._array
    xp = namespace(x)
    with on_device_of(x):
        if dim is None:
            _nonempty(which, input, None)
            found = getattr(xp, which)(wide(x).reshape(-1)).astype(np.int64)
            return input._make(xp.asarray(found).reshape((1,) * x.ndim if keepdim else ()))
        _nonempty(which, input, dim)
        axis = axis_of(which, x.ndim, dim)
        if x.ndim == 0:
            return input._make(xp.zeros((), np.int64))
        found = getattr(xp, which)(wide(x), axis=axis).astype(np.int64)
        return input._make(xp.asarray(xp.expand_dims(found, axis) if keepdim else found))


@numpy_names
def argmax(input: Any, dim: int | None = None, keepdim: bool = False) -> Any:
    """The index of the first largest along ``dim``, or in the flattened tensor; NaN counts as largest."""
    return _index_of(input, "argmax", dim, keepdim)


@numpy_names
def argmin(input: Any, dim: int | None = None, keepdim: bool = False) -> Any:
    """The index of the first smallest along ``dim``, or in the flattened tensor; NaN counts as smallest."""
    return _index_of(input, "argmin", dim, keepdim)


@numpy_names
def all(input: Any, dim: Dim = None, keepdim: bool = False) -> Any:
    """Whether every element is non-zero."""
    return _truth("all", input, dim, keepdim)


@numpy_names
def any(input: Any, dim: Dim = None, keepdim: bool = False) -> Any:
    """Whether some element is non-zero."""
    return _truth("any", input, dim, keepdim)


def _truth(which: str, input: Any, dim: Dim, keepdim: bool) -> Any:
    x = input._array
    xp = namespace(x)
    with on_device_of(x):
        return input._make(xp.asarray(getattr(xp, which)(x != 0, axis=axes_of(which, x.ndim, dim), keepdims=keepdim)))


def matmul(input: Any, other: Any) -> Any:
    """The matrix product: (…, N, K) @ (…, K, M); a 1-d operand is a row (left) or a column (right) and drops out again.

    Raises:
        ValueError: 0-d operands, or inner dimensions or batch dimensions that do not match.
        TypeError: operands of different dtypes.
    """
    if not isinstance(other, Variable) or not isinstance(input, Variable):
        raise TypeError(f"matmul: expected two Tensors, got {type(input).__name__} and {type(other).__name__}")
    a, b = input, other
    if dtype_of(a) != dtype_of(b):
        raise TypeError(f"matmul: expected operands of one dtype, got {a.dtype} and {b.dtype}")
    same_device("matmul", a, b)
    if a.ndim == 0 or b.ndim == 0 or a.shape[-1] != b.shape[-2 if b.ndim > 1 else 0]:
        raise ValueError(f"matmul: shapes {list(a.shape)} and {list(b.shape)} cannot be multiplied")
    if a.ndim > 2 or b.ndim > 2:
        try:
            np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        except ValueError:
            raise ValueError(
                f"matmul: the batch dimensions of {list(a.shape)} and {list(b.shape)} do not broadcast"
            ) from None
    row, column = a.ndim == 1, b.ndim == 1
    if row:
        a = a.reshape(1, -1)
    if column:
        b = b.reshape(-1, 1)
    y = MatMul.apply(a, b)
    if row:
        y = y.squeeze(-2)
    return y.squeeze(-1) if column else y


def _of_dims(name: str, a: Any, b: Any, dims: tuple[int, int]) -> Any:
    if (a.ndim, b.ndim) != dims:
        raise ValueError(
            f"{name}: expected tensors of {dims[0]} and {dims[1]} dimensions, got {list(a.shape)} and {list(b.shape)}"
        )
    return matmul(a, b)


def mm(input: Any, mat2: Any) -> Any:
    """(N, K) @ (K, M), without broadcasting."""
    return _of_dims("mm", input, mat2, (2, 2))


def bmm(input: Any, mat2: Any) -> Any:
    """(B, N, K) @ (B, K, M), without broadcasting."""
    return _of_dims("bmm", input, mat2, (3, 3))


def mv(input: Any, vec: Any) -> Any:
    """(N, K) @ (K)."""
    return _of_dims("mv", input, vec, (2, 1))


def dot(input: Any, other: Any) -> Any:
    """The inner product of two vectors."""
    return _of_dims("dot", input, other, (1, 1))


def outer(input: Any, vec2: Any) -> Any:
    """(N), (M) → (N, M): all products."""
    return input.reshape(-1, 1) * vec2.reshape(1, -1)
