"""The interpreter's arithmetic, repaired: bfloat16, tl.dot, extrema, reductions and libdevice as a GPU has them.

The repairs are for faults of Triton 3.6 to 3.9, and follow what they emit for sm_90.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import TensorHandle

# --- numbers that NumPy lacks -----------------------------------------------------------------------------------------


def widened(bits: np.ndarray) -> np.ndarray:
    """bfloat16, which the interpreter keeps as its bits in uint16, as float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def rounded(x: np.ndarray) -> np.ndarray:
    """Numbers as the bits of the nearest bfloat16, ties to even: cvt.rn.bf16.f32 and cvt.rn.bf16.f64."""
    single = x.astype(np.float32)
    bits = single.view(np.uint32)
    if x.dtype != np.float32:
        # Rounding twice goes wrong where the first time makes a tie. So the first one is to odd, towards zero and then
        # the last bit set if anything was lost, which stays on the number's side of the tie.
        exact = x.astype(np.float64)
        bits = np.where(np.abs(single) > np.abs(exact), bits - 1, bits) | (single != exact)
    nearest = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(single), np.uint16(0x7FFF), nearest)


def to_tf32(x: np.ndarray) -> np.ndarray:
    """float32 as wgmma reads it for tf32: Triton emits no conversion, and the hardware ignores the last 13 bits."""
    return (np.ascontiguousarray(x).view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)


def _values(handle: TensorHandle) -> np.ndarray:
    return widened(handle.data) if handle.dtype.scalar == tl.bfloat16 else handle.data


class Builder(interpreter.InterpreterBuilder):
    """The interpreter's operations, those on bfloat16, ``dot`` and the extrema as the GPU does them."""

    def __init__(self) -> None:
        super().__init__()
        # This compares all integers with their bounds, for an assertion that is then left out: half of the time.
        self.options = dataclasses.replace(self.options, sanitize_overflow=False)

    def cast_impl(self, src: TensorHandle, dst_type: tl.dtype) -> TensorHandle:
        if dst_type.scalar == tl.bfloat16 and src.dtype.scalar != tl.bfloat16:
            return TensorHandle(rounded(src.data), tl.bfloat16)
        if src.dtype.scalar == tl.bfloat16:
            src = TensorHandle(widened(src.data), tl.float32)
        return super().cast_impl(src, dst_type)

    def _in_float32(self, op: Callable[..., np.ndarray], *handles: TensorHandle) -> TensorHandle:
        result = op(*map(_values, handles))
        if result.dtype == np.bool_:
            return TensorHandle(result, tl.int1)
        return TensorHandle(rounded(result), tl.bfloat16)

    def binary_op(self, lhs: TensorHandle, rhs: TensorHandle, op: Callable[..., np.ndarray]) -> TensorHandle:
        if lhs.dtype.scalar == tl.bfloat16:
            return self._in_float32(op, lhs, rhs)
        return super().binary_op(lhs, rhs, op)

    def unary_op(self, arg: TensorHandle, op: Callable[..., np.ndarray]) -> TensorHandle:
        if arg.dtype.scalar == tl.bfloat16:
            return self._in_float32(op, arg)
        return super().unary_op(arg, op)

    def create_fma(self, x: TensorHandle, y: TensorHandle, z: TensorHandle) -> TensorHandle:
        if z.data.dtype == np.float64:
            return super().create_fma(x, y, z)
        exact = _values(x).astype(np.float64) * _values(y) + _values(z)  # the product is exact: rounded once
        data = rounded(exact) if z.dtype.scalar == tl.bfloat16 else exact.astype(z.data.dtype)
        return TensorHandle(data, z.dtype.scalar)

    # Of a NaN and a number, the number: what max.f32 does, and documented for propagate_nan=PropagateNan.NONE.
    def create_maxnumf(self, lhs: TensorHandle, rhs: TensorHandle) -> TensorHandle:
        return self.binary_op(lhs, rhs, np.fmax)

    def create_minnumf(self, lhs: TensorHandle, rhs: TensorHandle) -> TensorHandle:
        return self.binary_op(lhs, rhs, np.fmin)

    def create_clampf(self, arg: TensorHandle, lo: TensorHandle, hi: TensorHandle, propagate: Any) -> TensorHandle:
        keep = propagate != interpreter._ir.PROPAGATE_NAN.NONE
        larger, smaller = (np.maximum, np.minimum) if keep else (np.fmax, np.fmin)
        return self.binary_op(self.binary_op(arg, lo, larger), hi, smaller)

    def create_dot(
        self, a: TensorHandle, b: TensorHandle, d: TensorHandle, input_precision: Any, *rest: Any
    ) -> TensorHandle:
        # The operands as they are, sums in fp32 (fp64 for fp64), and d added at the end.
        wide = np.float64 if d.data.dtype == np.float64 else np.float32
        x, y = _values(a).astype(wide, copy=False), _values(b).astype(wide, copy=False)
        precision = input_precision.name if a.dtype.scalar == tl.float32 else "IEEE"
        if precision == "IEEE":
            product = np.matmul(x, y)
        else:
            x_top, y_top = to_tf32(x), to_tf32(y)
            product = np.matmul(x_top, y_top)
            if precision == "TF32x3":  # what that has cut off both, but for the product of the two
                product += np.matmul(to_tf32(x - x_top), y_top) + np.matmul(x_top, to_tf32(y - y_top))
        return TensorHandle((product + d.data).astype(d.data.dtype), d.dtype.scalar)


