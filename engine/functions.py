"""The elementwise functions by torch's names: operands are matched in dtype, device and shape as torch does, then the
operation of elementwise.py is applied. Also the namespace in which recorded derivatives are computed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .elementwise import (
    Abs,
    Add,
    Ceil,
    Clamp,
    Cos,
    Div,
    Erfc,
    Exp,
    Expm1,
    Floor,
    Log,
    Log1p,
    Log2,
    Log10,
    Maximum,
    Minimum,
    Mul,
    Neg,
    Pow,
    Reciprocal,
    Relu,
    Round,
    Rsqrt,
    Sigmoid,
    Sign,
    Sin,
    Sqrt,
    Sub,
    Tan,
    Tanh,
    Where,
    cast,
    dtype_of,
)
from .graph import Variable
from .storage import (
    get_default_dtype,
    is_floating,
    module_for,
    namespace,
    numpy_dtype,
    on_device_of,
    promote,
    wide,
)

# --- operands ---------------------------------------------------------------------------------------------------------


def _category(dt: np.dtype) -> int:
    return 2 if is_floating(dt) else 0 if dt.kind == "b" else 1


def result_dtype(a: Any, b: Any) -> np.dtype:
    """The dtype that torch gives to ``a`` combined with ``b`` (tensors or Python scalars).

    A scalar, and a 0-d tensor beside one that is not, decide only when they are of a higher category
    (bool < int < float).
    """
    if not isinstance(b, Variable):
        a, b = b, a
    if not isinstance(a, Variable):
        of_scalar = get_default_dtype().dtype if isinstance(a, float) else numpy_dtype(type(a))
        own = dtype_of(b)
        return own if _category(of_scalar) <= _category(own) else of_scalar
    da, db = dtype_of(a), dtype_of(b)
    if (a._array.ndim == 0) != (b._array.ndim == 0):
        weak, strong = (da, db) if a._array.ndim == 0 else (db, da)
        if _category(weak) <= _category(strong):
            return strong
        return weak
    return promote(da, db)


def same_device(name: str, *tensors: Any) -> None:
    """ValueError if the tensors lie on different devices."""
    first = tensors[0]
    for t in tensors[1:]:
        x = t._array
        if type(x) is not type(first._array) or (type(x) is not np.ndarray and t.device != first.device):
            raise ValueError(f"{name}: tensors are on different devices: {first.device} and {t.device}")


def _matched(name: str, a: Any, b: Any) -> tuple[Any, Any]:
    """Both operands ready for an elementwise operation: one dtype, one device, shapes that broadcast."""
    a_is, b_is = isinstance(a, Variable), isinstance(b, Variable)
    if a_is and b_is:
        x, y = a._array, b._array
        if type(x) is not np.ndarray or type(y) is not np.ndarray:
            if y.ndim == 0 and type(y) is np.ndarray:  # a scalar of the host goes with every device
                return _matched(name, a, b.to(a.device))
            if x.ndim == 0 and type(x) is np.ndarray:
                return _matched(name, a.to(b.device), b)
            same_device(name, a, b)
        if x.dtype != y.dtype:
            dt = result_dtype(a, b)
            a, b = cast(a, dt), cast(b, dt)
        if x.shape != y.shape:
            try:
                np.broadcast_shapes(x.shape, y.shape)
            except ValueError:
                raise ValueError(f"{name}: shapes {list(x.shape)} and {list(y.shape)} cannot be broadcast") from None
        return a, b
    tensor, other = (a, b) if a_is else (b, a)
    if isinstance(other, np.generic):
        other = other.item()
    if not isinstance(other, (bool, int, float)):
        raise TypeError(f"{name}: expected a Tensor or a number beside a Tensor, got {type(other).__name__}")
    if type(other) is not float or not is_floating(tensor._array.dtype):
        tensor = cast(tensor, result_dtype(tensor, other))
    return (tensor, other) if a_is else (other, tensor)


def _float(x: Any) -> Any:
    """Integers and bools as the default float, as torch's transcendental functions take them."""
    return x if is_floating(dtype_of(x)) else cast(x, get_default_dtype().dtype)


