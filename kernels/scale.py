"""A gradient that a forward pass made, for the upstream gradient that came."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from .launch import launch, view

BLOCK = 4096  # 32 elements of each of 128 threads: wide loads, several of them in flight


@triton.jit
def scale_kernel(x_ptr, factor_ptr, count, BLOCK: tl.constexpr):
    """x ← factor·x; where the factor is 1, which only the device knows, a program reads that and nothing else."""
    factor = tl.load(factor_ptr)
    if factor != 1:
        ACC: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
        i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + i, mask=i < count).to(ACC) * factor.to(ACC)
        tl.store(x_ptr + i, x.to(x_ptr.dtype.element_ty), mask=i < count)


def scale(upstream: Any, *, inplace: Any) -> None:
    """``inplace`` (contiguous) times the 0-d ``upstream``: 4 bytes an element of bfloat16, none if the factor is 1."""
    x = view(inplace)
    launch(scale_kernel, (triton.cdiv(x.size, BLOCK),), x, view(upstream), x.size, BLOCK=BLOCK, num_warps=4)