# By their functions, since a JITFunction's hash is that of its source, and of all that it calls.
_FOLDS = {
    tl.standard._sum_combine.fn: np.add,
    tl.standard._elementwise_max.fn: np.fmax,
    tl.standard._elementwise_min.fn: np.fmin,
}


def reduced(self: interpreter.ReduceOps, inputs: tuple[tl.tensor, ...]) -> tuple[tl.tensor, ...]:
    """Neighbours in pairs, then pairs of pairs: a tree as on the GPU, by the reduction's own function.

    Triton's own takes NumPy's order and idea of NaN where it knows the function, and one element at a time elsewhere.
    """
    types, whole = [x.dtype for x in inputs], self.axis is None
    data = [x.handle.data.reshape(-1) if whole else np.moveaxis(x.handle.data, self.axis, -1) for x in inputs]
    fold = None if types[0] == tl.bfloat16 else _FOLDS.get(self.combine_fn.fn)
    while data[0].shape[-1] > 1:
        pairs = [(x[..., ::2], x[..., 1::2]) for x in data]
        if fold is not None:
            data = [fold(*pairs[0])]
            continue
        left, right = ([self.to_tensor(p[side], t) for p, t in zip(pairs, types, strict=True)] for side in (0, 1))
        made = self.combine_fn(*left, *right)
        data = [x.handle.data for x in (made if isinstance(made, tuple) else (made,))]
    if not self.keep_dims:
        data = [x[..., 0] for x in data]
    elif whole:
        data = [x.reshape((1,) * len(inputs[0].shape)) for x in data]
    else:
        data = [np.moveaxis(x, -1, self.axis) for x in data]
    return tuple(self.to_tensor(x, t) for x, t in zip(data, types, strict=True))


def _of_libdevice(function: Callable[[np.ndarray], np.ndarray]) -> Callable[[tl.tensor], tl.tensor]:
    """Computed in float64 and rounded once."""

    def apply(x: tl.tensor) -> tl.tensor:
        if x.dtype not in (tl.float32, tl.float64):
            raise TypeError(f"libdevice takes float32 and float64, got {x.dtype}")
        data = function(x.handle.data.astype(np.float64)).astype(x.handle.data.dtype)
        return tl.tensor(TensorHandle(data, x.dtype), x.type)

    return apply


LIBDEVICE = {
    "tanh": _of_libdevice(np.tanh),
    "log1p": _of_libdevice(np.log1p),
    "expm1": _of_libdevice(np.expm1),
    "erf": _of_libdevice(np.vectorize(math.erf, otypes=[np.float64])),
    "erfc": _of_libdevice(np.vectorize(math.erfc, otypes=[np.float64])),
}
