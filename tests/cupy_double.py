"""A stand-in for CuPy over NumPy, so that the code for CUDA devices runs on a machine without one.

It is as strict as CuPy where CuPy is stricter than NumPy: no implicit conversion to NumPy, no mixing with NumPy arrays,
0-d arrays where NumPy makes scalars, and nothing (function, method or keyword) that the real package does not have.
That one can be imported without a GPU, and every name is looked up in it first.
"""

from __future__ import annotations

import contextlib
import inspect
import math
import types
from collections.abc import Callable, Iterator
from typing import Any

import cupy as real
import numpy as np

DEVICES = 2
_current = [0]


def _plain(x: Any) -> Any:
    """What NumPy is to compute with: the arrays inside ``x``, which may not be NumPy's own."""
    if isinstance(x, ndarray):
        return x._np
    if isinstance(x, (tuple, list)):
        return type(x)(_plain(v) for v in x)
    if isinstance(x, np.ndarray):
        raise TypeError(f"Unsupported type {type(x)}")
    return x


def _wrapped(x: Any, owners: tuple[Any, ...] = ()) -> Any:
    """A NumPy result as an array of the double; one that shares memory with an owner is a view of it."""
    if isinstance(x, (tuple, list)):
        return type(x)(_wrapped(v, owners) for v in x)
    if not isinstance(x, (np.ndarray, np.generic)):
        return x
    for o in owners:
        if isinstance(o, ndarray):
            if x is o._np:
                return o
            if isinstance(x, np.ndarray) and x.base is not None and np.may_share_memory(x, o._np):
                return ndarray._of(x, o if o.base is None else o.base, o._id)
    return ndarray._of(np.asarray(x), None, _current[0])


def _same_device(*arrays: Any) -> None:
    used = {a._id for a in arrays if isinstance(a, ndarray)}
    if len(used) > 1:
        raise ValueError(f"arrays on different devices: {sorted(used)}")
    if used and used != {_current[0]}:
        raise ValueError(f"an array of device {used.pop()} is used while device {_current[0]} is current")


def _check_keywords(name: str, theirs: Any, kwargs: dict[str, Any]) -> None:
    known: Any = {"out", "dtype", "casting"}  # of ufuncs
    if not isinstance(theirs, real.ufunc):
        with contextlib.suppress(ValueError, TypeError):  # compiled functions may not tell
            known = inspect.signature(theirs).parameters
    wrong = [k for k in kwargs if k not in known]
    if wrong:
        raise TypeError(f"cupy.{name} has no argument {wrong[0]!r}")


