"""A tensor's methods by torch's names: each is the function of the same name with the tensor as its first argument."""

from __future__ import annotations

import builtins
import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from . import elementwise, functions, indexing, reductions, shaping, storage
from .rng import default_generator
from .storage import namespace


def in_place(function: Callable[..., Any]) -> Callable[..., Any]:
    """The method that writes the result of a function into the tensor, recorded where a gradient needs it."""

    @functools.wraps(function)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self._update(function, *args, **kwargs)

    return method


class Methods:
    """The named methods of ``Tensor``; in-place ones end in an underscore and return the tensor."""

    __slots__ = ()

    if TYPE_CHECKING:  # what Tensor adds

        def __getattr__(self, name: str) -> Any: ...

    # --- dtype, device, layout ----------------------------------------------------------------------------------------

    def to(
        self,
        *args: Any,
        dtype: Any = None,
        device: Any = None,
        non_blocking: builtins.bool = False,
        copy: builtins.bool = False,
    ) -> Any:
        """The tensor on another device, in another dtype, or in those of another tensor; itself if nothing changes."""
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

    def cuda(self, device: builtins.int | None = None) -> Any:
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

    def dim(self) -> builtins.int:
        """The number of dimensions."""
        return self.ndim

    def size(self, dim: builtins.int | None = None) -> Any:
        """The shape, or its size along ``dim``."""
        return self.shape if dim is None else self.shape[dim]

    def numel(self) -> builtins.int:
        """The number of elements."""
        return int(self._array.size)

    nelement = numel

    def element_size(self) -> builtins.int:
        """The bytes of one element."""
        return int(self._array.itemsize)

    def stride(self, dim: builtins.int | None = None) -> Any:
        """The distance, in elements, between neighbours along each dimension."""
        strides = tuple(s // self._array.itemsize for s in self._array.strides)
        return strides if dim is None else strides[dim]

    def data_ptr(self) -> builtins.int:
        """The address of the first element."""
        return storage.address(self._array)

    def is_floating_point(self) -> builtins.bool:
        """Whether the dtype is a floating one."""
        return storage.is_floating(self._array.dtype)

    def is_contiguous(self) -> builtins.bool:
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

    def new_full(self, size: Sequence[builtins.int], fill_value: Any, *, dtype: Any = None) -> Any:
        """A constant of a shape, of this tensor's dtype and device."""
        x = self._array
        with storage.on_device_of(x):
            dt = x.dtype if dtype is None else storage.numpy_dtype(dtype)
            return self._make(namespace(x).full(shaping.shape_of(*size), fill_value, dt))

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

    # --- in place -----------------------------------------------------------------------------------------------------

    add_, sub_ = in_place(functions.add), in_place(functions.sub)
    mul_, div_ = in_place(functions.mul), in_place(functions.div)
    floor_divide_, remainder_ = in_place(functions.floor_divide), in_place(functions.remainder)
    pow_, clamp_ = in_place(functions.pow), in_place(functions.clamp)
    neg_, abs_, reciprocal_ = in_place(functions.neg), in_place(functions.abs), in_place(functions.reciprocal)
    exp_, log_, sqrt_ = in_place(functions.exp), in_place(functions.log), in_place(functions.sqrt)
    tanh_, sigmoid_, relu_ = in_place(functions.tanh), in_place(functions.sigmoid), in_place(functions.relu)
    floor_, ceil_, round_ = in_place(functions.floor), in_place(functions.ceil), in_place(functions.round)
    masked_fill_, scatter_ = in_place(indexing.masked_fill), in_place(indexing.scatter)

    def uniform_(self, a: builtins.float = 0.0, b: builtins.float = 1.0, generator: Any = None) -> Any:
        """Draw every element uniformly from [a, b)."""
        return self._draw((generator or default_generator).uniform(self.shape, a, b, self.device))

    def normal_(self, mean: builtins.float = 0.0, std: builtins.float = 1.0, generator: Any = None) -> Any:
        """Draw every element from the normal distribution of this mean and standard deviation."""
        return self._draw((generator or default_generator).normal(self.shape, mean, std, self.device))

    def bernoulli_(self, p: builtins.float = 0.5, generator: Any = None) -> Any:
        """Draw every element: 1 with probability ``p``, else 0."""
        return self._draw((generator or default_generator).uniform(self.shape, 0.0, 1.0, self.device) < p)

    def _draw(self, values: Any) -> Any:
        return self.copy_(self._make(values))
