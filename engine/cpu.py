"""The fused operations on the CPU: the functions of reference.py by the compiled kernels of ``tilegrad._C``.

Arrays are NumPy's. Matrix products are NumPy's, that is OpenBLAS's; everything around them is compiled here, for
several instruction sets, of which ``TILEGRAD_ISA`` names one ("avx512", "avx2", "baseline") if the best is not wanted.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from . import _C
from .activations import CODES
from .reference import LossOptions
from .storage import Array, bfloat16, wide_dtype

_C.know_bfloat16(bfloat16.dtype)

_silent = np.errstate(all="ignore")  # for what NumPy computes: inf and NaN are values here
empty, isa, num_threads, set_num_threads = _C.empty, _C.isa, _C.num_threads, _C.set_num_threads
LOGITS = 160 << 20  # bytes that linear_cross_entropy holds of them at a time; OpenBLAS takes some 50 MiB of its own
PIECE = 16 << 20  # bytes of the weight that it widens, or of its gradient that it adds, at a time


# --- matrices ---------------------------------------------------------------------------------------------------------


def _factor_dtype(dtype: np.dtype) -> np.dtype:
    """What products take operands of this dtype in: bfloat16 itself, where the processor multiplies it."""
    return dtype if dtype == bfloat16.dtype and _C.multiplies_bfloat16() else wide_dtype(dtype)


def _matrix(x: Array) -> Array:
    """(…, K) as (rows, K) in the dtype that products take it in, strided as they take it."""
    x = _converted(x.reshape(math.prod(x.shape[:-1]), x.shape[-1]), _factor_dtype(x.dtype))
    fits = any(x.strides[i] == x.itemsize and x.strides[1 - i] >= x.itemsize * x.shape[i] for i in (0, 1))
    return x if fits or x.itemsize == 2 else np.ascontiguousarray(x)


@_silent  # NumPy would warn of what has become infinite
def _product(a: Array, b: Array, out: Array) -> None:
    """out = a·b of what ``_matrix`` made; or of bfloat16 and float32, which is rounded to it."""
    if 2 in (a.itemsize, b.itemsize):
        _C.product(a, b, out, False)
    else:
        np.matmul(a, b, out=out)


def _converted(x: Array, dtype: np.dtype) -> Array:
    if x.dtype == dtype:
        return x
    out = empty(x.shape, dtype)
    _C.convert(np.asarray(x, order="C"), out)
    return out


def _vector(x: Array | None, dtype: np.dtype) -> Array | None:
    return None if x is None else _converted(np.ascontiguousarray(x), dtype)


def _like(x: Array, shape: tuple[int, ...], dtype: np.dtype) -> Array:
    """(rows, columns) of this dtype for results that end up in ``x``: a view of it, if it is of the dtype, too."""
    return x.reshape(shape) if x.dtype == dtype else empty(shape, dtype)


def _written(out: Array, wide: Array) -> None:
    """Outputs are dense: they were made for this call."""
    if out.dtype != wide.dtype:
        _C.convert(wide, out)


# --- linear -----------------------------------------------------------------------------------------------------------


def linear(
    x: Array, weight: Array, bias: Array | None, activation: str | None, *, out: Array, pre: Array | None,
    tf32: bool = False,
) -> None:  # fmt: skip
    """As in reference.py."""
    code = CODES[activation]
    if _C.small_linear(x, weight, bias, code, pre, out):
        return
    a, w, rows = _matrix(x), _matrix(weight), math.prod(x.shape[:-1])
    y, kept = out.reshape(rows, out.shape[-1]), None if pre is None else pre.reshape(rows, len(weight))
    alone = bias is None and activation is None and pre is None  # nothing is computed from the product
    z, dtype = y if kept is None else kept, a.dtype if alone else wide_dtype(a.dtype)
    if z.dtype != dtype or z.shape[1] != len(weight):  # rounded last; or gated, and nothing is kept
        z = empty((rows, len(weight)), dtype)
    _product(a, w.T, z)
    if not alone or z is not y:
        _C.epilogue(z, _vector(bias, y.dtype), code, kept, y)


def linear_backward(
    grad: Array, x: Array, weight: Array, saved: Array | None, activation: str | None, *,
    grad_input: Array | None, grad_weight: Array | None, grad_bias: Array | None, tf32: bool = False,
) -> None:  # fmt: skip
    """As in reference.py."""
    code = CODES[activation]
    if _C.small_linear_backward(grad, x, weight, saved, code, grad_input, grad_weight, grad_bias):
        return
    rows, width = math.prod(grad.shape[:-1]), len(weight)
    g = grad.reshape(rows, grad.shape[-1])
    g = _converted(g, _factor_dtype(g.dtype))
    kept = None if saved is None else _converted(np.ascontiguousarray(saved.reshape(rows, saved.shape[-1])), g.dtype)
    if activation is None:
        dz = g
        if grad_bias is not None:
            _C.epilogue_backward(g, None, code, None, grad_bias)
    else:
        dz = empty((rows, width), g.dtype)
        _C.epilogue_backward(g, kept, code, dz, grad_bias)
    dz = _matrix(dz)
    if grad_input is not None:
        made = _like(grad_input, (rows, x.shape[-1]), dz.dtype)
        _product(dz, _matrix(weight), made)
        _written(grad_input, made)
    if grad_weight is not None:
        made = _like(grad_weight, weight.shape, dz.dtype)
        _product(dz.T, _matrix(x), made)
        _written(grad_weight, made)


# --- activations ------------------------------------------------------------------------------------------------------


def activation(x: Array, name: str, *, out: Array) -> None:
    """act(x) of each element; without a kernel it is an ordinary operation."""
    _C.activation(np.ascontiguousarray(x), CODES[name], out)


def activation_backward(grad: Array, saved: Array, name: str, *, out: Array) -> None:
    """act'(x)·grad, from x, or from the output where its sign is enough."""
    _C.activation_backward(np.ascontiguousarray(grad), np.ascontiguousarray(saved), CODES[name], out)


