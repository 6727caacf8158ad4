"""Tensor: an array, its place in the graph, and Python's operators. Its named methods are in methods.py."""

from __future__ import annotations

import math
import weakref
from typing import Any

import numpy as np

from . import autograd, elementwise, functions, indexing, reductions, shaping, storage
from .gradmode import is_grad_enabled
from .graph import Edge, Variable
from .methods import Methods, in_place
from .printing import tensor_repr
from .storage import Array, device, dtype, namespace


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
        self._base = self._grad = self.grad_fn = None
        self._history = [0, 0]
        self._output = self._seen = 0
        self.requires_grad = False

    @staticmethod
    def _make(array: Array) -> Tensor:
        """A tensor over an array's memory."""
        t: Tensor = Tensor.__new__(Tensor)
        t._init(array)
        return t

    def _edge(self) -> Edge | None:
        if self._base is not None and self._seen != self._history[1]:
            self._catch_up()
        if not self.requires_grad:
            return None
        return (self, 0) if self.grad_fn is None else (self.grad_fn, self._output)

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
        self._base, self._history, self._seen = None, [0, 0], 0  # other memory than before

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
        self,
        gradient: Tensor | None = None,
        retain_graph: bool | None = None,
        create_graph: bool = False,
        inputs: Any = None,
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
                autograd._accumulate(leaf, g if create_graph else g._array, False, create_graph)

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

    def _begin_write(self, *sources: Any) -> Tensor | None:
        """Before a write: what stands for the old value in the graph, or None where nothing is to be recorded."""
        if not is_grad_enabled():
            return None
        edge = self._edge()
        if edge is None and not any(isinstance(s, Variable) and s._edge() is not None for s in sources):
            return None
        for t, what in ((self, "a leaf tensor"), (self._base, "a view of a leaf tensor")):
            if t is not None and t.requires_grad and t.grad_fn is None:
                raise RuntimeError(f"{what} that requires grad is being used in an in-place operation; use no_grad()")
        return self._old(edge)

    def _old(self, edge: Edge | None) -> Tensor:
        out = wrap(self._array)
        if edge is not None:
            out.grad_fn, out._output, out.requires_grad = edge[0], edge[1], True
        return out

    def _end_write(self, result: Tensor | None) -> None:
        """After a write: count it. A recorded ``result`` is this tensor's new history, and part of its base's."""
        self._history[0] += 1
        if result is None:
            return
        self._history[1] += 1
        base = self._base
        if base is not None:
            base._adopt(indexing.RegionPut.apply(base._old(base._edge()), result, self._array))
        self._adopt(result)

    def _adopt(self, result: Tensor) -> None:
        self.grad_fn, self._output, self.requires_grad = result.grad_fn, result._output, result.requires_grad
        self._seen = self._history[1]

    def _update(self, operation: Any, *args: Any, **kwargs: Any) -> Tensor:
        """self[...] = operation(self, …): the in-place form of an operation, recorded where a gradient needs it."""
        old, x = self._begin_write(*args, *kwargs.values()), self._array
        if old is None:
            result = operation(self, *args, **kwargs)
        else:
            with storage.on_device_of(x):
                old._array = x.copy()  # what the operation keeps of the old value has to outlive the write
            result = operation(old, *(old if a is self else a for a in args), **kwargs)
        new = result._array
        if new.shape != x.shape:
            raise ValueError(f"in-place operation: a result of shape {list(new.shape)} does not fit {list(x.shape)}")
        if functions._category(new.dtype) > functions._category(x.dtype):
            raise TypeError(f"in-place operation: a result of {result.dtype} cannot be stored in {self.dtype}")
        if x.size and any(step == 0 and n > 1 for step, n in zip(x.strides, x.shape, strict=True)):
            raise ValueError("in-place operation: elements of this expanded tensor share memory; use clone()")
        with np.errstate(all="ignore"), storage.on_device_of(x):
            x[...] = new
        self._end_write(None if old is None else result)
        return self

    def __setitem__(self, key: Any, value: Any) -> None:
        with storage.on_device_of(self._array):
            basic, advanced = indexing.keys_of(self, key)
        if basic and advanced:
            indexing.Index.apply(self, basic)[advanced] = value
            return
        if not isinstance(value, Tensor):
            with storage.on_device_of(self._array):
                value = wrap(namespace(self._array).asarray(value))
        value = shaping.to_device(elementwise.cast(value, self._array.dtype), self.device)
        old, place = self._begin_write(value), basic or advanced
        if old is None:
            with storage.on_device_of(self._array):
                self._array[place] = value._array
        self._end_write(None if old is None else indexing.IndexPut.apply(old, value, place))

    def copy_(self, src: Any) -> Tensor:
        """The values of ``src`` (any dtype or device, broadcast) written here."""
        self[...] = src
        return self

    def zero_(self) -> Tensor:
        """Zeros written here."""
        return self.copy_(0)

    def fill_(self, value: Any) -> Tensor:
        """``value``, a number or a 0-d tensor, written here."""
        return self.copy_(value)

    # --- operators ----------------------------------------------------------------------------------------------------

    __add__ = __radd__ = functions.add
    __mul__ = __rmul__ = functions.mul
    __sub__, __truediv__, __floordiv__, __mod__ = (
        functions.sub,
        functions.div,
        functions.floor_divide,
        functions.remainder,
    )
    __pow__, __matmul__, __neg__, __abs__ = functions.pow, reductions.matmul, functions.neg, functions.abs
    __lt__, __le__, __gt__, __ge__ = functions.lt, functions.le, functions.gt, functions.ge
    __and__ = __rand__ = functions.bitwise_and
    __or__ = __ror__ = functions.bitwise_or
    __xor__ = __rxor__ = functions.bitwise_xor

    def __rsub__(self, other: Any) -> Tensor:
        return functions.sub(other, self)

    def __rtruediv__(self, other: Any) -> Tensor:
        return functions.div(other, self)

    def __rfloordiv__(self, other: Any) -> Tensor:
        return functions.floor_divide(other, self)

    def __rmod__(self, other: Any) -> Tensor:
        return functions.remainder(other, self)

    def __rpow__(self, base: Any) -> Tensor:
        return functions.pow(base, self)

    def __rmatmul__(self, other: Any) -> Tensor:
        return reductions.matmul(other, self)

    def __pos__(self) -> Tensor:
        return self

    def __invert__(self) -> Tensor:
        if storage.is_floating(self._array.dtype):
            raise TypeError(f"invert (~): expected integers or bools, got {self.dtype}")
        with storage.on_device_of(self._array):
            return wrap(~self._array)

    def __eq__(self, other: Any) -> Any:
        return False if other is None else functions.eq(self, other)

    def __ne__(self, other: Any) -> Any:
        return True if other is None else functions.ne(self, other)

    __iadd__, __isub__, __imul__, __itruediv__ = Methods.add_, Methods.sub_, Methods.mul_, Methods.div_
    __ifloordiv__, __imod__, __ipow__ = Methods.floor_divide_, Methods.remainder_, Methods.pow_
    __iand__, __ior__ = in_place(functions.bitwise_and), in_place(functions.bitwise_or)
    __ixor__ = in_place(functions.bitwise_xor)

    def __hash__(self) -> int:
        return id(self)

    __getitem__ = indexing.getitem

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
        return format(self.item() if self.ndim == 0 else str(self), spec)

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
        return storage.to_dlpack(self._array, **kwargs)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._array.__dlpack_device__()


class Size(tuple):
    """A shape: a tuple that prints as torch's does."""

    def __repr__(self) -> str:
        return f"tilegrad.Size({list(self)})"

    def __getitem__(self, key: Any) -> Any:
        part = tuple.__getitem__(self, key)
        return Size(part) if isinstance(key, slice) else part

    def __add__(self, other: Any) -> Size:
        return Size(tuple.__add__(self, tuple(other)))

    def numel(self) -> int:
        """How many elements it holds."""
        return math.prod(self)


wrap = Tensor._make
autograd.begin_compiled(Tensor)