def _function(name: str, theirs: Any, ours: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        _check_keywords(name, theirs, kwargs)
        flat = [a for x in args for a in (x if isinstance(x, (tuple, list)) else (x,))]
        _same_device(*flat)
        with np.errstate(all="ignore"):
            return _wrapped(ours(*map(_plain, args), **{k: _plain(v) for k, v in kwargs.items()}), tuple(flat))

    if hasattr(theirs, "at"):
        call.at = _function(f"{name}.at", theirs.at, ours.at)  # type: ignore[attr-defined]
    return call


class Pointer:
    """A MemoryPointer."""

    def __init__(self, ptr: int, owner: Any):
        self.ptr, self.owner = ptr, owner

    def __add__(self, offset: int) -> Pointer:
        return Pointer(self.ptr + offset, self.owner)


class Device:
    def __init__(self, device: Any = None):
        self.id = _current[0] if device is None else int(device)
        if not 0 <= self.id < DEVICES:
            raise RuntimeError("cudaErrorInvalidDevice: invalid device ordinal")
        self._before: list[int] = []

    def __enter__(self) -> Device:
        self._before.append(_current[0])
        _current[0] = self.id
        return self

    def __exit__(self, *exc: object) -> None:
        _current[0] = self._before.pop()


class ndarray:
    """cupy.ndarray: a NumPy array that does not let itself be taken for one."""

    __array_priority__ = 100
    __hash__ = None  # type: ignore[assignment]
    _np: np.ndarray
    _id: int
    base: Any

    def __init__(self, shape: Any, dtype: Any = float, memptr: Any = None, strides: Any = None, order: str = "C"):
        self._id, self.base = _current[0], None
        if memptr is None:
            self._np = np.empty(shape, dtype, order)
            return
        dtype = np.dtype(dtype)
        memory = types.SimpleNamespace(keeps=memptr.owner)
        memory.__array_interface__ = {
            "data": (memptr.ptr, False), "shape": tuple(shape), "strides": strides,
            "typestr": f"|V{dtype.itemsize}", "version": 3,
        }  # fmt: skip
        self._np = np.asarray(memory).view(dtype)

    @classmethod
    def _of(cls, array: np.ndarray, base: Any, device: int) -> ndarray:
        self = cls.__new__(cls)
        self._np, self.base, self._id = array, base, device
        return self

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`")

    def __array_ufunc__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(f"numpy.{args[0].__name__} was called with a CuPy array")

    def __array_function__(self, function: Any, *args: Any) -> Any:
        raise TypeError(f"numpy.{function.__name__} was called with a CuPy array")

    @property
    def device(self) -> Device:
        return Device(self._id)

    @property
    def data(self) -> Pointer:
        return Pointer(self._np.__array_interface__["data"][0], self._np)

    shape = property(lambda self: self._np.shape)
    strides = property(lambda self: self._np.strides)
    dtype = property(lambda self: self._np.dtype)
    ndim = property(lambda self: self._np.ndim)
    size = property(lambda self: self._np.size)
    itemsize = property(lambda self: self._np.itemsize)
    nbytes = property(lambda self: self._np.nbytes)
    flags = property(lambda self: self._np.flags)
    T = property(lambda self: _wrapped(self._np.T, (self,)))

    def get(self) -> np.ndarray:
        return self._np.copy()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or not hasattr(real.ndarray, name):
            raise AttributeError(f"cupy.ndarray has no attribute {name!r}")
        method = getattr(self._np, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            _same_device(self, *args)
            with np.errstate(all="ignore"):
                return _wrapped(method(*map(_plain, args), **{k: _plain(v) for k, v in kwargs.items()}), (self,))

        return call

    def __getitem__(self, key: Any) -> Any:
        made = self._np[_plain(key)]
        return _wrapped(made, (self,)) if isinstance(made, np.ndarray) else _wrapped(np.asarray(made))

    def __setitem__(self, key: Any, value: Any) -> None:
        _same_device(self, value)
        self._np[_plain(key)] = _plain(value)

    def __len__(self) -> int:
        return len(self._np)

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))

    def item(self) -> Any:
        return self._np.item()

    def tolist(self) -> Any:
        return self._np.tolist()

    def __bool__(self) -> bool:
        return bool(self._np)

    def __int__(self) -> int:
        return int(self._np)

    def __float__(self) -> float:
        return float(self._np)

    def __index__(self) -> int:
        return self._np.__index__()

    def __dlpack__(self, **kwargs: Any) -> Any:
        return self._np.__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self._id


def _operator(name: str) -> Callable[..., Any]:
    def operate(self: Any, *others: Any) -> Any:
        _same_device(self, *others)
        with np.errstate(all="ignore"):
            made = getattr(self._np, name)(*map(_plain, others))
        if made is NotImplemented:
            return made
        return self if made is self._np else _wrapped(made)

    return operate


for _name in (
    "add",
    "sub",
    "mul",
    "truediv",
    "floordiv",
    "mod",
    "pow",
    "matmul",
    "and",
    "or",
    "xor",
    "lshift",
    "rshift",
):
    for _prefix in ("", "r", "i"):
        setattr(ndarray, f"__{_prefix}{_name}__", _operator(f"__{_prefix}{_name}__"))
for _name in ("neg", "pos", "abs", "invert", "lt", "le", "gt", "ge", "eq", "ne"):
    setattr(ndarray, f"__{_name}__", _operator(f"__{_name}__"))
ndarray.__module__ = "cupy"


_REAL_GENERATOR = real.random.Generator  # loaded by the real package when first asked for


class _Generator:
    """cupy.random.Generator."""

    def __init__(self, seed: Any = None):
        self._draws = np.random.default_rng(seed)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or not hasattr(_REAL_GENERATOR, name):
            raise AttributeError(f"cupy.random.Generator has no attribute {name!r}")
        return lambda *args, **kwargs: _wrapped(getattr(self._draws, name)(*args, **kwargs))


class _Names(types.ModuleType):
    """A module of CuPy: NumPy's functions by the names that it has, and no others."""

    def __init__(self, theirs: Any, ours: Any):
        super().__init__(theirs.__name__)
        self._theirs, self._ours = theirs, ours

    def __getattr__(self, name: str) -> Any:
        theirs = getattr(self._theirs, name)  # AttributeError where the real one has none either
        if name.startswith("__"):
            return theirs
        ours = getattr(self._ours, name)
        if isinstance(ours, types.ModuleType):
            return _Names(theirs, ours)
        return ours if isinstance(ours, type) or not callable(ours) else _function(name, theirs, ours)


class _Cupy(_Names):
    """The module ``cupy``."""

    ndarray = ndarray
    cuda = types.SimpleNamespace(
        Device=Device,
        runtime=types.SimpleNamespace(
            getDeviceCount=lambda: DEVICES,
            getDeviceProperties=lambda i: {"name": b"A double"},
            deviceSynchronize=lambda: None,
        ),
    )
    random = types.SimpleNamespace(default_rng=_Generator)

    @staticmethod
    def asarray(x: Any, dtype: Any = None) -> Any:
        """From the host, or itself; the one way in for NumPy arrays, with ``array``."""
        if isinstance(x, ndarray):
            if x._id != _current[0]:
                return ndarray._of(x._np.astype(dtype or x.dtype), None, _current[0])
            return x if dtype in (None, x.dtype) else x.astype(dtype)
        return ndarray._of(np.array(x, dtype), None, _current[0])

    @staticmethod
    def array(x: Any, dtype: Any = None) -> Any:
        return ndarray._of(np.array(x._np if isinstance(x, ndarray) else x, dtype), None, _current[0])

    @staticmethod
    def from_dlpack(x: Any) -> Any:
        return ndarray._of(x._np, x, x._id)

    class _OpenGrid:
        def __getitem__(self, key: Any) -> Any:
            return _wrapped(np.ogrid[key])

    ogrid = _OpenGrid()


def modules() -> dict[str, types.ModuleType]:
    """What to put into sys.modules."""
    cupy = _Cupy(real, np)
    special = types.ModuleType("cupyx.scipy.special")
    special.erfc = lambda x: _wrapped(np.vectorize(math.erfc, otypes=[x.dtype])(_plain(x)))  # type: ignore[attr-defined]
    cupyx, scipy = types.ModuleType("cupyx"), types.ModuleType("cupyx.scipy")
    cupyx.scipy, scipy.special = scipy, special  # type: ignore[attr-defined]
    return {"cupy": cupy, "cupyx": cupyx, "cupyx.scipy": scipy, "cupyx.scipy.special": special}
