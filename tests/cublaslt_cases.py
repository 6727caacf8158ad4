"""Products with epilogues as tilegrad._C hands them to cuBLASLt, and what NumPy says they are in float64.

A case runs on whatever holds its matrices: memory of the CPU for the stand-in library, of a GPU for NVIDIA's own.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import ml_dtypes
import numpy as np

from tilegrad import _C

ALIGNMENT = 256
TYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32, "float64": np.float64}
ROUNDING = {"float16": 2**-11, "bfloat16": 2**-8, "float32": 2**-23, "float64": 2**-52}
NO_AUX = ("none", "bias", "relu", "relu_bias", "gelu", "gelu_bias")  # those that float64 has


class Buffer(Protocol):
    """Memory that a kernel reads and writes."""

    pointer: int

    def bytes(self) -> np.ndarray: ...


class Host:
    """Memory of the CPU, aligned as an array library's is, or so many bytes off."""

    def __init__(self, content: np.ndarray, off: int = 0) -> None:
        room = np.empty(content.size + ALIGNMENT + off, np.uint8)
        start = -room.ctypes.data % ALIGNMENT + off
        self._bytes = room[start : start + content.size]
        self._bytes[:] = content
        self.pointer = self._bytes.ctypes.data

    def bytes(self) -> np.ndarray:
        return self._bytes


class Matrix:
    """(rows, columns) with ``ld`` elements from row to row. What lies between the rows holds a value that must stay."""

    def __init__(self, make: Callable[[np.ndarray], Buffer], values: Any, dtype: str, ld: int | None = None) -> None:
        values = np.asarray(values)
        self.rows, self.columns = values.shape
        self.ld, self.dtype = ld or self.columns, np.dtype(TYPES[dtype])
        whole = np.full((self.rows, self.ld), 77, self.dtype)
        whole[:, : self.columns] = values
        self._buffer = make(whole.reshape(-1).view(np.uint8))
        self.pointer = self._buffer.pointer

    def values(self) -> np.ndarray:
        whole = self._buffer.bytes().view(self.dtype).reshape(self.rows, self.ld).astype(np.float64)
        assert (whole[:, self.columns :] == 77).all(), "something was written between the rows"
        return whole[:, : self.columns]


class Case(NamedTuple):
    epilogue: str = "none"
    dtype: str = "float32"
    out_dtype: str = "float32"
    transposed: tuple[bool, bool] = (False, False)
    shape: tuple[int, int, int] = (24, 40, 32)
    alpha: float = 1.0
    beta: float = 0.0
    tf32: bool = False
    padding: int = 0


def cases() -> Iterator[Case]:
    """Every epilogue in every type; every way of transposing; sizes that fill no vector; scales, C and padded rows."""
    for dtype, out_dtype in [*zip(TYPES, TYPES, strict=True), ("float16", "float32"), ("bfloat16", "float32")]:
        for epilogue in NO_AUX if dtype == "float64" else _C.CUBLASLT_EPILOGUES:
            yield Case(epilogue, dtype, out_dtype)
    for transposed, epilogue in itertools.product(itertools.product((False, True), repeat=2), _C.CUBLASLT_EPILOGUES):
        yield Case(epilogue, "bfloat16", "bfloat16", transposed, padding=8)
    for epilogue in _C.CUBLASLT_EPILOGUES:
        yield Case(epilogue, shape=(5, 19, 7))
        yield Case(epilogue, "float16", "float16", alpha=0.5, beta=2.0, padding=8)
    yield Case(tf32=True)
    yield Case(dtype="float64", out_dtype="float64", alpha=0.5, beta=2.0, padding=8)