# --- softmax ----------------------------------------------------------------------------------------------------------


def _rows(x: Array) -> Array:
    """Of so many dimensions the kernels take rows only where their strides join them."""
    return x if x.ndim <= 12 else np.ascontiguousarray(x)


def softmax(x: Array, dim: int, log: bool, *, out: Array) -> None:
    """As in reference.py."""
    _C.softmax(_rows(x), None, dim % x.ndim if x.ndim else 0, log, out)


def softmax_backward(grad: Array, y: Array, dim: int, log: bool, *, out: Array) -> None:
    """As in reference.py."""
    _C.softmax(_rows(_converted(grad, y.dtype)), _rows(y), dim % y.ndim if y.ndim else 0, log, out)


# --- losses -----------------------------------------------------------------------------------------------------------

first_bad_index = _C.first_bad_index
_REDUCTIONS = {"none": _C.Reduction.none, "sum": _C.Reduction.sum, "mean": _C.Reduction.mean}


@functools.lru_cache
def _arguments(o: LossOptions) -> Any:
    return _C.LossArguments(_REDUCTIONS[o.reduction], o.ignore_index, o.label_smoothing, o.z_loss, o.softcap)


def cross_entropy(
    logits: Array, target: Array, weight: Array | None, o: LossOptions, *,
    loss: Array, lse: Array | None, argmax: Array | None, grad: Array | None, flag: Array | None,
) -> None:  # fmt: skip
    """As in reference.py."""
    w = _vector(weight, logits.dtype)
    _C.cross_entropy(_rows(logits), _rows(target), w, _arguments(o), loss, lse, argmax, grad)


def cross_entropy_backward(
    upstream: Array, logits: Array, target: Array, weight: Array | None, lse: Array | None, o: LossOptions, *,
    grad: Array | None, grad_target: Array | None,
) -> None:  # fmt: skip
    """As in reference.py; without ``lse`` the rows are summed again."""
    w = _vector(weight, logits.dtype)
    u = _rows(_converted(upstream, logits.dtype))
    _C.cross_entropy_backward(u, _rows(logits), _rows(target), w, lse, _arguments(o), grad, grad_target)


def _picked(target: Array, weight: Array | None, o: LossOptions, classes: int) -> tuple[Array, Array]:
    """Of each row the class, 0 where it is ignored, and the class's weight, 0 there."""
    valid = target != o.ignore_index
    index = np.where(valid, target, 0)
    share = valid.astype(np.float64) if weight is None else np.where(valid, weight.astype(np.float64)[index], 0)
    return index, share


@_silent
def nll_loss(
    logp: Array, target: Array, weight: Array | None, o: LossOptions, *, loss: Array, flag: Array | None
) -> None:
    """As in reference.py."""
    axis = 1 if logp.ndim > 1 else 0
    index, share = _picked(target, weight, o, logp.shape[axis])
    x = np.take_along_axis(logp, np.expand_dims(index, axis), axis).squeeze(axis) if index.size else share
    cross = np.where(share == 0, 0, -share * x.astype(np.float64))
    loss[...] = cross if o.reduction == "none" else cross.sum() / (share.sum() if o.reduction == "mean" else 1)


