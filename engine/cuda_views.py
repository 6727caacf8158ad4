"""Arrays of a GPU as the CUDA C++ kernels take them: addresses, dtypes by number, shapes and strides."""

from __future__ import annotations

import functools
import math
import sys
from typing import Any, NamedTuple

Workspace = dict[str, tuple[tuple[int, ...], str]]

_FLOATS = ("float32", "float64", "bfloat16", "float16")
_INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
_NAMES = dict(enumerate(_FLOATS)) | dict(enumerate(_INTEGERS, 8))
CODES = {name: code for code, name in _NAMES.items()} | {"bool": 12}  # of the dtypes, as the extension numbers them
SIZES = {0: 4, 1: 8, 2: 2, 3: 2} | {code: 1 << code % 4 for code in range(8, 16)}  # bytes


class View(NamedTuple):
    """An array as the extension takes it; strides are in bytes."""

    address: int
    dtype: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def at(self, dim: int, index: int) -> View:
        """Without ``dim``, at one index of it."""
        address = self.address + index * self.strides[dim]
        shape, strides = self.shape[:dim] + self.shape[dim + 1 :], self.strides[:dim] + self.strides[dim + 1 :]
        return View(address, self.dtype, shape, strides)

    def part(self, start: int, stop: int, dim: int = 0) -> View:
        """From ``start`` to ``stop`` of a dimension."""
        shape = (*self.shape[:dim], stop - start, *self.shape[dim + 1 :])
        return View(self.address + start * self.strides[dim], self.dtype, shape, self.strides)

    @property
    def turned(self) -> View:
        """A matrix, transposed."""
        return View(self.address, self.dtype, self.shape[::-1], self.strides[::-1])

    @property
    def joined(self) -> View | None:
        """(…, columns) as a matrix (rows, columns); None where no strides say that."""
        rows, step = 1, 0
        for n, stride in zip(self.shape[-2::-1], self.strides[-2::-1], strict=True):
            if n == 1:
                continue
            if rows == 1:
                step = stride
            elif stride != step * rows:
                return None
            rows *= n
        return View(self.address, self.dtype, (rows, self.shape[-1]), (step, self.strides[-1]))


def view(x: Any) -> View | None:
    """An array of any library, a View as it is, None as None."""
    if x is None or isinstance(x, View):
        return x
    code = _code(x.dtype)
    if hasattr(x, "data_ptr"):  # torch
        size = SIZES[code]
        return View(x.data_ptr(), code, tuple(x.shape), tuple(s * size for s in x.stride()))
    address = x.__array_interface__["data"][0] if hasattr(x, "__array_interface__") else x.data.ptr
    return View(address, code, x.shape, x.strides)


def given(x: Any) -> View:
    """An array that cannot be None."""
    made = view(x)
    assert made is not None
    return made


@functools.cache
def _code(dtype: Any) -> int:
    name = str(dtype).rpartition(".")[2]
    if name not in CODES:
        raise TypeError(f"the CUDA C++ kernels take {', '.join(CODES)}, got {name}")
    return CODES[name]


def dense(address: int, dtype: int, *shape: int) -> View:
    """Memory without gaps."""
    strides = [SIZES[dtype]]
    for n in shape[:0:-1]:
        strides.append(strides[-1] * n)
    return View(address, dtype, shape, tuple(strides[::-1]))


def buffer(workspace: dict[str, Any] | None, name: str, dtype: int, *shape: int) -> View:
    """A part of the workspace, as a dense array."""
    assert workspace is not None
    return dense(given(workspace[name]).address, dtype, *shape)


def buffer_of(count: int) -> tuple[tuple[int, ...], str]:
    """A buffer of so many bytes that begins where any type may."""
    return ((count + 7) // 8,), "float64"


def place_of(x: Any, emulated: bool) -> tuple[int, int]:
    """The device of an array, and the current stream there of the library that it is of.

    Raises:
        RuntimeError: the array is in the memory of the CPU, and the kernels are not emulated there.
    """
    torch, cupy = sys.modules.get("torch"), sys.modules.get("cupy")
    if torch is not None and isinstance(x, torch.Tensor) and x.device.type == "cuda":
        return int(x.device.index), int(torch._C._cuda_getCurrentRawStream(x.device.index))
    if cupy is not None and isinstance(x, cupy.ndarray):
        return int(x.device.id), int(cupy.cuda.get_current_stream(x.device.id).ptr)
    if emulated:
        return 0, 0
    kind = f"{type(x).__module__}.{type(x).__qualname__}"
    raise RuntimeError(f"the CUDA C++ kernels need arrays on a GPU, got {kind} in memory of the CPU")
