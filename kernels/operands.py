"""The operands of a matrix product: arrays as matrices, and how the sums of a tile are made of them.

The product is A Bᵀ, of A (m, k) and B (n, k), each of which may be stored along either axis. Operands come by the copy
engine (Hopper and later), which asks for rows on 16 bytes, or through pointers, at any strides and addresses, along
axes that may be several dimensions of an array.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import triton
import triton.language as tl

from .launch import ALIGNMENT, Chip, View, fits_descriptor, merged

# --- arrays as matrices -----------------------------------------------------------------------------------------------


class Axis(NamedTuple):
    """One axis of a matrix: several dimensions of an array, the outermost first."""

    sizes: tuple[int, ...]
    strides: tuple[int, ...]  # in elements

    @property
    def size(self) -> int:
        return math.prod(self.sizes)

    @property
    def is_dense(self) -> bool:
        return self.strides == (1,)


class Matrix(NamedTuple):
    """An array as a matrix, each axis of which has at least one dimension."""

    view: View
    rows: Axis
    columns: Axis

    @property
    def T(self) -> Matrix:
        return Matrix(self.view, self.columns, self.rows)

    def along_columns(self) -> View | None:
        """As an array of two dimensions whose rows are dense, if it is that."""
        if not self.columns.is_dense or len(self.rows.sizes) > 1:
            return None
        return self.view.viewed((self.rows.size, self.columns.size), (self.rows.strides[0], 1))


def matrix(v: View) -> Matrix:
    """(…, columns) as a matrix of all its rows. Dimensions are merged where their strides allow it."""
    columns = Axis(v.shape[-1:], v.strides[-1:] if v.shape[-1] > 1 else (1,))
    sizes, (strides,) = merged(v.shape[:-1], v.strides[:-1])
    if not sizes:  # one row, whose stride is of no importance: one that suits bulk copies
        sizes, strides = (1,), (triton.cdiv(v.shape[-1], ALIGNMENT) * ALIGNMENT,)
    return Matrix(v, Axis(sizes, strides), columns)


def as_bulk(operands: list[Matrix], chip: Chip, tf32: bool) -> list[tuple[View, bool]] | None:
    """The operands as the copy engine can bring them, each with whether it lies along k; None if it cannot, or if the
    chip has no tensor cores that multiply what lies in shared memory, in this dtype."""
    dtype = operands[0].view.dtype.name
    if dtype == "float64" or (dtype == "float32" and not tf32):
        return None
    if not chip.name.startswith("sm_") or not 90 <= int(chip.name.removeprefix("sm_")) < 120:
        return None
    found = []
    for x in operands:
        straight, turned = x.along_columns(), x.T.along_columns()
        if straight is not None and fits_descriptor(straight):
            found.append((straight, True))
        elif turned is not None and fits_descriptor(turned):
            found.append((turned, False))
        else:
            return None
    return found


def alignment(operands: list[Matrix], along: list[bool], limit: View | None = None, limit_k: bool = False) -> int:
    """How many elements of every operand can be loaded at once. ``along`` says of each whether it lies along k; a limit
    of m or k that only the device knows divides into nothing."""
    elements = ALIGNMENT
    for i, (x, along_k) in enumerate(zip(operands, along, strict=True)):
        dense, other = (x.columns, x.rows) if along_k else (x.rows, x.columns)
        limited = limit is not None and along_k == limit_k and (limit_k or i == 0)
        if limited or not dense.is_dense:
            return 1
        elements = min(elements, vector(x.view, dense.size, *other.strides))
    return elements


def vector(v: View, *numbers: int) -> int:
    """How many elements, a power of two and at most 16 bytes of them, divide the address and the numbers."""
    elements = ALIGNMENT // v.dtype.itemsize
    while any(number % elements for number in (v.address // v.dtype.itemsize, *numbers)):
        elements //= 2
    return elements


# --- by the copy engine -----------------------------------------------------------------------------------------------


@triton.jit
def bulk_load(desc, first, first_k, ALONG_K: tl.constexpr):
    """Rows from ``first`` and columns from ``first_k`` of an operand, whichever of its axes the memory runs along."""
    if ALONG_K:
        tile = desc.load([first, first_k])
    else:
        tile = desc.load([first_k, first]).T
    return tile


@triton.jit
def bulk_product(
    a_desc, b_desc, b_up_desc, first_m, first_n, k,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    A_ALONG_K: tl.constexpr, B_ALONG_K: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The sums of a tile, and those with ``b_up_desc`` (else they are of no use). Beyond the edges there are zeros."""
    acc = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    up = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    for first_k in tl.range(0, k, BLOCK_K):
        a = bulk_load(a_desc, first_m, first_k, A_ALONG_K)
        b = bulk_load(b_desc, first_n, first_k, B_ALONG_K)
        acc = tl.dot(a, b.T, acc, input_precision=PRECISION, out_dtype=ACC)
        if b_up_desc is not None:
            b = bulk_load(b_up_desc, first_n, first_k, B_ALONG_K)
            up = tl.dot(a, b.T, up, input_precision=PRECISION, out_dtype=ACC)
    return acc, up


