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

    # --- arithmetic -----------------------------------------------------------------------------------------------------

    def add(self, other: Any, *, alpha: float = 1) -> Any:
        return functions.add(self, other, alpha=alpha)

    def sub(self, other: Any, *, alpha: float = 1) -> Any:
        return functions.sub(self, other, alpha=alpha)

    def mul(self, other: Any) -> Any:
        return functions.mul(self, other)

    def div(self, other: Any, *, rounding_mode: str | None = None) -> Any:
        return functions.div(self, other, rounding_mode=rounding_mode)

    def floor_divide(self, other: Any) -> Any:
        return functions.floor_divide(self, other)

    def remainder(self, other: Any) -> Any:
        return functions.remainder(self, other)

    def pow(self, exponent: Any) -> Any:
        return functions.pow(self, exponent)

    def maximum(self, other: Any) -> Any:
        return functions.maximum(self, other)

    def minimum(self, other: Any) -> Any:
        return functions.minimum(self, other)

    def where(self, condition: Any, other: Any) -> Any:
        return functions.where(condition, self, other)

    def clamp(self, min: Any = None, max: Any = None) -> Any:
        return functions.clamp(self, min, max)

    clip = clamp

    def neg(self) -> Any:
        return functions.neg(self)

    def exp(self) -> Any:
        return functions.exp(self)

    def expm1(self) -> Any:
        return functions.expm1(self)

    def log(self) -> Any:
        return functions.log(self)

    def log2(self) -> Any:
        return functions.log2(self)

    def log10(self) -> Any:
        return functions.log10(self)

    def log1p(self) -> Any:
        return functions.log1p(self)

    def sqrt(self) -> Any:
        return functions.sqrt(self)

    def rsqrt(self) -> Any:
        return functions.rsqrt(self)

    def square(self) -> Any:
        return functions.square(self)

    def reciprocal(self) -> Any:
        return functions.reciprocal(self)

    def abs(self) -> Any:
        return functions.abs(self)

    def sign(self) -> Any:
        return functions.sign(self)

    def floor(self) -> Any:
        return functions.floor(self)

    def ceil(self) -> Any:
        return functions.ceil(self)

    def round(self, *, decimals: int = 0) -> Any:
        return functions.round(self, decimals=decimals)

    def sin(self) -> Any:
        return functions.sin(self)

    def cos(self) -> Any:
        return functions.cos(self)

    def tan(self) -> Any:
        return functions.tan(self)

    def tanh(self) -> Any:
        return functions.tanh(self)

    def sigmoid(self) -> Any:
        return functions.sigmoid(self)

    def relu(self) -> Any:
        return functions.relu(self)

    def eq(self, other: Any) -> Any:
        return self == other

    def ne(self, other: Any) -> Any:
        return self != other

    def lt(self, other: Any) -> Any:
        return self < other

    def le(self, other: Any) -> Any:
        return self <= other

    def gt(self, other: Any) -> Any:
        return self > other

    def ge(self, other: Any) -> Any:
        return self >= other

    def isnan(self) -> Any:
        return functions.isnan(self)

    def isinf(self) -> Any:
        return functions.isinf(self)

    def isfinite(self) -> Any:
        return functions.isfinite(self)

    def logical_not(self) -> Any:
        return functions.logical_not(self)

    def logical_and(self, other: Any) -> Any:
        return functions.logical_and(self, other)

    def logical_or(self, other: Any) -> Any:
        return functions.logical_or(self, other)

    def logical_xor(self, other: Any) -> Any:
        return functions.logical_xor(self, other)

    def equal(self, other: Any) -> bool:
        return functions.equal(self, other)

    def isclose(self, other: Any, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False) -> Any:
        return functions.isclose(self, other, rtol, atol, equal_nan)

    def allclose(self, other: Any, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False) -> bool:
        return functions.allclose(self, other, rtol, atol, equal_nan)

    # --- reductions -----------------------------------------------------------------------------------------------------

    def sum(self, dim: Dim = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
        return reductions.sum(self, dim, keepdim, dtype=dtype)

    def mean(self, dim: Dim = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
        return reductions.mean(self, dim, keepdim, dtype=dtype)

    def var(self, dim: Dim = None, unbiased: bool = True, keepdim: bool = False, *, correction: float | None = None) -> Any:
        return reductions.var(self, dim, unbiased, keepdim, correction=correction)

    def std(self, dim: Dim = None, unbiased: bool = True, keepdim: bool = False, *, correction: float | None = None) -> Any:
        return reductions.std(self, dim, unbiased, keepdim, correction=correction)

    def prod(self, dim: int | None = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
        return reductions.prod(self, dim, keepdim, dtype=dtype)

    def cumsum(self, dim: int, *, dtype: Any = None) -> Any:
        return reductions.cumsum(self, dim, dtype=dtype)

    def amax(self, dim: Dim = None, keepdim: bool = False) -> Any:
        return reductions.amax(self, dim, keepdim)

    def amin(self, dim: Dim = None, keepdim: bool = False) -> Any:
        return reductions.amin(self, dim, keepdim)

    def all(self, dim: Dim = None, keepdim: bool = False) -> Any:
        return reductions.all(self, dim, keepdim)

    def any(self, dim: Dim = None, keepdim: bool = False) -> Any:
        return reductions.any(self, dim, keepdim)

    def argmax(self, dim: int | None = None, keepdim: bool = False) -> Any:
        return reductions.argmax(self, dim, keepdim)

    def argmin(self, dim: int | None = None, keepdim: bool = False) -> Any:
        return reductions.argmin(self, dim, keepdim)

    def logsumexp(self, dim: Dim, keepdim: bool = False) -> Any:
        return reductions.logsumexp(self, dim, keepdim)

    def softmax(self, dim: int, dtype: Any = None) -> Any:
        return reductions.softmax(self, dim, dtype)

    def log_softmax(self, dim: int, dtype: Any = None) -> Any:
        return reductions.log_softmax(self, dim, dtype)

    def norm(self, p: float | str = 2, dim: Dim = None, keepdim: bool = False) -> Any:
        return reductions.norm(self, p, dim, keepdim)

    def max(self, dim: Any = None, keepdim: bool = False) -> Any:
        return indexing.max(self, dim, keepdim)

    def min(self, dim: Any = None, keepdim: bool = False) -> Any:
        return indexing.min(self, dim, keepdim)

    def matmul(self, other: Any) -> Any:
        return reductions.matmul(self, other)

    def mm(self, mat2: Any) -> Any:
        return reductions.mm(self, mat2)

    def bmm(self, mat2: Any) -> Any:
        return reductions.bmm(self, mat2)

    def mv(self, vec: Any) -> Any:
        return reductions.mv(self, vec)

    def dot(self, other: Any) -> Any:
        return reductions.dot(self, other)

    def outer(self, vec2: Any) -> Any:
        return reductions.outer(self, vec2)

    # --- shapes and indices ---------------------------------------------------------------------------------------------

    def reshape(self, *shape: Any) -> Any:
        return shaping.reshape(self, *shape)

    def view(self, *shape: Any) -> Any:
        return shaping.view(self, *shape)

    def view_as(self, other: Any) -> Any:
        return shaping.view(self, *other.shape)

    def reshape_as(self, other: Any) -> Any:
        return shaping.reshape(self, *other.shape)

    def flatten(self, start_dim: int = 0, end_dim: int = -1) -> Any:
        return shaping.flatten(self, start_dim, end_dim)

    def unflatten(self, dim: int, sizes: Sequence[int]) -> Any:
        return shaping.unflatten(self, dim, sizes)

    def permute(self, *dims: Any) -> Any:
        return shaping.permute(self, *dims)

    def transpose(self, dim0: int, dim1: int) -> Any:
        return shaping.transpose(self, dim0, dim1)

    def swapaxes(self, axis0: int, axis1: int) -> Any:
        return shaping.swapaxes(self, axis0, axis1)

    def movedim(self, source: int, destination: int) -> Any:
        return shaping.movedim(self, source, destination)

    def t(self) -> Any:
        return shaping.t(self)

    def squeeze(self, dim: Any = None) -> Any:
        return shaping.squeeze(self, dim)

    def unsqueeze(self, dim: int) -> Any:
        return shaping.unsqueeze(self, dim)

    def expand(self, *sizes: Any) -> Any:
        return shaping.expand(self, *sizes)

    def broadcast_to(self, shape: Sequence[int]) -> Any:
        return shaping.broadcast_to(self, shape)

    def expand_as(self, other: Any) -> Any:
        return shaping.expand(self, *other.shape)

    def repeat(self, *sizes: Any) -> Any:
        return shaping.repeat(self, *sizes)

    def clone(self) -> Any:
        return shaping.clone(self)

    def flip(self, *dims: Any) -> Any:
        return reductions.flip(self, shaping.shape_of(*dims))

    def index_select(self, dim: int, index: Any) -> Any:
        return indexing.index_select(self, dim, index)

    def gather(self, dim: int, index: Any) -> Any:
        return indexing.gather(self, dim, index)

    def scatter(self, dim: int, index: Any, src: Any) -> Any:
        return indexing.scatter(self, dim, index, src)

    def masked_fill(self, mask: Any, value: Any) -> Any:
        return indexing.masked_fill(self, mask, value)

    def masked_select(self, mask: Any) -> Any:
        return indexing.masked_select(self, mask)

    def split(self, split_size: Any, dim: int = 0) -> Any:
        return shaping.split(self, split_size, dim)

    def chunk(self, chunks: int, dim: int = 0) -> Any:
        return shaping.chunk(self, chunks, dim)

    def unbind(self, dim: int = 0) -> Any:
        return shaping.unbind(self, dim)

    def tril(self, diagonal: int = 0) -> Any:
        return shaping.tril(self, diagonal)

    def triu(self, diagonal: int = 0) -> Any:
        return shaping.triu(self, diagonal)

    def sort(self, dim: int = -1, descending: bool = False, stable: bool = True) -> Any:
        return indexing.sort(self, dim, descending, stable)

    def argsort(self, dim: int = -1, descending: bool = False) -> Any:
        return indexing.argsort(self, dim, descending)

    def topk(self, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> Any:
        return indexing.topk(self, k, dim, largest, sorted)

    def nonzero(self, *, as_tuple: bool = False) -> Any:
        return indexing.nonzero(self, as_tuple=as_tuple)

    def bincount(self, weights: Any = None, minlength: int = 0) -> Any:
        return indexing.bincount(self, weights, minlength)

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
