"""Tensor: an array, its place in the graph, and Python's operators. Its named methods are in methods.py."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np

from . import autograd, elementwise, functions, indexing, reductions, shaping, storage
from .gradmode import is_grad_enabled, no_grad
from .graph import Edge, Function, Variable
from .methods import Methods
from .storage import Array, device, dtype, namespace, numpy_dtype
from .printing import tensor_repr


class Tensor(Methods, Variable):
    """An n-dimensional array of one dtype on one device, that can be differentiated with respect to.

    Made by ``tilegrad.tensor``, ``zeros``, ``from_numpy`` and the like; ``Tensor(data)`` is ``tensor(data)`` in the
    default float dtype, as in torch.
    """

    __slots__ = ()
    __array_priority__ = 1000  # beside a NumPy array, the tensor's operators decide
    _namespace = functions  # the recorded functions: where derivatives of derivatives come from

    def __init__(self, *data: Any):
        if len(data) == 1 and not isinstance(data[0], int):
            array = data[0]._array if isinstance(data[0], Variable) else np.asarray(data[0])
            self._init(array.astype(storage.get_default_dtype().dtype, copy=False))
        else:
            self._init(np.zeros(data or (0,), storage.get_default_dtype().dtype))

    def _init(self, array: Array) -> None:
        self._array = array
        self._base = None
        self._grad = None
        self._history = [0, 0]
        self._output = 0
        self._seen = 0
        self.grad_fn = None
        self.requires_grad = False

    def _make(self, array: Array) -> Tensor:
        return wrap(array)

    def _edge(self) -> Edge | None:
        if not self.requires_grad:
            if self._base is None or self._seen == self._history[1]:
                return None
        if self._base is not None and self._seen != self._history[1]:
            self._catch_up()
        if self.grad_fn is None:
            return (self, 0) if self.requires_grad else None
        return self.grad_fn, self._output

    def _catch_up(self) -> None:
        """An in-place operation elsewhere in this view's memory was recorded: take the base's history over."""
        with autograd.enable_grad():
            fresh = indexing.Region.apply(self._base, self._array)
        self.grad_fn, self._output, self.requires_grad = fresh.grad_fn, fresh._output, fresh.requires_grad
        self._seen = self._history[1]

    # --- what it is ---------------------------------------------------------------------------------------------------

    @property
    def shape(self) -> Size:
        return Size(self._array.shape)

    @property
    def ndim(self) -> int:
        return self._array.ndim

    @property
    def dtype(self) -> dtype:
        return storage.as_dtype(self._array.dtype)

    @property
    def device(self) -> device:
        return storage.device_of(self._array)

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def is_leaf(self) -> bool:
        """Whether no recorded operation made it; a leaf that requires grad collects it in ``.grad``."""
        return self.grad_fn is None

    @property
    def itemsize(self) -> int:
        return self._array.itemsize

    @property
    def nbytes(self) -> int:
        return self._array.nbytes

    @property
    def grad(self) -> Tensor | None:
        """The gradient collected so far: a tensor of this one's shape, or None."""
        return self._grad

    @grad.setter
    def grad(self, value: Tensor | None) -> None:
        if value is not None and (not isinstance(value, Tensor) or value.shape != self.shape):
            got = f"shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"grad: expected None or a Tensor of shape {list(self.shape)}, got {got}")
        self._grad = value

    @property
    def data(self) -> Tensor:
        """The same memory, outside of every graph; writing to it is not noticed by the version check."""
        return wrap(self._array)

    @data.setter
    def data(self, value: Tensor) -> None:
        if not isinstance(value, Tensor):
            raise TypeError(f"data: expected a Tensor, got {type(value).__name__}")
        self._array = value._array
        self._history = [self._history[0] + 1, 0]

    @property
    def T(self) -> Tensor:
        return shaping.permute(self, *range(self.ndim)[::-1]) if self.ndim else self

    @property
    def mT(self) -> Tensor:
        if self.ndim < 2:
            raise ValueError(f"mT: expected at least 2 dimensions, got {self.ndim}")
        return shaping.transpose(self, -1, -2)

    @property
    def _version(self) -> int:
        """How often its memory was written to in place."""
        return self._history[0]

    def _bump(self) -> None:
        """Count a write to the array that was made behind the tensor's back."""
        self._history[0] += 1

    # --- the graph ----------------------------------------------------------------------------------------------------

    def backward(
        self, gradient: Tensor | None = None, retain_graph: bool | None = None, create_graph: bool = False, inputs: Any = None
    ) -> None:
        """Accumulate the gradient of this tensor, weighted by ``gradient``, into the leaves (or only into ``inputs``).

        Raises:
            RuntimeError: not a scalar and no ``gradient``; no gradient needed; the graph was freed already.
        """
        if inputs is None:
            autograd.backward(self, gradient, retain_graph, create_graph)
            return
        leaves = inputs if isinstance(inputs, (list, tuple)) else [inputs]
        grads = autograd.grad(self, leaves, gradient, retain_graph, create_graph, allow_unused=True)
        for leaf, g in zip(leaves, grads, strict=True):
            if g is not None:
                autograd._accumulate(leaf, g, True, create_graph)

    def requires_grad_(self, requires_grad: bool = True) -> Tensor:
        """Ask for (or give up) this leaf's gradient, in place."""
        if not self.is_leaf and not requires_grad:
            raise RuntimeError("requires_grad can only be changed on leaves; use detach() for a tensor without history")
        if requires_grad and not storage.is_floating(self._array.dtype):
            raise RuntimeError(f"only tensors of a floating dtype can require gradients, got {self.dtype}")
        self.requires_grad = requires_grad
        return self

    def retain_grad(self) -> None:
        """Collect ``.grad`` although this is not a leaf."""
        if self.grad_fn is not None:
            self.grad_fn._retained = {**(self.grad_fn._retained or {}), self._output: weakref.ref(self)}
        elif not self.requires_grad:
            raise RuntimeError("retain_grad: the tensor does not require grad")

    def detach(self) -> Tensor:
        """The same memory without history; a write to one counts as a write to the other."""
        out = wrap(self._array)
        out._history = self._history
        return out

    def detach_(self) -> Tensor:
        """Forget the history, in place."""
        self.grad_fn, self.requires_grad = None, False
        self._seen = self._history[1]
        return self

    # --- in place -----------------------------------------------------------------------------------------------------

    def _update(self, operation: Any, *args: Any) -> Tensor:
        """self[...] = operation(self, *args): the in-place form of an operation, recorded where a gradient needs it."""
        recorded = is_grad_enabled() and (
            self.requires_grad or any(isinstance(a, Variable) and a.requires_grad for a in args)
        )
        if not recorded:
            result = operation(self, *args)
            self._check_in_place(result)
            self._write(result)
            return self
        self._check_recordable()
        # What the operation keeps of this tensor's old value has to outlive the write.
        old = wrap(self._array.copy())
        edge = self._edge()
        if edge is not None:
            old.grad_fn, old._output, old.requires_grad = edge[0], edge[1], True
        result = operation(old, *args)
        self._check_in_place(result)
        self._write(result)
        self._rebase(result)
        return self

    def _check_recordable(self) -> None:
        root = self if self._base is None else self._base
        if root.requires_grad and root.grad_fn is None:
            what = "a leaf tensor" if self._base is None else "a view of a leaf tensor"
            raise RuntimeError(f"{what} that requires grad is being used in an in-place operation; use no_grad()")

    def _check_in_place(self, result: Tensor) -> None:
        if result.shape != self.shape:
            raise ValueError(f"in-place operation: a result of shape {list(result.shape)} does not fit {list(self.shape)}")
        if functions._category(result._array.dtype) > functions._category(self._array.dtype):
            raise TypeError(f"in-place operation: a result of {result.dtype} cannot be stored in {self.dtype}")

    def _write(self, result: Tensor) -> None:
        with np.errstate(all="ignore"):
            self._array[...] = result._array
        self._history[0] += 1

    def _rebase(self, result: Tensor) -> None:
        """Give this tensor the history of ``result``, whose value it now holds, and tell base and other views of it."""
        if not result.requires_grad:
            return
        base = self._base
        if base is not None:
            with autograd.enable_grad():
                whole = indexing.RegionPut.apply(base.detach_alias(), result, self._array)
            base.grad_fn, base._output, base.requires_grad = whole.grad_fn, whole._output, True
        self._history[1] += 1
        self.grad_fn, self._output, self.requires_grad = result.grad_fn, result._output, True
        self._seen = self._history[1]
        if base is not None:
            base._seen = self._history[1]

    def detach_alias(self) -> Tensor:
        """This tensor as an input of the operation that replaces its history."""
        out = wrap(self._array)
        out.grad_fn, out._output, out.requires_grad = self.grad_fn, self._output, self.requires_grad
        return out

    def copy_(self, src: Any) -> Tensor:
        """The values of ``src`` (any dtype or device, broadcast) written here."""
        return self._update(_replaced, src)

    def zero_(self) -> Tensor:
        """Zeros written here."""
        return self.fill_(0)

    def fill_(self, value: Any) -> Tensor:
        """``value``, a number or a 0-d tensor, written here."""
        return self._update(_replaced, value)

    def __setitem__(self, key: Any, value: Any) -> None:
        basic, advanced = indexing.keys_of(self, key)
        if basic and advanced:
            indexing.Index.apply(self, basic)[advanced] = value
            return
        place = basic or advanced
        xp = namespace(self._array)
        if not isinstance(value, Tensor):
            value = wrap(xp.asarray(value).astype(self._array.dtype))
        value = elementwise.cast(value, self._array.dtype)
        if not (is_grad_enabled() and (self.requires_grad or value.requires_grad)):
            self._array[place] = storage.to_device(value._array, self.device)
            self._history[0] += 1
            return
        self._check_recordable()
        # The memory is written once; the graph gets the same operation as a Function of the old value.
        if value._history is self._history and value.requires_grad:  # y[0] += x: the value is a part of this tensor
            value = shaping.clone(value)
        old = wrap(self._array.copy())
        edge = self._edge()
        if edge is not None:
            old.grad_fn, old._output, old.requires_grad = edge[0], edge[1], True
        result = indexing.IndexPut.apply(old, value, place)
        self._write(result)
        self._rebase(result)

    # --- operators ----------------------------------------------------------------------------------------------------

    def __add__(self, other: Any) -> Tensor:
        return functions.add(self, other)

    __radd__ = __add__

    def __sub__(self, other: Any) -> Tensor:
        return functions.sub(self, other)

    def __rsub__(self, other: Any) -> Tensor:
        return functions.sub(other, self)

    def __mul__(self, other: Any) -> Tensor:
        return functions.mul(self, other)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Tensor:
        return functions.div(self, other)

    def __rtruediv__(self, other: Any) -> Tensor:
        return functions.div(other, self)

    def __floordiv__(self, other: Any) -> Tensor:
        return functions.floor_divide(self, other)

    def __rfloordiv__(self, other: Any) -> Tensor:
        return functions.floor_divide(other, self)

    def __mod__(self, other: Any) -> Tensor:
        return functions.remainder(self, other)

    def __rmod__(self, other: Any) -> Tensor:
        return functions.remainder(other, self)

    def __pow__(self, exponent: Any) -> Tensor:
        return functions.pow(self, exponent)

    def __rpow__(self, base: Any) -> Tensor:
        return functions.pow(base, self)

    def __matmul__(self, other: Any) -> Tensor:
        return reductions.matmul(self, other)

    def __rmatmul__(self, other: Any) -> Tensor:
        return reductions.matmul(other, self)

    def __neg__(self) -> Tensor:
        return functions.neg(self)

    def __pos__(self) -> Tensor:
        return self

    def __abs__(self) -> Tensor:
        return functions.abs(self)

    def __invert__(self) -> Tensor:
        return wrap(~self._array)

    def __iadd__(self, other: Any) -> Tensor:
        return self._update(functions.add, other)

    def __isub__(self, other: Any) -> Tensor:
        return self._update(functions.sub, other)

    def __imul__(self, other: Any) -> Tensor:
        return self._update(functions.mul, other)

    def __itruediv__(self, other: Any) -> Tensor:
        return self._update(functions.div, other)

    def __ifloordiv__(self, other: Any) -> Tensor:
        return self._update(functions.floor_divide, other)

    def __imod__(self, other: Any) -> Tensor:
        return self._update(functions.remainder, other)

    def __ipow__(self, exponent: Any) -> Tensor:
        return self._update(functions.pow, exponent)

    def __eq__(self, other: Any) -> Any:
        return False if other is None else functions._plain("equal", self, other)

    def __ne__(self, other: Any) -> Any:
        return True if other is None else functions._plain("not_equal", self, other)

    def __lt__(self, other: Any) -> Tensor:
        return functions._plain("less", self, other)

    def __le__(self, other: Any) -> Tensor:
        return functions._plain("less_equal", self, other)

    def __gt__(self, other: Any) -> Tensor:
        return functions._plain("greater", self, other)

    def __ge__(self, other: Any) -> Tensor:
        return functions._plain("greater_equal", self, other)

    def __and__(self, other: Any) -> Tensor:
        return functions._plain("bitwise_and", self, other)

    __rand__ = __and__

    def __or__(self, other: Any) -> Tensor:
        return functions._plain("bitwise_or", self, other)

    __ror__ = __or__

    def __xor__(self, other: Any) -> Tensor:
        return functions._plain("bitwise_xor", self, other)

    __rxor__ = __xor__

    def __hash__(self) -> int:
        return id(self)

    def __getitem__(self, key: Any) -> Tensor:
        return indexing.getitem(self, key)

    def __len__(self) -> int:
        if self.ndim == 0:
            raise TypeError("len() of a 0-d tensor")
        return self._array.shape[0]

    def __iter__(self) -> Any:
        if self.ndim == 0:
            raise TypeError("iteration over a 0-d tensor")
        return iter(shaping.unbind(self))

    def __contains__(self, item: Any) -> bool:
        return bool((self == item).any())

    def __bool__(self) -> bool:
        return bool(self._one("bool"))

    def __float__(self) -> float:
        return float(self._one("float"))

    def __int__(self) -> int:
        return int(self._one("int"))

    def __index__(self) -> int:
        if self._array.dtype.kind not in "iub":
            raise TypeError(f"only integer tensors of one element can be converted to an index, got {self.dtype}")
        return int(self._one("index"))

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if self.ndim == 0 and spec else str(self)

    def __repr__(self) -> str:
        return tensor_repr(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if not self.is_leaf:
            raise RuntimeError("only leaves can be deep-copied; use clone() or detach()")
        copied = type(self).__new__(type(self))
        Tensor._init(copied, self._array.copy())
        copied.requires_grad = self.requires_grad
        copied._grad = None if self._grad is None else wrap(self._grad._array.copy())
        memo[id(self)] = copied
        return copied

    # --- in and out ---------------------------------------------------------------------------------------------------

    def _one(self, what: str) -> Any:
        if self._array.size != 1:
            raise RuntimeError(f"{what}: expected a tensor of one element, got shape {list(self.shape)}")
        return storage.to_device(self._array, "cpu").reshape(())[()]

    def item(self) -> Any:
        """The only element, as a Python number."""
        value = self._one("item")
        return float(value) if self.dtype.is_floating_point else value.item()

    def tolist(self) -> Any:
        """The elements as nested lists of Python numbers."""
        host = storage.to_device(self._array, "cpu")
        return (host.astype(np.float32) if host.dtype == storage.bfloat16 else host).tolist()

    def numpy(self, *, force: bool = False) -> np.ndarray:
        """The same memory as a NumPy array; ``force`` detaches and copies to the host first.

        Raises:
            RuntimeError: it requires grad (use ``detach()``); TypeError: it is on a GPU (use ``cpu()``).
        """
        if not force and self.requires_grad:
            raise RuntimeError("numpy: the tensor requires grad; use tensor.detach().numpy()")
        if not force and self.is_cuda:
            raise TypeError(f"numpy: the tensor is on {self.device}; use tensor.cpu().numpy()")
        return storage.to_device(self._array, "cpu")

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.numpy(), dtype=dtype, copy=copy)

    def __dlpack__(self, **kwargs: Any) -> Any:
        if self.requires_grad:
            raise BufferError("__dlpack__: the tensor requires grad; use tensor.detach()")
        return self._array.__dlpack__(**kwargs)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._array.__dlpack_device__()


class Size(tuple):
    """A shape: a tuple that prints as torch's does."""

    def __repr__(self) -> str:
        return f"tilegrad.Size({list(self)})"

    def numel(self) -> int:
        """How many elements it holds."""
        return storage.elements(self)


def wrap(array: Array) -> Tensor:
    """A tensor over an array's memory."""
    t: Tensor = Tensor.__new__(Tensor)
    t._init(array)
    return t


def _replaced(old: Tensor, value: Any) -> Tensor:
    """``value`` in the shape, dtype and on the device of ``old``."""
    if not isinstance(value, Variable):
        with storage.on_device_of(old._array):
            xp = namespace(old._array)
            value = wrap(xp.asarray(value).astype(old._array.dtype))
    elif value.device != old.device:
        value = value.to(old.device)
    return shaping.expand(elementwise.cast(value, old._array.dtype), *old.shape)


def unwrap(x: Any) -> Any:
    """The array under a tensor; anything else is itself."""
    return x._array if isinstance(x, Variable) else x


Function.__module__ = "tilegrad.autograd"
__all__ = ["Size", "Tensor", "no_grad", "numpy_dtype", "unwrap", "wrap"]
