"""A tensor's methods by torch's names: each is the function of the same name with the tensor as its first argument."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from . import elementwise, functions, indexing, reductions, shaping, storage
from .gradmode import is_grad_enabled
from .random import default_generator
from .reductions import Dim
from .storage import namespace


class Methods:
    """The named methods of ``Tensor``; in-place ones end in an underscore and return the tensor."""

    __slots__ = ()
    _array: Any
    _history: list[int]
    _update: Callable[..., Any]
    requires_grad: bool
    grad_fn: Any
    shape: Any
    ndim: int
    device: Any

    # --- dtype, device, layout ----------------------------------------------------------------------------------------

    def to(self, *args: Any, dtype: Any = None, device: Any = None, non_blocking: bool = False, copy: bool = False) -> Any:
        """The tensor on another device and/or in another dtype (also those of another tensor); itself if nothing changes."""
        for a in args:
            if isinstance(a, Methods):
                dtype, device = a._array.dtype, a.device
            elif isinstance(a, (str, storage.device)):
                device = a
            elif not isinstance(a, bool):
                dtype = a
        out: Any = self
        if dtype is not None:
            out = elementwise.cast(out, storage.numpy_dtype(dtype))
        if device is not None:
            out = shaping.to_device(out, device)
        return out.clone() if copy and out is self else out

    def type(self, dtype: Any) -> Any:
        """The tensor in another dtype."""
        return self.to(dtype=dtype)

    def cpu(self) -> Any:
        """The tensor on the host."""
        return self.to("cpu")

    def cuda(self, device: int | None = None) -> Any:
        """The tensor on a GPU."""
        return self.to("cuda" if device is None else f"cuda:{device}")

    def type_as(self, other: Any) -> Any:
        """The tensor in the dtype and on the device of another."""
        return self.to(other)

    def float(self) -> Any:
        """The tensor as float32."""
        return self.to(storage.float32)

    def double(self) -> Any:
        """The tensor as float64."""
        return self.to(storage.float64)

    def half(self) -> Any:
        """The tensor as float16."""
        return self.to(storage.float16)

    def bfloat16(self) -> Any:
        """The tensor as bfloat16."""
        return self.to(storage.bfloat16)

    def int(self) -> Any:
        """The tensor as int32."""
        return self.to(storage.int32)

    def long(self) -> Any:
        """The tensor as int64."""
        return self.to(storage.int64)

    def short(self) -> Any:
        """The tensor as int16."""
        return self.to(storage.int16)

    def bool(self) -> Any:
        """The tensor as bool."""
        return self.to(storage.bool_)

    def dim(self) -> int:
        """The number of dimensions."""
        return self.ndim

    def size(self, dim: int | None = None) -> Any:
        """The shape, or its size along ``dim``."""
        return self.shape if dim is None else self.shape[dim]

    def numel(self) -> int:
        """The number of elements."""
        return int(self._array.size)

    nelement = numel

    def element_size(self) -> int:
        """The bytes of one element."""
        return int(self._array.itemsize)

    def stride(self, dim: int | None = None) -> Any:
        """The distance, in elements, between neighbours along each dimension."""
        strides = tuple(s // self._array.itemsize for s in self._array.strides)
        return strides if dim is None else strides[dim]

    def data_ptr(self) -> int:
        """The address of the first element."""
        return storage.address(self._array)

    def is_floating_point(self) -> bool:
        """Whether the dtype is a floating one."""
        return storage.is_floating(self._array.dtype)

    def is_contiguous(self) -> bool:
        """Whether the elements lie in row-major order without gaps."""
        return bool(self._array.flags.c_contiguous)

    def contiguous(self) -> Any:
        """The tensor in row-major order: itself, or a copy."""
        return self if self.is_contiguous() else shaping.clone(self)

    def new_zeros(self, *shape: Any, dtype: Any = None) -> Any:
        """Zeros of a shape, of this tensor's dtype and device."""
        return self.new_full(shaping.shape_of(*shape), 0, dtype=dtype)

    def new_ones(self, *shape: Any, dtype: Any = None) -> Any:
        """Ones of a shape, of this tensor's dtype and device."""
        return self.new_full(shaping.shape_of(*shape), 1, dtype=dtype)

    def new_full(self, size: Sequence[int], fill_value: Any, *, dtype: Any = None) -> Any:
        """A constant of a shape, of this tensor's dtype and device."""
        return functions.full_like(shaping.expand(functions.ones_like(self).sum(), *size), fill_value, dtype=dtype or self._array.dtype)

    # --- the functions of the same names ------------------------------------------------------------------------------

    add, sub, mul, div = functions.add, functions.sub, functions.mul, functions.div
    floor_divide, remainder, pow = functions.floor_divide, functions.remainder, functions.pow
    maximum, minimum, clamp, clip = functions.maximum, functions.minimum, functions.clamp, functions.clamp
    neg, abs, sign, reciprocal, square = (
        functions.neg, functions.abs, functions.sign, functions.reciprocal, functions.square,
    )  # fmt: skip
    exp, expm1, sqrt, rsqrt = functions.exp, functions.expm1, functions.sqrt, functions.rsqrt
    log, log2, log10, log1p = functions.log, functions.log2, functions.log10, functions.log1p
    floor, ceil, round = functions.floor, functions.ceil, functions.round
    sin, cos, tan = functions.sin, functions.cos, functions.tan
    tanh, sigmoid, relu = functions.tanh, functions.sigmoid, functions.relu
    eq, ne, lt, le, gt, ge = functions.eq, functions.ne, functions.lt, functions.le, functions.gt, functions.ge
    isnan, isinf, isfinite = functions.isnan, functions.isinf, functions.isfinite
    logical_not, logical_and = functions.logical_not, functions.logical_and
    logical_or, logical_xor = functions.logical_or, functions.logical_xor
    equal, isclose, allclose = functions.equal, functions.isclose, functions.allclose

    sum, mean, var, std, prod = reductions.sum, reductions.mean, reductions.var, reductions.std, reductions.prod
    cumsum, logsumexp, norm = reductions.cumsum, reductions.logsumexp, reductions.norm
    softmax, log_softmax = reductions.softmax, reductions.log_softmax
    amax, amin, argmax, argmin = reductions.amax, reductions.amin, reductions.argmax, reductions.argmin
    all, any = reductions.all, reductions.any
    matmul, mm, bmm, mv = reductions.matmul, reductions.mm, reductions.bmm, reductions.mv
    dot, outer = reductions.dot, reductions.outer

    max, min, sort, argsort, topk = indexing.max, indexing.min, indexing.sort, indexing.argsort, indexing.topk
    gather, scatter, index_select = indexing.gather, indexing.scatter, indexing.index_select
    masked_fill, masked_select = indexing.masked_fill, indexing.masked_select
    nonzero, bincount = indexing.nonzero, indexing.bincount

    reshape, view, flatten, unflatten = shaping.reshape, shaping.view, shaping.flatten, shaping.unflatten
    permute, transpose, swapaxes, movedim = shaping.permute, shaping.transpose, shaping.swapaxes, shaping.movedim
    t, squeeze, unsqueeze = shaping.t, shaping.squeeze, shaping.unsqueeze
    expand, broadcast_to, repeat, clone = shaping.expand, shaping.broadcast_to, shaping.repeat, shaping.clone
    split, chunk, unbind, tril, triu = shaping.split, shaping.chunk, shaping.unbind, shaping.tril, shaping.triu

    # --- other arguments than the functions' --------------------------------------------------------------------------

    def where(self, condition: Any, other: Any) -> Any:
        """The tensor where ``condition`` holds, else ``other``."""
        return functions.where(condition, self, other)

    def flip(self, *dims: Any) -> Any:
        """The elements along ``dims`` in reverse order (a copy)."""
        return reductions.flip(self, shaping.shape_of(*dims))

    def view_as(self, other: Any) -> Any:
        """``view`` in the shape of ``other``."""
        return shaping.view(self, *other.shape)

    def reshape_as(self, other: Any) -> Any:
        """``reshape`` to the shape of ``other``."""
        return shaping.reshape(self, *other.shape)

    def expand_as(self, other: Any) -> Any:
        """``expand`` to the shape of ``other``."""
        return shaping.expand(self, *other.shape)

    # --- in place -------------------------------------------------------------------------------------------------------

    def add_(self, other: Any, *, alpha: float = 1) -> Any:
        return self._update(functions.add, other if alpha == 1 else other * alpha)

    def sub_(self, other: Any, *, alpha: float = 1) -> Any:
        return self._update(functions.sub, other if alpha == 1 else other * alpha)

    def mul_(self, other: Any) -> Any:
        return self._update(functions.mul, other)

    def div_(self, other: Any) -> Any:
        return self._update(functions.div, other)

    def pow_(self, exponent: Any) -> Any:
        return self._update(functions.pow, exponent)

    def clamp_(self, min: Any = None, max: Any = None) -> Any:
        return self._update(functions.clamp, min, max)

    def neg_(self) -> Any:
        return self._update(functions.neg)

    def exp_(self) -> Any:
        return self._update(functions.exp)

    def log_(self) -> Any:
        return self._update(functions.log)

    def sqrt_(self) -> Any:
        return self._update(functions.sqrt)

    def abs_(self) -> Any:
        return self._update(functions.abs)

    def reciprocal_(self) -> Any:
        return self._update(functions.reciprocal)

    def tanh_(self) -> Any:
        return self._update(functions.tanh)

    def sigmoid_(self) -> Any:
        return self._update(functions.sigmoid)

    def relu_(self) -> Any:
        return self._update(functions.relu)

    def round_(self) -> Any:
        return self._update(functions.round)

    def floor_(self) -> Any:
        return self._update(functions.floor)

    def ceil_(self) -> Any:
        return self._update(functions.ceil)

    def masked_fill_(self, mask: Any, value: Any) -> Any:
        return self._update(indexing.masked_fill, mask, value)

    def scatter_(self, dim: int, index: Any, src: Any) -> Any:
        return self._update(indexing.scatter, dim, index, src)

    def uniform_(self, a: float = 0.0, b: float = 1.0, generator: Any = None) -> Any:
        """Draw every element uniformly from [a, b)."""
        return self._draw((generator or default_generator).uniform(self.shape, a, b, self.device))

    def normal_(self, mean: float = 0.0, std: float = 1.0, generator: Any = None) -> Any:
        """Draw every element from the normal distribution of this mean and standard deviation."""
        return self._draw((generator or default_generator).normal(self.shape, mean, std, self.device))

    def bernoulli_(self, p: float = 0.5, generator: Any = None) -> Any:
        """Draw every element: 1 with probability ``p``, else 0."""
        return self._draw((generator or default_generator).uniform(self.shape, 0.0, 1.0, self.device) < p)

    def _draw(self, values: Any) -> Any:
        if self.requires_grad and self.grad_fn is None and is_grad_enabled():
            raise RuntimeError("a leaf tensor that requires grad is being used in an in-place operation; use no_grad()")
        self._array[...] = namespace(self._array).asarray(values).astype(self._array.dtype)
        self._history[0] += 1
        return self
