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
from .activations import ACTIVATIONS
from .reference import LossOptions
from .storage import Array, bfloat16, wide_dtype

_C.know_bfloat16(bfloat16.dtype)

CODES = {name: code for code, name in enumerate(ACTIVATIONS)} | {None: -1}
_silent = np.errstate(all="ignore")  # for what NumPy computes: inf and NaN are values here
empty, isa, num_threads, set_num_threads = _C.empty, _C.isa, _C.num_threads, _C.set_num_threads
LOGITS = 160 << 20  # bytes that linear_cross_entropy holds of them at a time; OpenBLAS takes some 50 MiB of its own
PIECE = 16 << 20  # bytes of the weight that it widens, or of its gradient that it adds, at a time


# --- matrices ---------------------------------------------------------------------------------------------------------


def _matrix(x: Array) -> Array:
    """(…, K) as (rows, K) in the dtype that products are computed in, strided as BLAS takes it."""
    x = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    if x.dtype.itemsize == 2:
        return _converted(x, np.dtype(np.float32))
    fits = any(x.strides[i] == x.itemsize and x.strides[1 - i] >= x.itemsize * x.shape[i] for i in (0, 1))
    return x if fits else np.ascontiguousarray(x)


_product = _silent(np.matmul)  # which would warn of what has become infinite


def _converted(x: Array, dtype: np.dtype) -> Array:
    if x.dtype == dtype:
        return x
    out = empty(x.shape, dtype)
    _C.convert(np.asarray(x, order="C"), out)
    return out


def _vector(x: Array | None, dtype: np.dtype) -> Array | None:
    return None if x is None else _converted(np.ascontiguousarray(x), dtype)


def _wide_like(x: Array, shape: tuple[int, ...]) -> Array:
    """(rows, columns) for results that end up in ``x``: a view of it, if it is of the dtype of products."""
    return x.reshape(shape) if wide_dtype(x.dtype) == x.dtype else empty(shape, wide_dtype(x.dtype))


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
    wide_out = _wide_like(out, (rows, out.shape[-1]))
    wide_pre = None if pre is None else _wide_like(pre, (rows, len(weight)))
    z = wide_pre if wide_pre is not None else wide_out
    if z.shape[1] != len(weight):  # gated, and nothing is kept
        z = empty((rows, len(weight)), z.dtype)
    _product(a, w.T, out=z)
    if bias is not None or activation is not None or z is not wide_out:
        _C.epilogue(z, _vector(bias, z.dtype), code, wide_pre, wide_out)
    _written(out, wide_out)
    if pre is not None:
        _written(pre, wide_pre)


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
    g = _converted(g, wide_dtype(g.dtype))
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
        wide = _wide_like(grad_input, (rows, x.shape[-1]))
        _product(dz, _matrix(weight), out=wide)
        _written(grad_input, wide)
    if grad_weight is not None:
        wide = _wide_like(grad_weight, weight.shape)
        _product(dz.T, _matrix(x), out=wide)
        _written(grad_weight, wide)


# --- activations ------------------------------------------------------------------------------------------------------


def activation(x: Array, name: str, *, out: Array) -> None:
    """act(x) of each element; without a kernel it is an ordinary operation."""
    _C.activation(np.ascontiguousarray(x), CODES[name], out)


def activation_backward(grad: Array, saved: Array, name: str, *, out: Array) -> None:
    """act'(x)·grad, from x, or from the output where its sign is enough."""
    _C.activation_backward(np.ascontiguousarray(grad), np.ascontiguousarray(saved), CODES[name], out)


# --- softmax ----------------------------------------------------------------------------------------------------------


def softmax(x: Array, dim: int, log: bool, *, out: Array) -> None:
    """As in reference.py."""
    _C.softmax(x, None, dim % x.ndim if x.ndim else 0, log, out)


def softmax_backward(grad: Array, y: Array, dim: int, log: bool, *, out: Array) -> None:
    """As in reference.py."""
    _C.softmax(_converted(grad, y.dtype), y, dim % y.ndim if y.ndim else 0, log, out)


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
    _C.cross_entropy(logits, target, w, _arguments(o), loss, lse, argmax, grad)


def cross_entropy_backward(
    upstream: Array, logits: Array, target: Array, weight: Array | None, lse: Array | None, o: LossOptions, *,
    grad: Array | None, grad_target: Array | None,
) -> None:  # fmt: skip
    """As in reference.py; without ``lse`` the rows are summed again."""
    w = _vector(weight, logits.dtype)
    u = _converted(upstream, logits.dtype)
    _C.cross_entropy_backward(u, logits, target, w, lse, _arguments(o), grad, grad_target)


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
    bytes; 16-bit operands take float32 copies of a block of classes beside it, and their gradients float32 sums.
    """
    samples, losses = x.shape[0], linear_weight.shape[1]
    classes, wide, indices = linear_weight.shape[0], wide_dtype(x.dtype), target.ndim == 2
    order = None  # of the samples that count, if not all do
    if indices and lse is None and argmax is None:
        counted = (target != o.ignore_index).any(1)
        order = None if counted.all() else np.flatnonzero(counted)
    rows = samples if order is None else len(order)
    arguments, share = _denominated(target, weight, o, indices), _vector(weight, wide)
    sums = _Sums(wide, grad_input, grad_weight, grad_bias)
    if sums.input is not None and rows < samples:
        sums.input[...] = 0
    wanted = sums.wanted or grad_target is not None
    chunks = max(1, -(-rows * classes * wide.itemsize // LOGITS))
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
    """a Wᵀ (``turned``) or a W, in the dtype of ``a``: 16-bit weights are widened a block of classes at a time."""
    if weight.dtype == a.dtype:
        np.matmul(a, weight.T if turned else weight, out=out)
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
    or in sums of the wider dtype."""

    def __init__(self, wide: np.dtype, grad_input: Any, grad_weight: Any, grad_bias: Any):
        self.outputs = grad_input, grad_weight, grad_bias
        self.wanted = any(g is not None for g in self.outputs)
        self.input, self.weight = (
            g if g is None or g.dtype == wide else empty(g.shape, wide) for g in (grad_input, grad_weight)
        )
        self.bias = None if grad_bias is None else np.zeros(grad_bias.shape)
        self.begun: set[int] = set()  # the positions that the weight's gradient is written at

    def add(self, dz: Array, x: Array, weight: Array, d: int, part: Any, valid: Array | None) -> None:
        """The part of the samples ``part`` and the loss at position ``d``; dz is (rows, C), x (rows, K)."""
        if self.input is not None:
            if d == 0 and isinstance(part, slice):
                _multiply(dz, weight, self.input[part], turned=False)
            else:
                made = empty((len(dz), weight.shape[1]), dz.dtype)
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
            np.matmul(dz.T, x, out=total)
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
                output[...] = made
