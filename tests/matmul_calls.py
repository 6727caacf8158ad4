"""The launchers of the CUDA matrix products, compiled with the emulator, on NumPy arrays."""

from __future__ import annotations

import ctypes
import functools
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import planted_matmul
from cuda_emulator import build

from tilegrad.activations import ACTIVATIONS

ROOT = Path(__file__).resolve().parents[1]
UNITS = [ROOT / "csrc/cuda" / f"{name}.cu" for name in ("launch", "matmul_tiles", "matmul_hopper", "dz")]
INCLUDES = [ROOT / "csrc", Path(sysconfig.get_path("include"))]  # those of emulated.py: what it compiles is found again
DTYPES = {"float32": 0, "float64": 1, "bfloat16": 2, "float16": 3}
NUMBERS: dict[str | None, int] = {None: -1, **{name: number for number, name in enumerate(ACTIVATIONS)}}
READ, WRITTEN, BOTH = 1, 2, 3

_int64, _pointer = ctypes.c_int64, ctypes.c_void_p


class Matmul(ctypes.Structure):
    """csrc/cuda/matmul.h has the same."""

    _fields_ = (
        ("rows", _int64), ("columns", _int64), ("depth", _int64), ("dtype", ctypes.c_int),
        ("a", _pointer), ("a_row", _int64), ("a_depth", _int64),
        ("b", _pointer), ("b_column", _int64), ("b_depth", _int64),
        ("bias", _pointer), ("bias_stride", _int64),
        ("pre", _pointer), ("pre_row", _int64), ("pre_column", _int64),
        ("out", _pointer), ("out_row", _int64), ("out_column", _int64), ("out_dtype", ctypes.c_int),
        ("accumulate", ctypes.c_bool), ("activation", ctypes.c_int),
    )  # fmt: skip


class DZ(ctypes.Structure):
    """csrc/cuda/matmul.h has the same."""

    _fields_ = (
        ("rows", _int64), ("columns", _int64), ("dtype", ctypes.c_int), ("activation", ctypes.c_int),
        ("grad", _pointer), ("grad_row", _int64), ("grad_column", _int64),
        ("saved", _pointer), ("saved_row", _int64), ("saved_column", _int64),
        ("dz", _pointer), ("dz_row", _int64), ("bias_grad", _pointer), ("workspace", _pointer),
    )  # fmt: skip


@functools.cache
def library() -> ctypes.CDLL:
    found = ctypes.CDLL(str(build.library([*UNITS, ROOT / "tests/matmul_calls.cpp"], includes=INCLUDES)))
    found.call_workspace_bytes.restype = ctypes.c_int64
    return _declared(found)


@functools.cache
def planted() -> ctypes.CDLL:
    units = [planted_matmul.unit(), *UNITS[:2]]
    return _declared(ctypes.CDLL(str(build.library(units, includes=[*INCLUDES, ROOT / "tests"]))))


def _declared(found: ctypes.CDLL) -> ctypes.CDLL:
    found.cuda_emulator_configure.argtypes = (ctypes.c_uint64, ctypes.c_int, ctypes.c_int, ctypes.c_int)
    found.cuda_emulator_watch.argtypes = (_pointer, ctypes.c_uint64, ctypes.c_char_p, ctypes.c_int)
    return found


def configure(of: ctypes.CDLL, seed: int = 0, completion: int = 0) -> None:
    """Seed 0: the threads in their order."""
    of.cuda_emulator_configure(seed, int(seed > 0), completion, 90)


@contextmanager
def watched(of: ctypes.CDLL, **arrays: tuple[np.ndarray | None, int]) -> Iterator[None]:
    """Inside, kernels may access these arrays only, as said."""
    for name, (array, access) in arrays.items():
        if array is not None:
            whole = array if array.base is None else array.base
            of.cuda_emulator_watch(whole.ctypes.data, whole.nbytes, name.encode(), access)
    try:
        yield
    finally:
        of.cuda_emulator_forget()


def described(
    a: np.ndarray, b: np.ndarray, out: np.ndarray, *, bias: np.ndarray | None = None, pre: np.ndarray | None = None,
    activation: str | None = None, accumulate: bool = False,
) -> Matmul:  # fmt: skip
    return Matmul(
        *out.shape, a.shape[1], DTYPES[a.dtype.name], *_place(a, 2), *_place(b, 2), *_place(bias, 1), *_place(pre, 2),
        *_place(out, 2), DTYPES[out.dtype.name], accumulate, NUMBERS[activation],
    )  # fmt: skip


def run(
    kernel: str, a: np.ndarray, b: np.ndarray, out: np.ndarray, *, of: ctypes.CDLL | None = None,
    multiprocessors: int | None = None, **options: Any,
) -> str | None:  # fmt: skip
    """What went wrong in out = activation(a bᵀ + bias), or None."""
    of = of or library()
    m = described(a, b, out, **options)
    function = of[kernel]
    function.restype = ctypes.c_char_p
    arguments = (ctypes.byref(m),) if multiprocessors is None else (ctypes.byref(m), multiprocessors)
    accumulates = BOTH if options.get("accumulate") else WRITTEN
    arrays: dict[str, Any] = {"a": (a, READ), "b": (b, READ), "out": (out, accumulates)}
    arrays |= {"bias": (options.get("bias"), READ), "pre": (options.get("pre"), WRITTEN)}
    with watched(of, **arrays):
        error = function(*arguments)
    return None if error is None else error.decode()


def run_dz(
    grad: np.ndarray, saved: np.ndarray | None, activation: str | None, *, dz: np.ndarray | None,
    bias_grad: np.ndarray | None, traffic: dict[str, int] | None = None,
) -> str | None:  # fmt: skip
    """What went wrong in dz = grad · activation'(saved), bias_grad = Σ dz, or None. ``traffic``: bytes, by array."""
    of = library()
    dz_row = 0 if dz is None else dz.strides[0] // dz.itemsize
    d = DZ(
        *grad.shape, DTYPES[grad.dtype.name], NUMBERS[activation], *_place(grad, 2), *_place(saved, 2),
        *_place(dz, 0), dz_row, *_place(bias_grad, 0), None,
    )  # fmt: skip
    workspace = np.empty(of.call_workspace_bytes(ctypes.byref(d)), np.uint8)
    d.workspace = workspace.ctypes.data
    of.call_dz.restype = ctypes.c_char_p
    arrays = {"grad": (grad, READ), "saved": (saved, READ), "dz": (dz, WRITTEN), "bias_grad": (bias_grad, WRITTEN)}
    with watched(of, **arrays, workspace=(workspace if workspace.nbytes else None, BOTH)):
        error = of.call_dz(ctypes.byref(d))
        if traffic is not None:
            for name in traffic:
                counts = (ctypes.c_uint64 * 4)()
                assert of.cuda_emulator_traffic(name.encode(), counts)
                traffic[name] = counts[0] + counts[1]
    return None if error is None else error.decode()


def _place(array: np.ndarray | None, dims: int) -> tuple[int | None, ...]:
    if array is None:
        return (None, *[0] * dims)
    return (array.ctypes.data, *[stride // array.itemsize for stride in array.strides[:dims]])
