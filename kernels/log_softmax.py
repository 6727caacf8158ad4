"""Softmax and log-softmax along any dimension, forward and backward.

With m = max x and s = Σ exp(x − m) over a row,

    log softmax(x) = (x − m) − log s         dx = dy − exp(y)·Σ dy
    softmax(x) = exp(x − m) / s              dx = y·(dy − Σ dy·y)

One launch each. A row that fits in registers is read once and written once: 4 bytes an element of bfloat16, and 6 in
the backward pass. A longer one is gone over twice.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from . import configs
from .launch import FLOATS, View, chip_of, launch, view
from .rows import Strides, Vectors, doubled, rows_of, vectors_of
from .softmax_rows import (
    softmax_backward_kernel,
    softmax_kernel,
    softmax_long_backward_kernel,
    softmax_long_kernel,
)


def softmax(x: Any, dim: int, log: bool, *, out: Any) -> None:
    """Along ``dim``: exp(x) / Σ exp(x), or its logarithm.

    Args:
        x: an array of any shape and strides, float16, bfloat16, float32 or float64.
        out: an array of the same shape; its dtype may be another one of these.

    Raises:
        TypeError: another dtype. ValueError: another shape, or rows of 2³¹ − 2²⁰ columns or more.
    """
    arrays = _checked("softmax", x=view(x), out=view(out))
    _launch(softmax_kernel, softmax_long_kernel, arrays, dim, log, backward=False)


def softmax_backward(grad: Any, y: Any, dim: int, log: bool, *, out: Any) -> None:
    """The gradient of the input from the output ``y``: dy − exp(y)·Σ dy for the logarithm, y·(dy − Σ dy·y) otherwise.

    Arguments and errors are as for ``softmax``.
    """
    arrays = _checked("softmax_backward", grad=view(grad), y=view(y), out=view(out))
    _launch(softmax_backward_kernel, softmax_long_backward_kernel, arrays, dim, log, backward=True)


def _checked(name: str, **arrays: View) -> list[View]:
    shape = next(iter(arrays.values())).shape
    for which, x in arrays.items():
        if x.dtype.name not in FLOATS:
            raise TypeError(f"{name}: the Triton kernels take {', '.join(FLOATS)}, got {which} of {x.dtype}")
        if x.shape != shape:
            raise ValueError(f"{name}: expected {which} of shape {shape}, got {x.shape}")
        if max(x.shape, default=0) >= 2**31 - 2**20:
            raise ValueError(f"{name}: expected fewer than 2³¹ − 2²⁰ elements in each dimension, got {x.shape}")
    return list(arrays.values())


def _launch(whole: Any, long: Any, arrays: list[View], dim: int, log: bool, backward: bool) -> None:
    """Rows whole if they fit, else in blocks. The last array is the output."""
    arrays = [x if x.ndim else x.viewed((1,), (1,)) for x in arrays]
    shape = arrays[0].shape
    if 0 in shape:
        return
    dim %= len(shape)
    columns, strides = shape[dim], [x.strides[dim] for x in arrays]
    close = columns > 1 and all(s == 1 for s in strides)
    sizes = shape[:dim] + shape[dim + 1 :]
    rows = rows_of(sizes, *(x.strides[:dim] + x.strides[dim + 1 :] for x in arrays), columns_stride=1 if close else 0)
    vectors = vectors_of(columns, rows, arrays) if close else Vectors(1, False)

    chip, wide = chip_of(arrays[-1]), max(x.dtype.itemsize for x in arrays)
    turned = columns > 1 and not close and 1 in strides
    held = configs.softmax_held(wide, backward, close, turned, log)
    width = triton.next_power_of_2(columns)
    tile = configs.softmax_tile(chip.name, backward, close, width * held, wide)
    placed = [Strides(s.inner, doubled(s.outer)) for s in rows.strides]
    args: list[Any] = [part for of_array in zip(arrays, placed, strides, strict=True) for part in of_array]
    args += [columns, rows.inner, rows.outer]
    constants = {"LOG": log, "ACC": tl.float64 if wide == 8 else tl.float32}
    constants |= {"VECTOR": vectors.width, "EDGES": vectors.edges}
    if tile is None:
        table = configs.softmax_table(chip.name, backward)
        block = table.long_close if close else table.long_apart
        depth = block.elements // (held * block.rows * block.lanes * vectors.width)
        constants |= {"ROWS": block.rows, "LANES": block.lanes, "DEPTH": depth, "num_warps": block.warps}
        launch(long, (rows.programs(block.rows),), *args, **constants)
        return
    elements, height, warps = tile.elements // held, 1, tile.warps
    if tile.stages == 1:
        if not vectors.edges:
            height = min(elements // width, triton.next_power_of_2(rows.inner))
        warps = max(1, warps * height * width // elements)
    programs = rows.programs(height)
    grid = programs if tile.stages == 1 else min(programs, chip.multiprocessors)
    constants |= {"ROWS": height, "COLUMNS": width, "STAGES": tile.stages, "num_warps": warps}
    launch(whole, (grid,), *args, programs, **constants)
