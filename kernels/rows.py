"""Rows: what is left of a tensor's shape when one of its dimensions is reduced.

A program works on ROWS consecutive rows of one row dimension, the inner one; it finds its place in the others, the
outer ones, by division. So any strides are reached without a copy, and no index is divided by element.

Of rows whose elements lie one behind the other, wide accesses move the body: the part that begins and ends on a
multiple of VECTOR elements. What is left over at the ends, fewer than VECTOR elements at each, is one narrow tile of
its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import triton
import triton.language as tl

from .launch import ALIGNMENT, View, merged


class Strides(NamedTuple):
    """Where an array keeps the rows, in elements."""

    inner: int
    outer: tuple[int, ...]


class Rows(NamedTuple):
    inner: int  # rows along the inner dimension
    outer: tuple[int, ...]  # sizes of the outer dimensions
    strides: tuple[Strides, ...]  # of each array

    def programs(self, rows: int) -> int:
        """How many programs of ``rows`` rows cover them."""
        count = triton.cdiv(self.inner, rows)
        for n in self.outer:
            count *= n
        return count


def rows_of(sizes: tuple[int, ...], *strides: tuple[int, ...], columns_stride: int) -> Rows:
    """The rows of arrays that share the row dimensions ``sizes``, one tuple of strides each.

    Neighbouring dimensions are merged where every array allows it. The inner dimension is the longest one if the
    columns lie close together (``columns_stride`` 1); otherwise the one that itself lies close, in as many arrays as
    possible, so that a tile of rows and columns is read in whole sectors either way.
    """
    sizes, found = merged(sizes, *strides)
    if not sizes:
        return Rows(1, (), tuple(Strides(0, ()) for _ in strides))

    def apart(i: int) -> int:
        """How far apart neighbours lie, beyond a sector as good as anywhere."""
        return 0 if columns_stride == 1 else sum(min(abs(s[i]), FAR) for s in found)

    at = min(range(len(sizes)), key=lambda i: (apart(i), -sizes[i]))

    def rest(values: tuple[int, ...]) -> tuple[int, ...]:
        return values[:at] + values[at + 1 :]

    return Rows(sizes[at], rest(sizes), tuple(Strides(s[at], rest(s)) for s in found))


FAR = 32  # elements, which are a sector of 32 bytes or more


class Vectors(NamedTuple):
    """How rows are cut into accesses; see the top of this file."""

    width: int  # VECTOR: elements
    edges: bool  # rows may begin or end elsewhere, all arrays' in the same place


def vectors_of(columns: int, rows: Rows, arrays: Sequence[View]) -> Vectors:
    """The widest accesses, of 16 bytes at most, to the rows of ``arrays``, whose columns lie one behind the other.

    Edges are for rows so long that they cost nothing to speak of. Where an array does not begin on 16 bytes, nothing
    can be said (width 1).
    """
    widest = ALIGNMENT // min(x.dtype.itemsize for x in arrays)
    if any(x.address % ALIGNMENT for x in arrays):
        return Vectors(1, False)
    steps = list(zip(*((s.inner, *s.outer) for s in rows.strides), strict=True))  # per dimension, of each array
    width = widest
    while columns % width or any(s % width for of_dimension in steps for s in of_dimension):
        width //= 2
    if width < widest and columns >= EDGED and all(len({s % widest for s in step}) == 1 for step in steps):
        return Vectors(widest, True)
    return Vectors(width, False)


EDGED = 1025  # columns


def doubled(strides: tuple[int, ...]) -> tuple[int, ...]:
    """Strides as kernels take those of outer dimensions: twice as large, so never 1. Triton makes a constant of a 1,
    and Triton 3.6 loses count of the constants in a tuple within a tuple, where a loop uses them."""
    return tuple(2 * s for s in strides)


# --- in a kernel ------------------------------------------------------------------------------------------------------


@triton.jit
def exp_of(x):
    """exp(x). In float32 as the hardware's 2ˣ of x·log₂e, whose subnormal results are zeros: 2 instructions on sm_90
    where tl.exp has 5, at the same precision."""
    if x.dtype == tl.float64:
        return tl.exp(x)
    else:
        return tl.exp2(x * 1.4426950408889634)


@triton.jit
def finite(top):
    """The maximum as it may be subtracted: of nothing but −inf, 0, since −inf − (−inf) would be NaN."""
    return tl.where(top == -float("inf"), 0.0, top)


@triton.jit
def tile_of_rows(program, inner, ROWS: tl.constexpr):
    """A program's rows: the index over the outer dimensions, the inner indices (ROWS), and which of them exist."""
    tiles = tl.cdiv(inner, ROWS)
    row = (program % tiles) * ROWS + tl.arange(0, ROWS)
    return program // tiles, row, row < inner


@triton.jit
def row_offset(strides, outer, sizes, row):
    """Where rows begin; 64 bits, as rows × columns can pass 2³¹."""
    offset = row.to(tl.int64) * strides.inner
    for i in tl.static_range(len(sizes)):
        offset += tl.cast(outer % sizes[len(sizes) - 1 - i], tl.int64) * (strides.outer[len(sizes) - 1 - i] // 2)
        outer = outer // sizes[len(sizes) - 1 - i]
    return offset


@triton.jit
def known_multiple(x, VECTOR: tl.constexpr):
    """``x``, which is a multiple of VECTOR: computed, not claimed, so that the compiler keeps it through all of its
    rewriting, and a lie shows in any interpreter."""
    return x // VECTOR * VECTOR


@triton.jit
def body_of_rows(offset, columns, VECTOR: tl.constexpr, EDGES: tl.constexpr):
    """Of rows that begin at ``offset`` (ROWS): the columns before the body, and those of the body, (ROWS) each."""
    head = tl.zeros_like(offset).to(tl.int32)
    if EDGES:
        head = tl.minimum((0 - offset.to(tl.int32)) & (VECTOR - 1), columns)
    return head, known_multiple(columns - head, VECTOR)


@triton.jit
def edges_of_row(offset, columns, VECTOR: tl.constexpr):
    """Of one row that begins at ``offset``: the columns around its body, (2·VECTOR), and which of them exist."""
    head = tl.minimum((0 - offset.to(tl.int32)) & (VECTOR - 1), columns)
    after = head + known_multiple(columns - head, VECTOR)
    # Those before and after take turns, so that the compiler sees nothing to put into vectors: a lane then has one.
    lane = tl.arange(0, 2 * VECTOR)
    before, i = lane % 2 == 0, lane // 2
    column = tl.where(before, i, after + i)
    return column, tl.where(before, i < head, column < columns)
