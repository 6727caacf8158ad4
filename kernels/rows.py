"""Rows: what is left of a tensor's shape when one of its dimensions is reduced.

A program works on ROWS consecutive rows of one row dimension, the inner one; it finds its place in the others, the outer
ones, by division. So any strides are reached without a copy, and no index is divided by element.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from .launch import merged


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

    Neighbouring dimensions are merged where every array allows it. The inner dimension is the longest one if the columns
    lie close together (``columns_stride`` 1); otherwise the one that does lie close in the first array, so that a tile
    of rows and columns is read in whole sectors either way.
    """
    sizes, found = merged(sizes, *strides)
    if not sizes:
        return Rows(1, (), tuple(Strides(0, ()) for _ in strides))
    choices = range(len(sizes))
    at = max(choices, key=lambda i: sizes[i]) if columns_stride == 1 else min(choices, key=lambda i: abs(found[0][i]))

    def rest(values: tuple[int, ...]) -> tuple[int, ...]:
        return values[:at] + values[at + 1 :]

    return Rows(sizes[at], rest(sizes), tuple(Strides(s[at], rest(s)) for s in found))


@triton.jit
def tile_of_rows(inner, ROWS: tl.constexpr):
    """This program's rows: the index over the outer dimensions, the inner indices (ROWS), and which of them exist."""
    tiles = tl.cdiv(inner, ROWS)
    program = tl.program_id(0)
    row = (program % tiles) * ROWS + tl.arange(0, ROWS)
    return program // tiles, row, row < inner


@triton.jit
def outer_offset(outer, sizes, strides):
    """The offset of an index over the outer dimensions; 64 bits, as rows × columns can pass 2³¹."""
    offset = tl.cast(0, tl.int64)
    for i in tl.static_range(len(sizes)):
        at: tl.constexpr = len(sizes) - 1 - i
        offset += (outer % sizes[at]).to(tl.int64) * strides[at]
        outer = outer // sizes[at]
    return offset
