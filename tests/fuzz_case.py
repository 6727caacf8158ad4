"""What a random call of the CPU kernels is made of: its draws, the memory of its arrays, and the judgement.

Errors are judged by what the arithmetic may lose: a few roundings, in the dtype that is computed in, of the terms that
a result is made of (its ``scale``), and one rounding of the result itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

import tilegrad as tg
from tilegrad import cpu, reference

DTYPES = [np.dtype(t) for t in (np.float64, np.float32, np.float16, ml_dtypes.bfloat16)]
SPECIAL = [math.nan, math.inf, -math.inf, 1e38, -1e38, 1e-40, -1e-40, 5e-324, 0.0, -0.0]
THREADS = (1, 2, 3, 7)


def set_num_threads(threads: int) -> None:
    getattr(tg, "set_num_threads", cpu._C.set_num_threads)(threads)


def magnitude(x: Any) -> np.ndarray:
    return np.abs(np.asarray(x).astype(np.float64))


class Case:
    """The draws of one call, the memory of its arrays, and the judgement."""

    def __init__(self, seed: int, number: int, worst: dict[str, float]):
        self.rng = np.random.default_rng([seed, number])
        self.worst = worst
        self.inputs: list[tuple[np.ndarray, np.ndarray]] = []  # memory, and what it held
        self.outputs: list[tuple[np.ndarray, np.ndarray]] = []  # memory, and which bytes of it are the output's
        self.story: list[str] = []

    # --- draws --------------------------------------------------------------------------------------------------------

    def one_of(self, *choices: Any) -> Any:
        return choices[self.rng.integers(len(choices))]

    def chance(self, p: float) -> bool:
        return bool(self.rng.random() < p)

    def dtype(self) -> np.dtype:
        return self.one_of(*DTYPES)

    def size(self) -> int:
        """Up to 70 in most cases, at the edges of blocks and tiles, and now and then very long."""
        edges = [(1, 2), (250, 262), (500, 520), (1000, 5000), (8180, 8200), (60_000, 100_001)]
        low, high = self.one_of(*[(1, 71)] * 8, *edges)
        return int(self.rng.integers(low, high))

    def rows(self, columns: int) -> int:
        most = self.one_of(2, 9, 70, 300, 300_000 // columns if columns > 70 else 3000)
        return int(self.rng.integers(1, max(2, min(most, 3_000_000 // columns))))

    def shape(self) -> tuple[tuple[int, ...], int]:
        """Of an array with a dimension of any place and size to reduce, and that dimension."""
        columns = self.size()
        rows = [] if self.chance(0.1) else [self.rows(columns)]
        if rows and self.chance(0.4):
            rows = [max(1, int(rows[0] ** 0.5)), int(self.rng.integers(1, 4)), max(1, int(rows[0] ** 0.5) - 1)]
        axis = int(self.rng.integers(len(rows) + 1))
        return (*rows[:axis], columns, *rows[axis:]), axis

    def numbers(self, shape: tuple[int, ...], special: bool = True) -> np.ndarray:
        scale = self.one_of(1e-3, 1, 1, 3, 30, 1000)
        x = scale * self.rng.standard_normal(shape) + self.one_of(0, 0, 0, 1e4)
        if special and x.size and self.chance(0.3):
            x.flat[self.rng.integers(x.size, size=self.one_of(1, 2, 5))] = self.one_of(*SPECIAL)
            if x.ndim > 1 and self.chance(0.2):
                x[self.rng.integers(len(x))] = self.one_of(*SPECIAL)
        return x

    # --- memory -------------------------------------------------------------------------------------------------------

    def placed(self, shape: tuple[int, ...], dtype: np.dtype, repeats: bool, dense: bool) -> tuple[np.ndarray, ...]:
        """An array anywhere in memory, that memory, and which bytes of it are the array's: dimensions in any order,
        backwards, with gaps, repeated; the first element at any multiple of its size. Often the last one ends it."""
        order = range(len(shape))[::-1] if dense else self.rng.permutation(len(shape))
        strides, room = [0] * len(shape), 1 if dense else self.one_of(1, 1, 1, 1, 2, 3)
        for i in order:
            if not (repeats and self.chance(0.08)):
                strides[i] = room * (-1 if not dense and self.chance(0.12) else 1)
                room = room * max(1, shape[i]) + (0 if dense else self.one_of(0, 0, 0, 0, 1, 8))
        reach = [s * max(0, n - 1) for s, n in zip(strides, shape, strict=True)]
        before, after = self.one_of(0, 0, 1, 3, 8, 16), self.one_of(0, 0, 5)
        start = before - sum(r for r in reach if r < 0)
        item = dtype.itemsize
        memory = np.zeros((before + sum(map(abs, reach)) + 1 + after) * item, np.uint8)
        taken = np.zeros(len(memory), bool)
        where = {"offset": start * item, "strides": [s * item for s in strides]}
        bytes_of = {"offset": start * item, "strides": [*where["strides"], 1]}
        np.ndarray((*shape, item), bool, taken, **bytes_of)[...] = True
        return np.ndarray(shape, dtype, memory, **where), memory, taken

    def array(self, values: Any, dtype: Any, name: str, ours: bool = False) -> np.ndarray:
        """An input; one that is ``ours``, the output of another call, is dense."""
        values = np.asarray(values)
        dense = self.chance(0.4) or ours
        view, memory, _ = self.placed(values.shape, np.dtype(dtype), repeats=not ours, dense=dense)
        view[...] = values.astype(dtype)
        self.inputs.append((memory, memory.copy()))
        self.story.append(f"{name}: {dtype} {view.shape}, strides {view.strides}")
        return view

    def output(self, shape: tuple[int, ...], dtype: Any, dense: bool = False) -> np.ndarray:
        view, memory, taken = self.placed(shape, np.dtype(dtype), repeats=False, dense=dense or self.chance(0.6))
        self.outputs.append((memory, taken))
        return view

    # --- judgement ----------------------------------------------------------------------------------------------------

    def run(
        self, operation: str, *args: Any, given: dict[str, Any] | None = None, **outputs: Any
    ) -> dict[str, np.ndarray]:
        """Call the kernel; returns what the reference writes in float64."""
        given = {**(given or {}), **self.flag(operation)}
        self.story += [operation, *(repr(a) for a in args if not isinstance(a, np.ndarray))]
        self.story += [f"{k}: {v.dtype} {v.shape}, strides {v.strides}" for k, v in outputs.items() if v is not None]
        truths = {k: None if v is None else np.empty(v.shape, max(v.dtype, np.float64)) for k, v in outputs.items()}
        getattr(reference, operation)(*args, **given, **truths)
        self.repeated(lambda: getattr(cpu, operation)(*args, **given, **outputs))
        return truths

    def flag(self, operation: str) -> dict[str, None]:
        return {"flag": None} if operation in ("cross_entropy", "nll_loss", "linear_cross_entropy") else {}

    def repeated(self, call: Callable[[], Any]) -> None:
        made = []
        for fill, threads in zip((0x5A, 0xC3), self.rng.choice(THREADS, 2, replace=False), strict=True):
            for memory, _ in self.outputs:
                memory[...] = fill
            set_num_threads(int(threads))
            call()
            for memory, taken in self.outputs:
                assert (memory[~taken] == fill).all(), "memory around an output was written"
            made.append([memory[taken] for memory, taken in self.outputs])
        for first, second in zip(*made, strict=True):
            assert (first == second).all(), "the second run gave other bits"
        for memory, before in self.inputs:
            assert (memory == before).all(), "an input was written"

    def close(
        self, what: str, got: np.ndarray | None, truth: Any, scale: Any, compute: np.dtype, units: float = 8,
        of_exp: Any = 0.0,
    ) -> None:  # fmt: skip
        """``of_exp``: the factors of exponentials, which may be 0 where they are below the normal numbers. Where the
        scale passes the range of the dtype that is computed in, anything may come of it."""
        if got is None:
            return
        rounded, arithmetic = ml_dtypes.finfo(got.dtype), np.finfo(compute)
        y, truth, scale, of_exp = np.broadcast_arrays(got.astype(np.float64), truth, scale, of_exp)
        bound = 0.51 * float(rounded.eps) * np.abs(truth) + float(rounded.smallest_subnormal)
        units *= 1 if compute == np.float32 else 4096  # the reference, too, rounds in float64, and sums plainly
        bound = bound + units * (float(arithmetic.eps) * scale + float(arithmetic.smallest_subnormal))
        bound += float(arithmetic.tiny) * of_exp
        error = np.abs(y - truth)
        overflown = np.isinf(y) & (np.sign(y) == np.sign(truth)) & (np.abs(truth) + bound >= float(rounded.max))
        right = (error <= bound) | (y == truth) | (np.isnan(y) & np.isnan(truth)) | overflown
        right |= scale >= float(arithmetic.max) / 8
        if not right.all():
            at = tuple(int(i[0]) for i in np.nonzero(~right))
            raise AssertionError(
                f"{what}: {(~right).sum()} of {right.size} elements are wrong, the first at {at}: "
                f"got {y[at]!r}, expected {truth[at]!r} ± {bound[at]:.3g}"
            )
        judged = np.isfinite(error) & (scale < float(arithmetic.max) / 8)
        if judged.any():
            self.worst[what] = max(self.worst.get(what, 0), float((error[judged] / bound[judged]).max()))
