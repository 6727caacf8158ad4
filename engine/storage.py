"""Arrays, dtypes and devices: NumPy for "cpu", CuPy for "cuda", and the ways in and out of other libraries.

The lowest layer: it knows nothing of tensors or of gradients. CuPy is imported when a CUDA device is first asked for.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np

Array = Any  # a numpy.ndarray or a cupy.ndarray; never a Tensor


class dtype:
    """A scalar type, spelled as torch spells it: ``tilegrad.float32``, ``str(...) == "tilegrad.float32"``.

    Equal to the NumPy dtype of the same name, so ``t.dtype == np.float32`` and ``np.zeros(3, t.dtype)`` work.
    """

    __slots__ = ("dtype", "is_floating_point", "itemsize", "name")
    dtype: np.dtype

    def __init__(self, name: str, of: np.dtype, is_floating_point: bool):
        self.name = name
        self.dtype = of  # the attribute that NumPy looks for in an object handed to it as a dtype
        self.is_floating_point = is_floating_point
        self.itemsize = of.itemsize

    def __repr__(self) -> str:
        return f"tilegrad.{self.name}"

    def __eq__(self, other: object) -> bool:
        if isinstance(other, dtype):
            return self is other
        try:
            return bool(self.dtype == other)
        except TypeError:
            return False

    def __hash__(self) -> int:
        return hash(self.dtype)

    def __reduce__(self) -> str:
        return self.name  # a module-level singleton: copied and pickled by name


bool_ = dtype("bool", np.dtype(np.bool_), False)
uint8 = dtype("uint8", np.dtype(np.uint8), False)
int8 = dtype("int8", np.dtype(np.int8), False)
int16 = dtype("int16", np.dtype(np.int16), False)
int32 = dtype("int32", np.dtype(np.int32), False)
int64 = dtype("int64", np.dtype(np.int64), False)
float16 = dtype("float16", np.dtype(np.float16), True)
bfloat16 = dtype("bfloat16", np.dtype(ml_dtypes.bfloat16), True)
float32 = dtype("float32", np.dtype(np.float32), True)
float64 = dtype("float64", np.dtype(np.float64), True)

DTYPES = (bool_, uint8, int8, int16, int32, int64, float16, bfloat16, float32, float64)
_BY_NUMPY = {d.dtype: d for d in DTYPES}
_BY_NAME = {d.name: d for d in DTYPES} | {
    "half": float16, "float": float32, "double": float64, "short": int16, "int": int32, "long": int64
}  # fmt: skip
_BY_PYTHON = {bool: bool_, int: int64, float: float32}
HALVES = (float16.dtype, bfloat16.dtype)

_default = float32


def get_default_dtype() -> dtype:
    """The dtype of Python floats turned into tensors: float32 unless set otherwise."""
    return _default


def set_default_dtype(d: Any) -> None:
    """Set the dtype of Python floats turned into tensors; a floating one, else ``TypeError``."""
    global _default
    found = as_dtype(d)
    if not found.is_floating_point:
        raise TypeError(f"set_default_dtype: expected a floating dtype, got {found}")
    _default = found


def as_dtype(d: Any) -> dtype:
    """The dtype that ``d`` names: ours, a NumPy dtype, a Python type, a name, or torch's (by its name)."""
    if isinstance(d, dtype):
        return d
    if isinstance(d, type) and d in _BY_PYTHON:
        return _BY_PYTHON[d]
    name = d if isinstance(d, str) else str(d) if type(d).__module__ == "torch" else None
    if name is not None and name.rpartition(".")[2] in _BY_NAME:
        return _BY_NAME[name.rpartition(".")[2]]
    try:
        return _BY_NUMPY[np.dtype(d)]
    except (TypeError, KeyError):
        known = ", ".join(k.name for k in DTYPES)
        raise TypeError(f"unsupported dtype {d!r}; expected one of {known}") from None


def numpy_dtype(d: Any) -> np.dtype:
    """The NumPy (ml_dtypes for bfloat16) dtype that ``d`` names."""
    return as_dtype(d).dtype


