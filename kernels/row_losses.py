"""What the losses over classes share: where their rows lie, what the targets say, and how rows become one number.

A mean with its gradient in one pass needs its denominators before the first gradient is written. So a scalar loss is
two launches: ``prepare_kernel`` reads the targets alone; the loss's own kernel then sums its rows, and the program that
is the last to finish puts the programs' sums together. Sums are float64 and in a fixed order, so that a loss is the
same bits from run to run, whichever program comes last.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .launch import ALIGNMENT, FLOATS, View, launch
from .rows import Rows, Strides, doubled, rows_of

SUMS = 64  # programs of prepare_kernel at the most
PREPARED = 1024  # targets that one of them reads at a time
PARTIALS = 512  # partial losses that the last program reads at a time

# --- what is handed in ------------------------------------------------------------------------------------------------

INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")


def class_axis(logits: View) -> int:
    return 1 if logits.ndim > 1 else 0


def check_arrays(name: str, logits: View, target: View, probabilities: bool) -> None:
    """
    Raises:
        TypeError: a dtype that the kernels do not take. ValueError: more classes than 31 bits count.
    """
    if logits.dtype.name not in FLOATS:
        raise TypeError(f"{name}: the Triton kernels take {', '.join(FLOATS)}, got {logits.dtype}")
    expected = logits.dtype.name if probabilities and target.ndim == logits.ndim else "an integer dtype"
    if target.dtype.name != expected and not (expected not in FLOATS and target.dtype.name in INTEGERS):
        raise TypeError(f"{name}: expected a target of {expected}, got {target.dtype}")
    if (classes := logits.shape[class_axis(logits)]) >= 2**31 - 2**16:
        raise ValueError(f"{name}: expected fewer than 2³¹ classes, got {classes}")


def of_weight(weight: View | None) -> tuple[View | None, int]:
    return (None, 0) if weight is None else (weight, weight.strides[0])


def programs_for(tiles: int, most: int) -> int:
    """As many programs as have a tile, up to ``most``: each goes on to every so manieth, so that what one costs beside
    its tiles, the denominators read and a partial loss written, is spread over all of them. One is there in any case,
    for the loss of no rows."""
    return max(1, min(tiles, most))


# --- where rows lie ---------------------------------------------------------------------------------------------------


class Placed(NamedTuple):
    """An array as a kernel takes it, strides in elements."""

    ptr: View
    inner: int  # from one row to the next along the inner row dimension
    outer: tuple[int, ...]  # along the outer ones; twice that, see ``doubled``
    column: int  # from class to class; 0 where there is one element a row


class Layout(NamedTuple):
    """Rows of several arrays: those that are reached by strides of their own."""

    inner: int
    outer: tuple[int, ...]
    rows: int
    arrays: dict[str, Placed | None]

    def tiles(self, rows: int) -> int:
        return Rows(self.inner, self.outer, ()).programs(rows)


def layout(axis: int, columns: dict[str, View | None], rows: dict[str, View | None]) -> Layout:
    """The rows of arrays with a class dimension ``axis``, the first of ``columns`` being the one that the tiles are to
    suit, and of arrays without one. A 0-d array stands for all rows."""
    given = [v for v in columns.values() if v is not None]
    sizes = given[0].shape[:axis] + given[0].shape[axis + 1 :]
    strides = []
    for x in (*columns.values(), *rows.values()):
        if x is None:
            continue
        of_rows = x.strides[:axis] + x.strides[axis + 1 :] if any(x is c for c in given) else x.strides
        strides.append(of_rows if x.ndim else (0,) * len(sizes))
    found = rows_of(sizes, *strides, columns_stride=given[0].strides[axis])
    left = iter(found.strides)
    arrays: dict[str, Placed | None] = {}
    for name, x in (*columns.items(), *rows.items()):
        if x is None:
            arrays[name] = None
            continue
        at: Strides = next(left)
        arrays[name] = Placed(x, at.inner, doubled(at.outer), x.strides[axis] if name in columns else 0)
    count = found.inner
    for n in found.outer:
        count *= n
    return Layout(found.inner, found.outer, count, arrays)


def vector(layout: Layout, columns: int, *arrays: Placed | None) -> int:
    """How many elements, a power of two and 16 bytes of them at the most, every vector of the tiles can have: along the
    classes if they lie one behind the other, else along the inner rows."""
    found = [x for x in arrays if x is not None]
    along_columns = all(x.column == 1 for x in found)
    if not along_columns and not all(x.inner == 1 for x in found):
        return 1
    size = columns if along_columns else layout.inner
    elements = ALIGNMENT // min(x.ptr.dtype.itemsize for x in found)
    while elements > 1 and (
        size % elements
        or any(x.ptr.address % (elements * x.ptr.dtype.itemsize) for x in found)
        or any(s % (2 * elements) for x in found for s in x.outer)
        or any((x.inner if along_columns else x.column) % elements for x in found)
    ):
        elements //= 2
    return elements


@triton.jit
def tile_of(tile, inner, sizes, ROWS: tl.constexpr):
    """A tile's rows: the index over the outer dimensions, and the inner indices (ROWS)."""
    if len(sizes):
        return tile // tl.cdiv(inner, ROWS), tile % tl.cdiv(inner, ROWS) * ROWS + tl.arange(0, ROWS)
    else:
        return 0, tile * ROWS + tl.arange(0, ROWS)