# --- the functions, by torch's names ----------------------------------------------------------------------------------


def zeros_like(input: Any, *, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Any:
    """Zeros of the shape of ``input``, and of its dtype and device unless others are given."""
    return full_like(input, 0, dtype=dtype, device=device, requires_grad=requires_grad)


def ones_like(input: Any, *, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Any:
    """Ones of the shape of ``input``, and of its dtype and device unless others are given."""
    return full_like(input, 1, dtype=dtype, device=device, requires_grad=requires_grad)


def full_like(
    input: Any, fill_value: Any, *, dtype: Any = None, device: Any = None, requires_grad: bool = False
) -> Any:
    """``fill_value`` in the shape of ``input``, and in its dtype and on its device unless others are given."""
    x = input._array
    xp = namespace(x) if device is None else module_for(device)
    with on_device_of(x):
        made = input._make(xp.full(x.shape, fill_value, x.dtype if dtype is None else numpy_dtype(dtype)))
    made.requires_grad = requires_grad
    return made


def add(input: Any, other: Any, *, alpha: float = 1) -> Any:
    """``input + alpha·other``, with broadcasting and torch's type promotion."""
    return Add.apply(*_matched("add", input, other if alpha == 1 else other * alpha))


def sub(input: Any, other: Any, *, alpha: float = 1) -> Any:
    """``input − alpha·other``."""
    a, b = _matched("sub", input, other if alpha == 1 else other * alpha)
    if bool in (type(a), type(b)) or any(isinstance(t, Variable) and t._array.dtype == bool for t in (a, b)):
        raise TypeError("sub: expected numbers, got a bool tensor; use logical_xor (^) or logical_not (~)")
    return Sub.apply(a, b)


def mul(input: Any, other: Any) -> Any:
    """``input · other``."""
    return Mul.apply(*_matched("mul", input, other))


def div(input: Any, other: Any, *, rounding_mode: str | None = None) -> Any:
    """``input / other``: true division (integers give floats), or rounded with ``"floor"`` or ``"trunc"``."""
    if rounding_mode == "floor":
        return floor_divide(input, other)
    a, b = _matched("div", input, other)
    quotient = Div.apply(*(_float(x) if isinstance(x, Variable) else x for x in (a, b)))
    if rounding_mode is None:
        return quotient
    if rounding_mode != "trunc":
        raise ValueError(f"div: expected rounding_mode None, 'floor' or 'trunc', got {rounding_mode!r}")
    return cast(sign(quotient) * floor(abs(quotient)), result_dtype(a, b))


def _plain(name: str, input: Any, other: Any) -> Any:
    """An elementwise operation without derivative, by its NumPy name."""
    a, b = _matched(name, input, other)
    like = a if isinstance(a, Variable) else b
    own = like._array.dtype
    if name.startswith("bitwise") and is_floating(own):
        raise TypeError(f"{name}: expected integers or bools, got {like.dtype}")
    xp = namespace(like._array)
    with np.errstate(all="ignore"), on_device_of(like._array):
        x, y = (wide(t._array) if isinstance(t, Variable) else t for t in (a, b))
        result = xp.asarray(getattr(xp, name)(x, y))
        return like._make(result.astype(own, copy=False) if is_floating(result.dtype) else result)


def eq(input: Any, other: Any) -> Any:
    """input = other, elementwise."""
    return _plain("equal", input, other)


def ne(input: Any, other: Any) -> Any:
    """input ≠ other, elementwise."""
    return _plain("not_equal", input, other)


def lt(input: Any, other: Any) -> Any:
    """input < other, elementwise."""
    return _plain("less", input, other)


def le(input: Any, other: Any) -> Any:
    """input ≤ other, elementwise."""
    return _plain("less_equal", input, other)


def gt(input: Any, other: Any) -> Any:
    """input > other, elementwise."""
    return _plain("greater", input, other)


def ge(input: Any, other: Any) -> Any:
    """input ≥ other, elementwise."""
    return _plain("greater_equal", input, other)


def bitwise_and(input: Any, other: Any) -> Any:
    """input & other, bit by bit."""
    return _plain("bitwise_and", input, other)


def bitwise_or(input: Any, other: Any) -> Any:
    """input | other, bit by bit."""
    return _plain("bitwise_or", input, other)


def bitwise_xor(input: Any, other: Any) -> Any:
    """Where input and other differ, bit by bit."""
    return _plain("bitwise_xor", input, other)


def floor_divide(input: Any, other: Any) -> Any:
    """The quotient rounded down; not differentiable."""
    return _plain("floor_divide", input, other)


def remainder(input: Any, other: Any) -> Any:
    """``input − other·floor(input / other)``: Python's %; differentiable in ``input`` for a constant ``other``."""
    modulus = _plain("remainder", input, other)
    if isinstance(input, Variable) and input.requires_grad:
        return input + (modulus - input.detach())
    return modulus


def pow(input: Any, exponent: Any) -> Any:
    """``input`` to the power ``exponent``; integers to a negative integer power are a ValueError, as in NumPy."""
    return Pow.apply(*_matched("pow", input, exponent))


def maximum(input: Any, other: Any) -> Any:
    """The larger of two, elementwise; NaN wins."""
    return Maximum.apply(*_matched("maximum", input, other))


def minimum(input: Any, other: Any) -> Any:
    """The smaller of two, elementwise; NaN wins."""
    return Minimum.apply(*_matched("minimum", input, other))


def where(condition: Any, input: Any = None, other: Any = None) -> Any:
    """``input`` where ``condition`` holds, else ``other``; all three broadcast. Alone, the indices where it holds."""
    xp = namespace(condition._array)
    if input is None and other is None:
        with on_device_of(condition._array):
            return tuple(condition._make(i.astype(np.int64)) for i in xp.nonzero(condition._array))
    if condition._array.dtype != bool:
        raise TypeError(f"where: expected a condition of dtype bool, got {condition.dtype}")
    if not isinstance(input, Variable) and not isinstance(other, Variable):
        dt = result_dtype(condition._make(np.zeros(1, bool)), input + other)
        with on_device_of(condition._array):
            input = condition._make(xp.asarray(input, dt))
    a, b = _matched("where", input, other)
    same_device("where", condition, *(t for t in (a, b) if isinstance(t, Variable)))
    return Where.apply(condition, a, b)


def clamp(input: Any, min: Any = None, max: Any = None) -> Any:
    """``input`` limited to [min, max], each a number, a tensor or None.

    Raises:
        ValueError: neither bound was given.
    """
    if min is None and max is None:
        raise ValueError("clamp: expected min, max or both, got neither")
    if isinstance(min, Variable) or isinstance(max, Variable):
        above = input if min is None else maximum(input, min)
        return above if max is None else minimum(above, max)
    for bound in (min, max):
        if bound is not None:
            input = cast(input, result_dtype(input, bound))
    return Clamp.apply(input, min, max)


clip = clamp


def neg(input: Any) -> Any:
    """−input."""
    if input._array.dtype == bool:
        raise TypeError("neg: expected numbers, got a bool tensor; use logical_not (~)")
    return Neg.apply(input)


def exp(input: Any) -> Any:
    """eˣ."""
    return Exp.apply(_float(input))


def expm1(input: Any) -> Any:
    """eˣ − 1, precise near 0."""
    return Expm1.apply(_float(input))


def log(input: Any) -> Any:
    """The natural logarithm; −inf at 0 and NaN below."""
    return Log.apply(_float(input))


def log2(input: Any) -> Any:
    """The logarithm to base 2."""
    return Log2.apply(_float(input))


def log10(input: Any) -> Any:
    """The logarithm to base 10."""
    return Log10.apply(_float(input))


def log1p(input: Any) -> Any:
    """log(1 + x), precise near 0."""
    return Log1p.apply(_float(input))


def sqrt(input: Any) -> Any:
    """The square root; NaN below 0."""
    return Sqrt.apply(_float(input))


def rsqrt(input: Any) -> Any:
    """1/√x."""
    return Rsqrt.apply(_float(input))


def square(input: Any) -> Any:
    """x²."""
    return mul(input, input)


def reciprocal(input: Any) -> Any:
    """1/x."""
    return Reciprocal.apply(_float(input))


def abs(input: Any) -> Any:
    """|x|, with slope 0 at 0."""
    return Abs.apply(input)


def sign(input: Any) -> Any:
    """−1, 0 or 1."""
    return Sign.apply(input) if input._array.dtype != bool else input.clone()


def floor(input: Any) -> Any:
    """The largest integer not above."""
    return Floor.apply(input)


def ceil(input: Any) -> Any:
    """The smallest integer not below."""
    return Ceil.apply(input)


def round(input: Any, *, decimals: int = 0) -> Any:
    """The nearest multiple of 10⁻ᵈᵉᶜⁱᵐᵃˡˢ, halves to even."""
    return Round.apply(input, decimals)


def sin(input: Any) -> Any:
    """The sine of an angle in radians."""
    return Sin.apply(_float(input))


def cos(input: Any) -> Any:
    """The cosine of an angle in radians."""
    return Cos.apply(_float(input))


def tan(input: Any) -> Any:
    """The tangent of an angle in radians."""
    return Tan.apply(_float(input))


def tanh(input: Any) -> Any:
    """The hyperbolic tangent."""
    return Tanh.apply(_float(input))


def erfc(input: Any) -> Any:
    """1 − erf(x), precise in the tail."""
    return Erfc.apply(_float(input))


def sigmoid(input: Any) -> Any:
    """1/(1 + e⁻ˣ)."""
    return Sigmoid.apply(_float(input))


def relu(input: Any) -> Any:
    """max(x, 0)."""
    return Relu.apply(input)


def isnan(input: Any) -> Any:
    """Where the elements are NaN."""
    return input != input


def isinf(input: Any) -> Any:
    """Where the elements are +inf or −inf."""
    return _plain("equal", abs(input.detach()), math.inf)


def isfinite(input: Any) -> Any:
    """Where the elements are neither NaN nor infinite."""
    return _plain("less", abs(input.detach()), math.inf)


def logical_not(input: Any) -> Any:
    """Where the elements are zero."""
    return input == 0


def logical_and(input: Any, other: Any) -> Any:
    """Where both are non-zero."""
    return (input != 0) & (other != 0)


def logical_or(input: Any, other: Any) -> Any:
    """Where one of them is non-zero."""
    return (input != 0) | (other != 0)


def logical_xor(input: Any, other: Any) -> Any:
    """Where exactly one of them is non-zero."""
    return (input != 0) ^ (other != 0)


def isclose(input: Any, other: Any, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False) -> Any:
    """Where |input − other| ≤ atol + rtol·|other|; infinities are close to themselves, NaN only if ``equal_nan``."""
    a, b = input.detach(), other.detach()
    near = (a == b) | (isfinite(b) & (abs(a - b) <= abs(b) * rtol + atol))
    return near | (isnan(a) & isnan(b)) if equal_nan else near


def allclose(input: Any, other: Any, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False) -> bool:
    """Whether all elements are close in the sense of ``isclose``."""
    return bool(isclose(input, other, rtol, atol, equal_nan).all())


def equal(input: Any, other: Any) -> bool:
    """Whether shape and all elements are the same."""
    return input.shape == other.shape and bool((input == other).all())
