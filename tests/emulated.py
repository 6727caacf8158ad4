"""The backend "cuda" on a machine without a GPU: its kernels compiled with the emulator, on arrays of the CPU.

Every call is watched: kernels may touch nothing but its arrays, may not write to the inputs, may not read what nobody
wrote, and have to write all of every output. Threads, and what they leave to finish by itself, run in the order of a
``Schedule``.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.machinery
import importlib.util
import inspect
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from cuda_emulator import build

from tilegrad import backends, cublaslt, cuda_kernels
from tilegrad.cuda_views import SIZES, View, view

ROOT = Path(__file__).resolve().parents[1]

# --- how they run -----------------------------------------------------------------------------------------------------


class Schedule(NamedTuple):
    seed: int  # of the order of threads and blocks; 0: one after the other
    completion: str  # of copies and products that a thread has only asked for
    capability: int = 90  # of the chip

    def begin(self) -> None:
        completion = ("early", "late", "random").index(self.completion)
        library().cuda_emulator_configure(ctypes.c_uint64(self.seed), int(self.seed > 0), completion, self.capability)


SCHEDULES = [Schedule(seed, completion) for seed in (1, 2, 3) for completion in ("early", "late", "random")]


def schedule_of(name: str) -> Schedule:
    """One of them for each test, so that a suite goes through all; CUDA_SCHEDULE="2 late" asks for one."""
    if asked := os.environ.get("CUDA_SCHEDULE"):
        seed, completion = asked.split()
        return Schedule(int(seed), completion)
    return SCHEDULES[sum(name.encode()) % len(SCHEDULES)]


# --- what runs --------------------------------------------------------------------------------------------------------


@functools.cache
def _path() -> Path:
    units = [
        *sorted((ROOT / "csrc/cuda").glob("*.cu")),
        ROOT / "csrc/cuda/module.cpp",
        ROOT / "tests/emulated_module.cpp",
    ]
    includes = [ROOT / "csrc", Path(sysconfig.get_path("include"))]
    return build.library(units, includes=includes, address_sanitizer=_sanitized())


def _sanitized() -> bool:
    """Whether this process was started for AddressSanitizer, which then sees what the emulator's own checks do."""
    return "libasan" in os.environ.get("LD_PRELOAD", "")


@functools.cache
def extension() -> ModuleType:
    """What tilegrad._C.cuda is where there is a GPU."""
    loader = importlib.machinery.ExtensionFileLoader("emulated_cuda", str(_path()))
    spec = importlib.util.spec_from_loader("emulated_cuda", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module.cuda


@functools.cache
def library() -> ctypes.CDLL:
    extension()
    return ctypes.CDLL(str(_path()))


@contextlib.contextmanager
def running(schedule: Schedule = SCHEDULES[0]) -> Iterator[None]:
    """Inside, the backend "cuda" can run, in memory of the CPU, which cuBLASLt cannot reach."""
    before, implementation, why_not = cuda_kernels._C, backends._PARTS["cuda"], cublaslt.why_not
    cuda_kernels._C = extension()
    cublaslt.why_not = lambda device: "the arrays are in the memory of the CPU"
    backends._PARTS["cuda"] = (*implementation[:2], __name__)
    schedule.begin()
    try:
        yield
    finally:
        cuda_kernels._C, cublaslt.why_not = before, why_not
        backends._PARTS["cuda"] = implementation
        library().cuda_emulator_forget()


# --- what is watched --------------------------------------------------------------------------------------------------

READ, BOTH, WRITE_FIRST = 1, 3, 7


def __getattr__(operation: str) -> Any:
    """This module in the place of cuda_kernels: its functions, watched."""
    function = getattr(cuda_kernels, operation)
    return function if operation.endswith("_workspace") else functools.partial(_watched, function)


def _watched(function: Any, *args: Any, **outputs: Any) -> None:
    library().cuda_emulator_forget()
    _names.clear()
    names = list(inspect.signature(function).parameters)
    for name, x in zip(names, args, strict=False):
        watch(name, x, READ)
    for name, x in outputs.items():
        if name != "workspace":
            watch(name, x, READ if name == "upstream" else BOTH if name in ("inplace", "flag") else WRITE_FIRST)
    for name, x in (outputs.get("workspace") or {}).items():
        watch(f"workspace {name}", x, WRITE_FIRST)
    function(*args, **outputs)
    for name, x in outputs.items():
        if name not in ("workspace", "inplace", "flag", "upstream") and hasattr(x, "shape") and not _sanitized():
            v = view(x)
            assert v is not None
            assert traffic(name).distinct_written == v.size * SIZES[v.dtype], (
                f"{function.__name__}: {name} is not all written"
            )


_names: list[str] = []


def watched() -> list[str]:
    """The names of the last call's arrays."""
    return list(_names)


def watch(name: str, x: Any, access: int) -> None:
    if not hasattr(x, "shape"):
        return
    v = x if isinstance(x, View) else view(x)
    assert v is not None
    _names.append(name)
    if v.size == 0:
        return
    reach = [(n - 1) * s for n, s in zip(v.shape, v.strides, strict=True)]
    start = v.address + sum(r for r in reach if r < 0)
    bytes_ = sum(map(abs, reach)) + SIZES[v.dtype]
    library().cuda_emulator_watch(ctypes.c_void_p(start), ctypes.c_uint64(bytes_), name.encode(), access)


class Traffic(ctypes.Structure):
    """Bytes, of the last call."""

    _fields_ = [(n, ctypes.c_uint64) for n in ("bytes_read", "bytes_written", "distinct_read", "distinct_written")]


def traffic(name: str) -> Traffic:
    """Of one of its arrays."""
    counts = Traffic()
    library().cuda_emulator_traffic(name.encode(), ctypes.byref(counts))
    return counts