# --- through pointers -------------------------------------------------------------------------------------------------


@triton.jit
def aligned(x, ALIGN: tl.constexpr):
    """x, which ALIGN divides, so that the compiler knows: what it can tell by itself is 1 and multiples of 16."""
    return x // ALIGN * ALIGN


@triton.jit
def axis_offset(index, axis, ALIGN: tl.constexpr):
    """The offsets of indices along an axis, whose strides ALIGN divides; in 64 bits, as rows × columns can pass 2³¹."""
    sizes, strides = axis
    offset = tl.zeros_like(index).to(tl.int64)
    for i in tl.static_range(len(sizes) - 1, 0, -1):
        offset += (index % sizes[i]).to(tl.int64) * aligned(strides[i], ALIGN)
        index = index // sizes[i]
    return offset + index.to(tl.int64) * aligned(strides[0], ALIGN)


@triton.jit
def pointer_load(ptr, offset, inside, column, k, axis_k, ALIGN: tl.constexpr, ALONG_K: tl.constexpr):
    """(rows, columns) of an operand, zeros beyond its edges; ``offset`` and ``inside`` are of the rows."""
    along = axis_offset(column, axis_k, 1 if ALONG_K else ALIGN)
    mask = inside[:, None] & (column < k)[None, :]
    return tl.load(ptr + offset[:, None] + along[None, :], mask=mask, other=0.0)


@triton.jit
def pointer_product(
    a_ptr, a_axis_m, a_axis_k, b_ptr, b_up_ptr, b_axis_n, b_axis_k, first_m, first_n, m, n, k,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    A_ALONG_K: tl.constexpr, B_ALONG_K: tl.constexpr, ALIGN: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The same through pointers. ALIGN divides addresses, strides but unit ones, and sizes along unit strides."""
    if A_ALONG_K or B_ALONG_K:
        k = aligned(k, ALIGN)
    if not A_ALONG_K:
        m = aligned(m, ALIGN)
    if not B_ALONG_K:
        n = aligned(n, ALIGN)
    row = first_m + tl.arange(0, BLOCK_M)
    column = first_n + tl.arange(0, BLOCK_N)
    a_offset = axis_offset(row, a_axis_m, ALIGN if A_ALONG_K else 1)
    b_offset = axis_offset(column, b_axis_n, ALIGN if B_ALONG_K else 1)
    acc = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    up = tl.zeros((BLOCK_M, BLOCK_N), ACC)
    for first_k in tl.range(0, k, BLOCK_K):
        at = first_k + tl.arange(0, BLOCK_K)
        a = pointer_load(a_ptr, a_offset, row < m, at, k, a_axis_k, ALIGN, A_ALONG_K)
        b = pointer_load(b_ptr, b_offset, column < n, at, k, b_axis_k, ALIGN, B_ALONG_K)
        acc = tl.dot(a, b.T, acc, input_precision=PRECISION, out_dtype=ACC)
        if b_up_ptr is not None:
            b = pointer_load(b_up_ptr, b_offset, column < n, at, k, b_axis_k, ALIGN, B_ALONG_K)
            up = tl.dot(a, b.T, up, input_precision=PRECISION, out_dtype=ACC)
    return acc, up