def is_floating(d: np.dtype) -> bool:
    """Whether a NumPy dtype is one of our floating ones (bfloat16's kind is "V", so ``kind`` alone cannot tell)."""
    return d.kind == "f" or d == bfloat16.dtype


def wide_dtype(d: np.dtype) -> np.dtype:
    """The dtype that sums of ``d`` are kept in: float32 for the 16-bit floats, ``d`` itself otherwise."""
    return float32.dtype if d in HALVES else d


def wide(x: Array) -> Array:
    """``x`` in the dtype it is computed with: 16-bit floats become float32, everything else is itself."""
    return x.astype(np.float32) if x.dtype in HALVES else x


def promote(a: np.dtype, b: np.dtype) -> np.dtype:
    """The dtype of ``a`` combined with ``b`` in torch's lattice: a float beats an int whatever their widths."""
    if a == b:
        return a
    a_float, b_float = is_floating(a), is_floating(b)
    if a_float != b_float:
        return a if a_float else b
    if a_float and (a in HALVES and b in HALVES):
        return float32.dtype  # float16 with bfloat16
    if a_float:
        return a if a.itemsize > b.itemsize else b
    return np.promote_types(a, b)


class device:
    """Where a tensor's memory is: ``device("cpu")``, ``device("cuda")``, ``device("cuda:1")``, ``device("cuda", 1)``.

    Raises:
        ValueError: for a string that is none of these.
    """

    __slots__ = ("index", "type")
    type: str
    index: int | None

    def __init__(self, spec: str | device, index: int | None = None):
        if isinstance(spec, device):
            self.type, self.index = spec.type, spec.index
            return
        kind, colon, number = str(spec).partition(":")
        if kind not in ("cpu", "cuda") or (colon and not number.isdigit()):
            raise ValueError(f'expected device "cpu", "cuda" or "cuda:N", got {spec!r}')
        self.type = kind
        self.index = int(number) if colon else index

    def __repr__(self) -> str:
        return (
            f"device(type={self.type!r})" if self.index is None else f"device(type={self.type!r}, index={self.index})"
        )

    def __str__(self) -> str:
        return self.type if self.index is None else f"{self.type}:{self.index}"

    def __eq__(self, other: object) -> bool:
        if isinstance(other, str):
            try:
                other = device(other)
            except ValueError:
                return False
        return isinstance(other, device) and (self.type, self.index) == (other.type, other.index)

    def __hash__(self) -> int:
        return hash((self.type, self.index))


CPU = device("cpu")


def cupy() -> ModuleType:
    """CuPy, imported now if it was not before; RuntimeError with the remedy where there is none or no GPU."""
    try:
        import cupy as cp
    except ImportError:
        raise RuntimeError("device 'cuda' needs CuPy, which is not installed: pip install tilegrad[gpu]") from None
    if not cuda_device_count():
        raise RuntimeError("device 'cuda' needs an NVIDIA GPU and its driver, and CuPy finds none on this machine")
    return cp


def cuda_device_count() -> int:
    """How many CUDA devices CuPy can use; 0 without CuPy, without a driver, or without a GPU."""
    try:
        import cupy as cp

        return int(cp.cuda.runtime.getDeviceCount())
    except Exception:  # a missing package, a missing driver and a driver too old raise three different things
        return 0


def devices() -> list[tuple[str, bool, str]]:
    """Each device this machine could offer: its name, whether it can be used, and one sentence about it."""
    found = [("cpu", True, f"NumPy {np.__version__}")]
    try:
        cp = cupy()
    except RuntimeError as error:
        return [*found, ("cuda", False, str(error))]
    for i in range(cuda_device_count()):
        name = cp.cuda.runtime.getDeviceProperties(i)["name"].decode()
        found.append((f"cuda:{i}", True, f"{name}, CuPy {cp.__version__}"))
    return found


def namespace(x: Any) -> Any:
    """The module whose functions work on ``x``: numpy, cupy, or for a tensor the module of recorded functions.

    A derivative that is written over ``namespace(grad)`` serves both array libraries, and when it is handed tensors it
    is recorded itself, which is where second derivatives come from.
    """
    if type(x) is np.ndarray:
        return np
    own = getattr(x, "_namespace", None)
    if own is not None:
        return own
    return sys.modules["cupy"] if is_cupy(x) else np


