"""Kernels that are launched but never run."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def scale(x_ptr, y_ptr, n, factor, BLOCK: tl.constexpr):
    i = (tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + i, (tl.load(x_ptr + i, mask=i < n) * factor).to(y_ptr.dtype.element_ty), mask=i < n)


@triton.jit
def copy_tile(x, y_ptr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    tile = x.load([0, 0])
    tl.store(y_ptr + tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :], tile)


@triton.jit
def copy_pair(pair, bias_ptr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    x = tl.load(pair[0] + i)
    if bias_ptr is not None:
        x += tl.load(bias_ptr + i)
    tl.store(pair[1] + i, x)