@triton.jit
def outer_offset(array, outer, sizes):
    """64 bits, as rows × columns can pass 2³¹."""
    offset = tl.cast(0, tl.int64)
    for i in tl.static_range(len(sizes)):
        offset += tl.cast(outer % sizes[len(sizes) - 1 - i], tl.int64) * (array.outer[len(sizes) - 1 - i] // 2)
        outer = outer // sizes[len(sizes) - 1 - i]
    return offset


@triton.jit
def rows_at(array, outer, row, sizes):
    """The one element of each row, or the first."""
    return array.ptr + (outer_offset(array, outer, sizes) + row.to(tl.int64) * array.inner)


@triton.jit
def tile_at(array, outer, row, sizes, column, ALIGN: tl.constexpr, ALONG_COLUMNS: tl.constexpr):
    """(ROWS, COLUMNS), told that vectors of ALIGN elements begin at multiples of it."""
    start = outer_offset(array, outer, sizes)
    of_row = row.to(tl.int64) * array.inner
    of_column = column.to(tl.int64) * array.column
    if ALIGN > 1:
        start = tl.multiple_of(start, ALIGN)
        if ALONG_COLUMNS:
            of_row = tl.multiple_of(of_row, ALIGN)
        else:
            of_column = tl.multiple_of(of_column, ALIGN)
    return array.ptr + start + of_row[:, None] + of_column[None, :]


# --- targets ----------------------------------------------------------------------------------------------------------


@triton.jit
def read_targets(target, outer, row, sizes, exists, classes, ignore_index, INDICES: tl.constexpr):
    """Of each row: the class; whether it counts; whether the class is there; and whether it is not, but should be."""
    if INDICES:
        of_row = tl.load(rows_at(target, outer, row, sizes), mask=exists, other=0).to(tl.int64)
        valid = exists & (of_row != ignore_index)
        there = valid & (of_row >= 0) & (of_row < classes)
        return of_row, valid, there, valid & ~there
    else:
        return tl.full(row.shape, -1, tl.int64), exists, exists, row < 0


@triton.jit
def read_weight(weight_ptr, stride_w, of_row, there, ACC: tl.constexpr):
    """The weight of each row's class, 0 where there is none."""
    if weight_ptr is None:
        return there.to(ACC)
    else:
        return tl.load(weight_ptr + of_row * stride_w, mask=there, other=0.0).to(ACC)


@triton.jit
def raise_flag(flag_ptr, bad):
    """Racing programs store the same value."""
    if flag_ptr is not None:
        tl.store(flag_ptr, True, mask=tl.max(bad.to(tl.int32), 0) != 0)


# --- from rows to one number ------------------------------------------------------------------------------------------


@triton.jit
def prepare_kernel(
    target, weight_ptr, stride_w, sizes,
    sums_ptr,  # (2, programs) out: each program's part of what a mean divides the cross-entropy and the z-loss by
    counter_ptr,  # out: 0
    inner, rows, classes, ignore_index,
    INDICES: tl.constexpr, MEAN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The denominators: the weights of the targets, and the number of them. Class probabilities count 1 a row."""
    program, programs = tl.program_id(0), tl.num_programs(0)
    if counter_ptr is not None:
        tl.store(counter_ptr, 0, mask=program == 0)
    if MEAN and INDICES:
        share = tl.zeros((BLOCK,), tl.float64)
        count = tl.zeros((BLOCK,), tl.int32)
        for first in range(program * BLOCK, rows, programs * BLOCK):
            i = first + tl.arange(0, BLOCK)
            outer = i // inner if len(sizes) else 0
            row = i % inner if len(sizes) else i
            of_row, valid, there, _ = read_targets(target, outer, row, sizes, i < rows, classes, ignore_index, True)
            if weight_ptr is not None:
                share += tl.load(weight_ptr + of_row * stride_w, mask=there, other=0.0).to(tl.float64)
            else:
                share += there.to(tl.float64)
            count += valid.to(tl.int32)
        tl.store(sums_ptr + program, tl.sum(share, 0))
        tl.store(sums_ptr + programs + program, tl.sum(count, 0).to(tl.float64))
    elif MEAN:
        tl.store(sums_ptr, tl.cast(rows, tl.float64))
        tl.store(sums_ptr + 1, tl.cast(rows, tl.float64))


def prepare(
    where: Layout, targets: Placed | None, weight: View | None, classes: int, o: Any, indices: bool, mean: bool,
    buffers: dict[str, View], bytes_of_program: int,
) -> int:  # fmt: skip
    """Launch prepare_kernel; returns how many programs of it left sums.

    Their 16 bytes are read by every program of the loss's kernel, and so are made few beside what that moves anyway.
    """
    most = min(SUMS, triton.cdiv(where.rows, PREPARED), bytes_of_program // (256 * 16))
    sums = max(1, most) if mean and indices else 1
    launch(
        prepare_kernel, (sums,), targets, *of_weight(weight), where.outer, buffers.get("sums"), buffers.get("counter"),
        where.inner, where.rows, classes, o.ignore_index, INDICES=indices, MEAN=mean, BLOCK=PREPARED, num_warps=8,
    )  # fmt: skip
    return sums


@triton.jit
def denominators(sums_ptr, sums, MEAN: tl.constexpr, SUMS: tl.constexpr):
    """What prepare_kernel's programs found, together; 1 for a sum."""
    if MEAN:
        i = tl.arange(0, SUMS)
        share = tl.sum(tl.load(sums_ptr + i, mask=i < sums, other=0.0), 0)
        count = tl.sum(tl.load(sums_ptr + sums + i, mask=i < sums, other=0.0), 0)
        return share, count
    else:
        return tl.cast(1.0, tl.float64), tl.cast(1.0, tl.float64)


@triton.jit
def total_of(partials_ptr, count, BLOCK: tl.constexpr):
    total = tl.zeros((BLOCK,), tl.float64)
    for first in range(0, count, BLOCK):
        i = first + tl.arange(0, BLOCK)
        # Other programs of this launch wrote them: not from L1, which is not kept coherent.
        total += tl.load(partials_ptr + i, mask=i < count, other=0.0, cache_modifier=".cg")
    return tl.sum(total, 0)


@triton.jit
def reduce_loss(
    cross, square,  # this program's sums, float64
    by_share, by_count,  # what they are divided by
    loss_ptr, partials_ptr, counter_ptr, programs,
    SQUARES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The scalar loss of all programs, written by the last one that comes here."""
    program = tl.program_id(0)
    tl.store(partials_ptr + program, cross)
    if SQUARES:
        tl.store(partials_ptr + programs + program, square)
    # The barrier puts the stores of all threads before the atomic, which releases them; it acquires what the programs
    # before it released.
    tl.debug_barrier()
    if tl.atomic_add(counter_ptr, 1, sem="acq_rel") == programs - 1:
        loss = total_of(partials_ptr, programs, BLOCK) / by_share
        if SQUARES:
            loss += total_of(partials_ptr + programs, programs, BLOCK) / by_count
        store_rounded(loss_ptr, loss)


@triton.jit
def store_rounded(pointers, values, mask=None):
    """float64 becomes 16 bits by way of float32, as a sum in float32 would."""
    if values.dtype == tl.float64 and pointers.dtype.element_ty != tl.float64:
        values = values.to(tl.float32)
    tl.store(pointers, values.to(pointers.dtype.element_ty), mask=mask)