def is_cupy(x: object) -> bool:
    """Whether ``x`` is a cupy.ndarray, without importing CuPy to find out."""
    cp = sys.modules.get("cupy")
    return cp is not None and isinstance(x, cp.ndarray)


def device_of(x: Array) -> device:
    """The device that an array lies on."""
    return device("cuda", int(x.device.id)) if is_cupy(x) else CPU


_NOWHERE = contextlib.nullcontext()


def on_device_of(x: Array) -> Any:
    """A context in which new arrays and launches go to the device of ``x``; nothing for NumPy."""
    return _NOWHERE if type(x) is np.ndarray or not is_cupy(x) else x.device


def to_device(x: Array, where: device | str) -> Array:
    """``x`` on another device, itself where it is there already."""
    where = device(where)
    if where.type == "cpu":
        return x.get() if is_cupy(x) else x
    cp = cupy()
    if where.index is not None and where.index >= cuda_device_count():
        raise RuntimeError(f"device '{where}' was asked for, but this machine has {cuda_device_count()} CUDA devices")
    if is_cupy(x) and where.index in (None, x.device.id):
        return x
    with cp.cuda.Device(where.index):
        return cp.asarray(x)


def module_for(where: device | str | None) -> Any:
    """numpy or cupy, for creating arrays on a device."""
    return np if where is None or device(where).type == "cpu" else cupy()


def from_dlpack(x: Any) -> Array:
    """A NumPy or CuPy array over the memory of any object with ``__dlpack__``; nothing is copied.

    torch tensors of the CPU come by their own way: NumPy's DLPack has no bfloat16, and makes what it imports read-only.
    """
    if not hasattr(x, "__dlpack_device__"):
        raise TypeError(f"from_dlpack: expected an object with __dlpack__, got {type(x).__name__}")
    if type(x).__module__.partition(".")[0] == "torch" and x.device.type == "cpu":
        import torch

        x = x.detach() if x.requires_grad else x
        return x.view(torch.int16).numpy().view(ml_dtypes.bfloat16) if x.dtype == torch.bfloat16 else x.numpy()
    kind = int(x.__dlpack_device__()[0])
    if kind in (1, 3):  # kDLCPU, kDLCUDAHost
        return np.from_dlpack(x)
    if kind == 2:
        return cupy().from_dlpack(x.detach() if hasattr(x, "detach") else x)
    raise BufferError(f"from_dlpack: expected memory of a CPU or of a CUDA device, got DLPack device type {kind}")


def to_dlpack(x: Array, **kwargs: Any) -> Any:
    """The DLPack capsule of an array, made by its library; of bfloat16 too, which NumPy's DLPack does not know."""
    if is_cupy(x) or x.dtype != bfloat16.dtype:
        return x.__dlpack__(**kwargs)
    capsule = x.view(np.int16).__dlpack__(**kwargs)
    # What follows is the type's code in the struct behind the capsule: 4 stands for bfloat16.
    python = ctypes.pythonapi
    python.PyCapsule_IsValid.argtypes = python.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
    python.PyCapsule_GetPointer.restype = ctypes.c_void_p
    name, offset = (b"dltensor", 20) if python.PyCapsule_IsValid(capsule, b"dltensor") else (b"dltensor_versioned", 52)
    ctypes.c_uint8.from_address(python.PyCapsule_GetPointer(capsule, name) + offset).value = 4
    return capsule


def byte_bounds(x: Array) -> tuple[int, int]:
    """The first byte of ``x``, and the one after its last, as addresses; any strides."""
    start = address(x)
    reach = [(n - 1) * s for n, s in zip(x.shape, x.strides, strict=True)]
    return start + sum(r for r in reach if r < 0), start + sum(r for r in reach if r > 0) + x.itemsize


def address(x: Array) -> int:
    """The address of the first element of ``x``."""
    return int(x.data.ptr) if is_cupy(x) else int(x.__array_interface__["data"][0])
