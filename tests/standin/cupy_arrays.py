"""Stand-ins for CuPy, over the stand-in driver: arrays with an address on a device, current streams, and a current
device that everybody agrees about."""

from __future__ import annotations

import contextlib
import math
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from . import driver


class Streams:
    """The current stream of each device, as handles. Every library keeps its own."""

    def __init__(self) -> None:
        self._current: dict[int, int] = {}

    def __getitem__(self, index: int) -> int:
        return self._current.get(index, 0)

    @contextlib.contextmanager
    def use(self, index: int, handle: int) -> Iterator[None]:
        before, self._current[index] = self[index], handle
        try:
            yield
        finally:
            self._current[index] = before


# --- arrays that are only looked at -----------------------------------------------------------------------------------


class Pointer:
    """cupy.cuda.MemoryPointer."""

    def __init__(self, ptr: int):
        self.ptr = ptr


class Device:
    """cupy.cuda.Device."""

    def __init__(self, device: Any = None):
        self.id = driver.current_device() if device is None else int(device)
        self._before: list[int] = []

    @property
    def compute_capability(self) -> str:
        major, minor = driver.capability(self.id)
        return f"{major}{minor}"

    def __enter__(self) -> Device:
        self._before.append(driver.current_device())
        driver.set_device(self.id)
        return self

    def __exit__(self, *exc: object) -> None:
        driver.set_device(self._before.pop())


class ndarray:
    """cupy.ndarray, as far as a launcher looks at one: contiguous, ``skipped`` bytes into its memory."""

    def __init__(self, shape: tuple[int, ...], dtype: Any, skipped: int):
        self.shape, self.dtype, self.ndim, self.device = shape, np.dtype(dtype), len(shape), Device()
        self.strides = tuple(self.dtype.itemsize * math.prod(shape[i + 1 :]) for i in range(len(shape)))
        self.data = Pointer(driver.allocate(self.dtype.itemsize * math.prod(shape) + skipped) + skipped)


ndarray.__module__ = "cupy"


def cupy_cuda(streams: Streams) -> dict[str, Any]:
    """What ``cupy.cuda`` knows of devices and streams."""

    def get_current_stream(device_id: int = -1) -> Any:
        return types.SimpleNamespace(ptr=streams[driver.current_device() if device_id < 0 else device_id])

    runtime = types.SimpleNamespace(
        getDevice=driver.current_device,
        setDevice=driver.set_device,
        getDeviceCount=lambda: 2,
        deviceSynchronize=lambda: driver.note("cuCtxSynchronize"),
    )
    return {"Device": Device, "runtime": runtime, "get_current_stream": get_current_stream}


class Cupy:
    """The module ``cupy``, imported; arrays of it; and its current streams."""

    def __init__(self) -> None:
        self.streams = Streams()
        self.cuda = types.SimpleNamespace(**cupy_cuda(self.streams))
        module: Any = types.ModuleType("cupy")
        module.ndarray, module.cuda = ndarray, self.cuda
        sys.modules["cupy"] = module

    def empty(self, shape: tuple[int, ...], dtype: str = "float32", device: int = 0, skipped: int = 0) -> Any:
        with Device(device):
            return ndarray(shape, ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype, skipped)

    @staticmethod
    def address(x: Any) -> int:
        return x.data.ptr


# --- arrays that compute ----------------------------------------------------------------------------------------------


class Tensors:
    """The double of CuPy (cupy_double.py), imported, over the driver; tilegrad's Tensors over its arrays.

    They count as memory of a device, and what CuPy itself would run on the GPU or wait for is noted in the record.
    """

    def __init__(self) -> None:
        pytest.importorskip("cupy")
        import cupy_double as double

        self.streams = Streams()
        double._current = _Current()  # type: ignore[assignment]
        double.Device.compute_capability = Device.compute_capability  # type: ignore[attr-defined]
        vars(double._Cupy.cuda).update(cupy_cuda(self.streams) | {"Device": double.Device})
        _note_what_runs(double)
        sys.modules.update(double.modules())

    @staticmethod
    def tensor(x: np.ndarray, dtype: str, device: int = 0) -> Any:
        import tilegrad

        return tilegrad.tensor(x, dtype=dtype, device=f"cuda:{device}")

    @staticmethod
    def address(x: Any) -> int:
        return x._array.data.ptr


class _Current:
    """The double's current device is the driver's."""

    def __getitem__(self, _: int) -> int:
        return driver.current_device()

    def __setitem__(self, _: int, index: int) -> None:
        driver.set_device(index)


def _note_what_runs(double: Any) -> None:
    plain, make = double._function, double.ndarray._of
    allocating = [False]  # within empty, which runs nothing

    def noted(what: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            driver.note(what)
            return method(*args, **kwargs)

        return call

    def function(name: str, theirs: Any, ours: Any) -> Callable[..., Any]:
        call = plain(name, theirs, ours)

        def allocate(*args: Any, **kwargs: Any) -> Any:
            allocating[0] = True
            try:
                return call(*args, **kwargs)
            finally:
                allocating[0] = False

        return allocate if name == "empty" else call

    def of(array: np.ndarray, base: Any, device: int) -> Any:
        if base is None:
            driver.adopt(array.ctypes.data, array.nbytes, device)
            if not allocating[0]:
                driver.note("cupy kernel")
        return make(array, base, device)

    double._function, double.ndarray._of = function, of
    for name in ("get", "item", "tolist", "__bool__", "__int__", "__float__", "__index__"):
        setattr(double.ndarray, name, noted("cuMemcpyDtoH", getattr(double.ndarray, name)))
    in_place = [
        name for name in vars(double.ndarray) if name.startswith("__i") and name not in ("__init__", "__iter__")
    ]
    for name in ("__setitem__", *in_place):
        setattr(double.ndarray, name, noted("cupy kernel", getattr(double.ndarray, name)))