def eighths(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Multiples of 1/8 up to 2: exact in every type, as are their products and the sums of these in float32."""
    return rng.integers(-16, 17, shape) / 8


def gelu_tanh(z: np.ndarray) -> np.ndarray:
    return 0.5 * z * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))


def gelu_tanh_slope(z: np.ndarray) -> np.ndarray:
    step = 1e-6  # central differences in float64: exact to ten digits, and no second derivation to get wrong
    return (gelu_tanh(z + step) - gelu_tanh(z - step)) / (2 * step)


class Product:
    """The matrices of a case, the call, and the check of everything it wrote."""

    def __init__(self, case: Case, make: Callable[[np.ndarray], Buffer], **where: Any) -> None:
        self.case, self.make = case, make
        rng = np.random.default_rng(0)
        m, n, k = case.shape
        self.a, self.b, self.c = eighths(rng, m, k), eighths(rng, k, n), eighths(rng, m, n)
        self.length = m if case.epilogue == "bgrad_a" else n
        self.bias_values, self.aux_values = eighths(rng, self.length), eighths(rng, m, n)
        turn_a, turn_b = case.transposed
        stored_a, stored_b = self.a.T if turn_a else self.a, self.b.T if turn_b else self.b
        self.stored = [
            Matrix(make, stored_a, case.dtype, stored_a.shape[1] + case.padding),
            Matrix(make, stored_b, case.dtype, stored_b.shape[1] + case.padding),
        ]
        self.added, self.d = self._out(self.c), self._out(np.zeros((m, n)))
        self.bias = Matrix(make, self.bias_values[None], case.out_dtype)
        self.aux: Buffer | Matrix | None = None
        self.ld_aux = 0
        if "gelu" in case.epilogue and ("aux" in case.epilogue or case.epilogue.startswith("d")):
            self.ld_aux = -(-n // 8) * 8 + case.padding
            self.aux = Matrix(make, self.aux_values, case.out_dtype, self.ld_aux)
        elif "relu" in case.epilogue and ("aux" in case.epilogue or case.epilogue.startswith("d")):
            self.ld_aux = -(-n // 128) * 128
            self.aux = make(np.zeros(m * self.ld_aux // 8, np.uint8))
        self.where = where

    def _out(self, values: np.ndarray) -> Matrix:
        return Matrix(self.make, values, self.case.out_dtype, values.shape[1] + self.case.padding)

    def arguments(self, **others: Any) -> dict[str, Any]:
        a, b = self.stored
        turn_a, turn_b = self.case.transposed
        made = {
            "shape": self.case.shape,
            "dtype": self.case.dtype,
            "a": (a.pointer, a.ld, turn_a),
            "b": (b.pointer, b.ld, turn_b),
            "c": (self.added.pointer, self.added.ld),
            "d": (self.d.pointer, self.d.ld),
            "out_dtype": self.case.out_dtype,
            "alpha": self.case.alpha,
            "beta": self.case.beta,
            "epilogue": self.case.epilogue,
            "bias": self.bias.pointer,
            "aux": (self.aux.pointer if self.aux else 0, self.ld_aux),
            "tf32": self.case.tf32,
        }
        return made | self.where | others

    def run(self) -> None:
        assert _C.cublaslt_takes(**self.arguments())
        if self.case.epilogue.startswith("drelu"):  # the mask is nobody's business but the library's: let it write one
            forward = "relu_aux"
            _C.cublaslt_matmul(**self.arguments(epilogue=forward))
        _C.cublaslt_matmul(**self.arguments())

    def check(self, gelu_error: float = 0.0) -> None:
        """Everything that was written, rounded once from float64; ``gelu_error`` is what the library's tanh may add."""
        case, name = self.case, self.case.epilogue
        z = case.alpha * self.a @ self.b + (case.beta * self.c if case.beta else 0)
        if "bias" in name:
            z = z + self.bias_values
        extra = gelu_error * (1 + np.abs(z)) if "gelu" in name else 0.0
        want = z
        if name.startswith("d"):
            want = z * gelu_tanh_slope(self.aux_values) if "gelu" in name else z * (z > 0)
        elif "relu" in name:
            want = np.maximum(z, 0)
        elif "gelu" in name:
            want = gelu_tanh(z)
        self._close(self.d.values(), want, extra)
        if "gelu_aux" in name:
            assert isinstance(self.aux, Matrix)
            self._close(self.aux.values(), z)
        sums = {"bgrad_a": self.a.sum(1), "bgrad_b": self.b.sum(0)}.get(name)
        if name.endswith("_bgrad"):
            sums = want.sum(0)
            extra = np.sum(extra + ROUNDING[case.out_dtype] * np.abs(want), axis=0)  # D may be summed as it was stored
        self._close(self.bias.values()[0], self.bias_values if sums is None else sums, extra if sums is not None else 0)

    def _close(self, got: np.ndarray, want: np.ndarray, extra: Any = 0.0) -> None:
        bound = ROUNDING[self.case.out_dtype] * np.abs(want) + extra + 2**-24  # the smallest float16
        worst = np.max(np.abs(got - want) - bound)
        assert worst <= 0, f"{self.case}: {worst} beyond the bound"
