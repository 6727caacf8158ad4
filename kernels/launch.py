"""From arrays to a launch: the one place that knows pointers, devices and streams.

A launcher sees an array of any library as a ``View``: an address, a dtype, a shape and strides. Nothing here imports
an array library; it is looked up by the array's own module when a launch needs its stream. Kernels go to the current
stream of the library that owns the arrays, on the arrays' device.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import triton
from triton.runtime import interpreter
from triton.tools.tensor_descriptor import TensorDescriptor

ALIGNMENT = 16  # bytes: the widest load of a thread, and what a bulk tensor copy asks of addresses and strides

FLOATS = ("float16", "bfloat16", "float32", "float64")  # the dtypes that kernels compute with

# --- arrays -----------------------------------------------------------------------------------------------------------


class DType:
    """A scalar type as Triton reads it: text that ends in the name, and a size. One object a name, so that the same
    compiled kernel serves every library."""

    _known: dict[str, DType] = {}  # noqa: RUF012

    name: str
    itemsize: int  # bytes
    is_floating_point: bool

    def __new__(cls, name: str) -> DType:
        if name not in cls._known:
            self = super().__new__(cls)
            sizes = {"bool": 1, "bfloat16": 2}
            bits = "".join(filter(str.isdigit, name))
            self.name, self.itemsize = name, sizes.get(name) or int(bits) // 8
            self.is_floating_point = "float" in name
            cls._known[name] = self
        return cls._known[name]

    def __repr__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class View:
    """Strided memory of someone else's. Strides are in elements, and may be 0 or negative."""

    address: int
    dtype: DType
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    owner: Any  # the array that keeps the memory, and says which library and device it is of

    def data_ptr(self) -> int:  # what Triton calls
        return self.address

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        count = 1
        for n in self.shape:
            count *= n
        return count

    def _at(self, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> View:
        return replace(self, address=self.address + offset * self.dtype.itemsize, shape=shape, strides=strides)

    def select(self, dim: int, index: int) -> View:
        """Without ``dim``, at one index of it."""
        return self._at(index * self.strides[dim], _without(self.shape, dim), _without(self.strides, dim))

    def narrow(self, dim: int, start: int, length: int) -> View:
        """``length`` of ``dim`` from ``start``."""
        shape = (*self.shape[:dim], length, *self.shape[dim + 1 :])
        return self._at(start * self.strides[dim], shape, self.strides)

    def moved(self, dim: int, to: int) -> View:
        """``dim`` at position ``to``, the others in their order."""
        order = [i for i in range(self.ndim) if i != dim]
        order.insert(to, dim)
        return self._at(0, tuple(self.shape[i] for i in order), tuple(self.strides[i] for i in order))

    def viewed(self, shape: tuple[int, ...], strides: tuple[int, ...]) -> View:
        """The same memory under another shape and strides."""
        return self._at(0, shape, strides)

    @property
    def is_contiguous(self) -> bool:
        expected = 1
        for n, s in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if n != 1 and s != expected:
                return False
            expected *= n
        return True


def _without(values: tuple[int, ...], dim: int) -> tuple[int, ...]:
    return values[:dim] + values[dim + 1 :]


def view(x: Any) -> View:
    """A torch tensor, CuPy array or NumPy array as a View; a View is itself."""
    if isinstance(x, View):
        return x
    dtype = _dtype(x.dtype)
    if hasattr(x, "data_ptr"):  # torch
        return View(x.data_ptr(), dtype, tuple(x.shape), tuple(x.stride()), x)
    address = x.__array_interface__["data"][0] if hasattr(x, "__array_interface__") else x.data.ptr
    return View(address, dtype, x.shape, tuple(s // dtype.itemsize for s in x.strides), x)


@functools.cache
def _dtype(theirs: Any) -> DType:
    return DType(str(theirs).rpartition(".")[2])


def optional(x: Any) -> View | None:
    return None if x is None else view(x)


def merged(sizes: tuple[int, ...], *strides: tuple[int, ...]) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
    """The fewest dimensions, in the same order, that reach the same elements of every array in ``strides``.

    A dimension joins the one before it where, in every array, stepping over it once more lands on the other's next
    element. Dimensions of size 1 vanish.
    """
    kept: list[int] = []
    found: list[list[int]] = [[] for _ in strides]
    for i, n in enumerate(sizes):
        if n == 1:
            continue
        if kept and all(out[-1] == s[i] * n for out, s in zip(found, strides, strict=True)):
            kept[-1] *= n
            for out, s in zip(found, strides, strict=True):
                out[-1] = s[i]
        else:
            kept.append(n)
            for out, s in zip(found, strides, strict=True):
                out.append(s[i])
    return tuple(kept), [tuple(s) for s in found]


def alignment(*views: View) -> int:
    """How many elements (a power of two, at most 16 bytes of them) divide the addresses and all strides but unit ones:
    the widest vector that every row of every array may be read in."""
    elements = ALIGNMENT // min(v.dtype.itemsize for v in views)
    while elements > 1 and any(
        v.address % min(ALIGNMENT, elements * v.dtype.itemsize) or any(s % elements for s in v.strides if s != 1)
        for v in views
    ):
        elements //= 2
    return elements


def fits_descriptor(v: View) -> bool:
    """Whether a bulk tensor copy can read or write this matrix: unit inner stride, everything else on 16 bytes."""
    size = v.dtype.itemsize
    return (
        v.strides[-1] == 1
        and v.address % ALIGNMENT == 0
        and all(n > 0 for n in v.shape)
        and all(s > 0 and s * size % ALIGNMENT == 0 and s * size < 2**40 for s in v.strides[:-1])
        and all(n < 2**31 for n in v.shape)
    )


def descriptor(v: View, block: list[int]) -> TensorDescriptor:
    """A host-made tensor descriptor: blocks of ``v``, zeros beyond its edges."""
    return TensorDescriptor(v, list(v.shape), list(v.strides), block)


# --- devices ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Chip:
    """What a configuration is chosen by: the architecture ("sm_90", "gfx942"), and how many multiprocessors it has."""

    name: str
    multiprocessors: int


INTERPRETED = Chip("sm_90", 8)  # stands in where kernels are interpreted


def interpreting() -> bool:
    """Whether kernels run in Triton's interpreter, on memory of the CPU."""
    return bool(triton.knobs.runtime.interpret)


def chip_of(x: View) -> Chip:
    """The chip that the memory of ``x`` belongs to.

    Raises:
        RuntimeError: the memory is the CPU's, or the chip is one that the kernels are not made for.
    """
    return INTERPRETED if interpreting() else _chip(*_place_of(x.owner))


_chips: dict[int, Chip] = {}


def _chip(library: _Library, index: int) -> Chip:
    if index not in _chips:
        with _launching_on(library, index):
            driver = triton.runtime.driver.active
            target = driver.get_current_target()
            count = driver.utils.get_device_properties(index)["multiprocessor_count"]
        name = f"sm_{target.arch}" if target.backend == "cuda" else str(target.arch)
        if target.backend == "cuda" and target.arch < 80:
            raise RuntimeError(f"the Triton kernels need compute capability 8.0 or newer, got {name} (device {index})")
        _chips[index] = Chip(name, count)
    return _chips[index]


class _Torch:
    """What a launch asks an array library, answered by torch."""

    @staticmethod
    def current_device() -> int:
        return int(sys.modules["torch"].cuda.current_device())

    @staticmethod
    def set_device(index: int) -> None:
        sys.modules["torch"].cuda.set_device(index)

    @staticmethod
    def capability(index: int) -> tuple[int, int]:
        return sys.modules["torch"].cuda.get_device_capability(index)

    @staticmethod
    def stream(index: int) -> int:
        return int(sys.modules["torch"]._C._cuda_getCurrentRawStream(index))


class _Cupy:
    """The same, answered by CuPy."""

    @staticmethod
    def current_device() -> int:
        return int(sys.modules["cupy"].cuda.runtime.getDevice())

    @staticmethod
    def set_device(index: int) -> None:
        sys.modules["cupy"].cuda.runtime.setDevice(index)

    @staticmethod
    def capability(index: int) -> tuple[int, int]:
        major, minor = divmod(int(sys.modules["cupy"].cuda.Device(index).compute_capability), 10)
        return major, minor

    @staticmethod
    def stream(index: int) -> int:
        return int(sys.modules["cupy"].cuda.get_current_stream(index).ptr)


_Library = type[_Torch] | type[_Cupy]


def _place_of(owner: Any) -> tuple[_Library, int]:
    """The library that an array is of, and the number of the GPU that it lies on."""
    torch, cupy = sys.modules.get("torch"), sys.modules.get("cupy")
    if torch is not None and isinstance(owner, torch.Tensor) and owner.device.type == "cuda":
        return _Torch, int(owner.device.index)
    if cupy is not None and isinstance(owner, cupy.ndarray):
        return _Cupy, int(owner.device.id)
    raise RuntimeError(
        f"the Triton kernels need arrays on a GPU, got {type(owner).__module__}.{type(owner).__qualname__} in memory "
        "of the CPU; TRITON_INTERPRET=1 runs them there"
    )


class _Launching(threading.local):
    library: _Library | None = None  # whose arrays the launch that is under way is about


_launching = _Launching()


@contextlib.contextmanager
def _launching_on(library: _Library, index: int) -> Iterator[None]:
    """Inside, device ``index`` is current, and Triton asks the library for the stream."""
    _start_driver()
    outer, _launching.library = _launching.library, library
    try:
        before = library.current_device()
        if before == index:
            yield
            return
        library.set_device(index)
        try:
            yield
        finally:
            library.set_device(before)
    finally:
        _launching.library = outer


def _start_driver() -> None:
    """Make Triton's driver one that takes the stream from the arrays.

    Its own imports torch (3.6, 3.7), and knows torch's stream only if torch came first (3.9): kernels on CuPy arrays
    under a CuPy stream would race with it. Other people's kernels go to torch's current stream where there is a torch
    for GPUs, as they did; without one, to CuPy's.
    """
    from triton.backends.nvidia import driver as nvidia

    active = triton.runtime.driver
    torch = sys.modules.get("torch")
    if isinstance(active._active, _TakesStream) or (torch is not None and torch.version.hip is not None):
        return
    if active._active is not None and type(active._active) is not nvidia.CudaDriver:
        return  # someone's own driver
    active.set_active(type("Driver", (_TakesStream, nvidia.CudaDriver), {})())


class _TakesStream:
    """The part of the driver that tells of devices and streams, as the library knows them whose arrays are at work."""

    def __init__(self) -> None:
        from triton.backends.nvidia import driver as nvidia

        self.utils, self.launcher_cls = nvidia.CudaUtils(), nvidia.CudaLauncher

    @staticmethod
    def _library() -> _Library:
        if _launching.library is not None:
            return _launching.library
        torch = sys.modules.get("torch")
        # A torch for the CPU alone may be there for other reasons, and knows no device.
        return _Torch if torch is not None and torch.version.cuda is not None else _Cupy

    def get_current_device(self) -> int:
        return self._library().current_device()

    def set_current_device(self, index: int) -> None:
        self._library().set_device(index)

    def get_device_capability(self, index: int) -> tuple[int, int]:
        return self._library().capability(index)

    def get_current_stream(self, index: int) -> int:
        return self._library().stream(index)


# --- the launch -------------------------------------------------------------------------------------------------------


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **constants: Any) -> None:
    """Launch ``kernel`` on the device and the current stream of its arrays.

    ``args`` are Views, descriptors, numbers, tuples of them, and None, in the kernel's order; ``constants`` are its
    constexprs and Triton's options (num_warps, num_stages). An empty grid launches nothing.

    Raises:
        RuntimeError: as ``chip_of`` does.
    """
    if 0 in grid:
        return
    constants.setdefault("enable_fp_fusion", True)  # said, since Triton 3.10 turns the default around
    if interpreting():
        if isinstance(kernel, interpreter.InterpretedFunction):
            # It takes whatever has a data_ptr for a torch tensor, so it is given its own kind of argument.
            args = tuple(map(interpreter._implicit_cvt, args))
        kernel[grid](*args, **constants)
        return
    library, index = _place_of(next(_views_in(args)).owner)
    _chip(library, index)  # refuses what the kernels are not made for
    with _launching_on(library, index):
        kernel[grid](*args, **constants)


def _views_in(args: tuple[Any, ...]) -> Iterator[View]:
    for arg in args:
        if isinstance(arg, View):
            yield arg
        elif hasattr(arg, "block_shape"):  # a tensor descriptor, of Triton or of Gluon
            yield arg.base
        elif isinstance(arg, tuple):
            yield from _views_in(arg)
