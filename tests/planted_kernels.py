"""Kernels with a fault each, for tests/test_static.py to find. Imported only where Triton compiles."""

from __future__ import annotations

import triton
import triton.language as tl

from bench.compiling import Case, array, compiled, launches, launching, reading_of, rows_of
from bench.rules import Row


@triton.jit
def copy_kernel(x_ptr, y_ptr, columns, stride_x, stride_y, BLOCK: tl.constexpr):
    row, column = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row * stride_x + column, mask=column < columns)
    tl.store(y_ptr + row * stride_y + column, x, mask=column < columns)


@triton.jit
def scalar_kernel(x_ptr, y_ptr, columns, stride_x, stride_y, BLOCK: tl.constexpr):
    """Every second element, where all of them were meant."""
    row, column = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK) * 2
    x = tl.load(x_ptr + row * stride_x + column, mask=column < columns)
    tl.store(y_ptr + row * stride_y + column, x, mask=column < columns)


@triton.jit
def loop_kernel(x_ptr, y_ptr, columns, stride_x, stride_y, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + row * stride_x + column, mask=column < columns)
        tl.store(y_ptr + row * stride_y + column, x, mask=column < columns)


@triton.jit
def narrow_offset_kernel(x_ptr, y_ptr, columns, stride_x, stride_y, BLOCK: tl.constexpr):
    """copy_kernel with offsets of 32 bits."""
    row, column = tl.program_id(0), tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row * stride_x + column, mask=column < columns)
    tl.store(y_ptr + row * stride_y + column, x, mask=column < columns)


@triton.jit
def flat_offset_kernel(x_ptr, y_ptr, columns, stride_x, stride_y, BLOCK: tl.constexpr):
    """Counts through all elements in 32 bits, and widens too late."""
    at = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    tl.store(y_ptr + at, tl.load(x_ptr + at))


@triton.jit
def product_kernel(x_ptr, y_ptr, columns, stride_x, stride_y, BLOCK: tl.constexpr):
    """A matrix product out of pointers, which no bulk copy feeds."""
    row, column = tl.arange(0, 64)[:, None], tl.arange(0, 64)[None, :]
    x = tl.load(x_ptr + row * stride_x + column)
    tl.store(y_ptr + row * stride_y + column, tl.dot(x, x).to(x.dtype))


@triton.jit
def wrong_kernel(x_ptr, y_ptr, columns, stride_x, stride_y, BLOCK: tl.constexpr):
    tl.static_assert(BLOCK > 64)


KERNELS = (
    copy_kernel,
    scalar_kernel,
    loop_kernel,
    narrow_offset_kernel,
    flat_offset_kernel,
    product_kernel,
    wrong_kernel,
)
BY_NAME = {kernel.__name__: kernel for kernel in KERNELS}


def _case(name: str, rows: int, columns: int, block: int, warps: int) -> Case:
    x, y = array(rows, columns), array(rows, columns)

    def call() -> None:
        strides = x.strides[0], y.strides[0]
        launching.launch(BY_NAME[name], (rows,), x, y, columns, *strides, BLOCK=block, num_warps=warps)

    return Case(call, rows * columns)


def row(name: str, chip: str, rows: int, columns: int, block: int, warps: int) -> Row:
    (found,) = rows_of("planted", _case(name, rows, columns, block, warps), chip)
    return found


def overflows(name: str, rows: int, columns: int) -> list[str]:
    (launch,) = launches(_case(name, rows, columns, 1024, 4).call, "sm_90")
    return reading_of(compiled(launch, "sm_90"), launch).overflows