@_silent
def nll_loss_backward(
    upstream: Array, logp: Array, target: Array, weight: Array | None, o: LossOptions, *, grad: Array
) -> None:
    """As in reference.py."""
    axis = 1 if logp.ndim > 1 else 0
    index, share = _picked(target, weight, o, logp.shape[axis])
    f = upstream.astype(np.float64) / (share.sum() if o.reduction == "mean" else 1)
    picked = np.where(share == 0, 0, -share * f).astype(grad.dtype)
    grad[...] = 0
    np.put_along_axis(grad, np.expand_dims(index, axis), np.expand_dims(picked, axis), axis)


def scale(upstream: Array, *, inplace: Array) -> None:
    """As in reference.py."""
    _C.scale(inplace, float(upstream))


# --- optimisers -------------------------------------------------------------------------------------------------------

sgd, adam = _C.sgd, _C.adam


# --- linear + cross-entropy -------------------------------------------------------------------------------------------


@_silent
def linear_cross_entropy(
    x: Array, linear_weight: Array, linear_bias: Array | None, target: Array, weight: Array | None, o: LossOptions, *,
    upstream: Array | None, loss: Array | None, lse: Array | None, argmax: Array | None, grad_input: Array | None,
    grad_weight: Array | None, grad_bias: Array | None, grad_target: Array | None, flag: Array | None,
    tf32: bool = False,
) -> None:  # fmt: skip
    """As in reference.py: the logits of a chunk of samples at a time, which become their gradients in place.

    With N samples, C classes and K features: 6·N·C·K FLOPs with both gradients. The workspace is LOGITS and PIECE
    bytes; 16-bit operands take float32 copies of a block of classes beside it, unless they are multiplied as they are,
    and gradients of 16 bits that are made of several parts float32 sums.
    """
    samples, losses = x.shape[0], linear_weight.shape[1]
    classes, wide, indices = linear_weight.shape[0], wide_dtype(x.dtype), target.ndim == 2
    order = None  # of the samples that count, if not all do
    if indices and lse is None and argmax is None:
        counted = (target != o.ignore_index).any(1)
        order = None if counted.all() else np.flatnonzero(counted)
    rows = samples if order is None else len(order)
    arguments, share = _denominated(target, weight, o, indices), _vector(weight, wide)
    chunks = max(1, -(-rows * classes * wide.itemsize // LOGITS))
    sums = _Sums(x.dtype, losses, chunks, grad_input, grad_weight, grad_bias)
    if sums.input is not None and rows < samples:
        sums.input[...] = 0
    wanted = sums.wanted or grad_target is not None
    step = max(1, -(-rows // chunks))
    logits = empty((min(step, rows), classes), wide)
    total = 0.0
    if loss is not None and loss.ndim:
        loss[...] = 0
    for start in range(0, rows, step):
        part: Any = slice(start, min(start + step, rows)) if order is None else order[start : start + step]
        a = _matrix(x[part])
        z = logits[: len(a)]
        for d in range(losses):
            _multiply(a, linear_weight[:, d], z, turned=True)
            if linear_bias is not None:
                _C.epilogue(z, _vector(linear_bias[:, d], wide), -1, None, z)
            t = target[part, d] if indices else _converted(target[part, :, d], wide)
            at_once = loss is not None and wanted and upstream is None and grad_target is None
            if loss is not None:
                of_part = np.empty(len(a) if loss.ndim else (), wide)
                stats = None if lse is None else np.empty((2, len(a)), wide)
                best = None if argmax is None else np.empty(len(a), np.int64)
                _C.cross_entropy(z, t, share, arguments, of_part, stats, best, z if at_once else None)
                if loss.ndim:
                    loss[part, d] = of_part
                else:
                    total += float(of_part)
                if lse is not None:
                    lse[:, part, d] = stats
                if argmax is not None:
                    argmax[part, d] = best
            if wanted and not at_once:
                u = np.ones((), wide) if upstream is None else _converted(upstream, wide)
                of_target: Any = None if grad_target is None else grad_target[part, :, d]
                made = of_target if of_target is None or of_target.dtype == wide else np.empty(z.shape, wide)
                _C.cross_entropy_backward(u if u.ndim == 0 else u[part, d], z, t, share, None, arguments, z, made)
                if made is not of_target:
                    of_target[...] = made
            if wanted:
                valid = t != o.ignore_index if indices else None
                sums.add(z, a, linear_weight[:, d], d, part, valid)
    if loss is not None and not loss.ndim:
        loss[...] = total if rows or o.reduction == "sum" else np.nan
    sums.finish()


def _denominated(target: Array, weight: Array | None, o: LossOptions, indices: bool) -> Any:
    """The arguments with what a mean over all samples divides by, since the kernels see one chunk at a time."""
    by_share = by_count = 1.0
    if o.reduction == "mean":
        if indices:
            valid = target != o.ignore_index
            by_count = float(valid.sum())
            by_share = by_count if weight is None else float(weight.astype(np.float64)[target[valid]].sum())
        else:
            by_share = by_count = float(target.shape[0] * target.shape[2])
    reduction = "none" if o.reduction == "none" else "sum"
    return _C.LossArguments(
        _REDUCTIONS[reduction], o.ignore_index, o.label_smoothing, o.z_loss, o.softcap, by_share, by_count
    )


def _multiply(a: Array, weight: Array, out: Array, turned: bool) -> None:
    """a Wᵀ (``turned``) or a W: 16-bit weights that are not multiplied as they are, are widened a block at a time."""
    if weight.dtype == _factor_dtype(weight.dtype):
        _product(a, weight.T if turned else weight, out)
        return
    step = max(1, PIECE // max(1, weight.shape[1] * a.itemsize))
    for first in range(0, len(weight), step):
        w = _matrix(weight[first : first + step])
        if turned:
            np.matmul(a, w.T, out=out[:, first : first + step])
        elif first == 0:
            np.matmul(a[:, :step], w, out=out)
        else:
            out += a[:, first : first + step] @ w


class _Sums:
    """The gradients of linear_cross_entropy, to which each chunk of samples adds its part: in the outputs themselves,
    or, where there is more than one part to an element, in sums of the wider dtype."""

    def __init__(self, dtype: np.dtype, losses: int, chunks: int, grad_input: Any, grad_weight: Any, grad_bias: Any):
        self.outputs = grad_input, grad_weight, grad_bias
        self.wanted = any(g is not None for g in self.outputs)
        self.input, self.weight = (
            g if g is None or g.dtype == made else empty(g.shape, made)
            for g, made in (
                (grad_input, _factor_dtype(dtype) if losses == 1 else wide_dtype(dtype)),
                (grad_weight, _factor_dtype(dtype) if losses * chunks == 1 else wide_dtype(dtype)),
            )
        )
        self.bias = None if grad_bias is None else np.zeros(grad_bias.shape)
        self.begun: set[int] = set()  # the positions that the weight's gradient is written at

    def add(self, dz: Array, x: Array, weight: Array, d: int, part: Any, valid: Array | None) -> None:
        """The part of the samples ``part`` and the loss at position ``d``; dz is (rows, C), x (rows, K)."""
        if self.input is not None:
            if d == 0 and isinstance(part, slice):
                _multiply(dz, weight, self.input[part], turned=False)
            else:
                made = empty((len(dz), weight.shape[1]), self.input.dtype)
                _multiply(dz, weight, made, turned=False)
                self.input[part] = made if d == 0 else self.input[part] + made
        if self.bias is not None:
            sums = np.empty(dz.shape[1], dz.dtype)
            _C.epilogue_backward(dz, None, -1, None, sums)
            self.bias[:, d] += sums
        if self.weight is not None:
            if valid is not None and not valid.all():  # an ignored row may hold NaN, and 0·NaN is NaN
                dz, x = dz[valid], x[valid]
            self._add_weight(dz, x, d)

    def _add_weight(self, dz: Array, x: Array, d: int) -> None:
        total = self.weight[:, d]
        if d not in self.begun:
            self.begun.add(d)
            _product(dz.T, x, total)
            return
        if x.itemsize == 2:
            _C.product(dz.T, x, total, True)
            return
        step = max(1, PIECE // max(1, x.shape[1] * x.itemsize))
        for first in range(0, len(total), step):
            total[first : first + step] += dz[:, first : first + step].T @ x

    def finish(self) -> None:
        """Write what is not in the outputs yet."""
        if self.weight is not None:
            for d in range(self.weight.shape[1]):
                if d not in self.begun:
                    self.weight[:, d] = 0
        for output, made in zip(self.outputs, (self.input, self.weight, self.bias), strict=True):
            if output is not None and output is not made:
                _C.convert(made, output)
