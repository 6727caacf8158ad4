"""The kernels of softmax and log-softmax: rows that fit in registers, and longer ones.

Everything is computed in float32 (float64 for float64), from what was loaded, and rounded once. A NaN or +inf in a row,
or nothing but −inf, makes the row NaN by the arithmetic itself, without a test.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .rows import body_of_rows, edges_of_row, exp_of, finite, known_multiple, row_offset, tile_of_rows

# --- rows that fit in registers ---------------------------------------------------------------------------------------


@triton.jit
def softmax_tile(
    program,
    x_ptr, x_strides, stride_xn, out_ptr, out_strides, stride_on,
    columns, inner, sizes,
    LOG: tl.constexpr, ACC: tl.constexpr, VECTOR: tl.constexpr, EDGES: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    OUT: tl.constexpr = out_ptr.dtype.element_ty
    outer, row, exists = tile_of_rows(program, inner, ROWS)
    x_row = row_offset(x_strides, outer, sizes, row)
    out_row = row_offset(out_strides, outer, sizes, row)
    head, body = body_of_rows(x_row, columns, VECTOR, EDGES)
    column = tl.arange(0, COLUMNS)
    here = exists[:, None] & (column[None, :] < body[:, None])
    x_at = x_ptr + known_multiple(x_row + head, VECTOR)[:, None]
    out_at = out_ptr + known_multiple(out_row + head, VECTOR)[:, None]
    column = column.to(tl.int64)[None, :]

    x = tl.load(x_at + column * stride_xn, mask=here, other=-float("inf")).to(ACC)
    top = tl.max(x, 1)
    if EDGES:
        outer, row = program // inner, program % inner
        x_edge = row_offset(x_strides, outer, sizes, row)
        at, there = edges_of_row(x_edge, columns, VECTOR)
        edge = tl.load(x_ptr + (x_edge + at), mask=there, other=-float("inf")).to(ACC)
        # Between body and edges go scalars: along a tensor the compiler would give the edges the body's layout, where
        # every thread loads all of them.
        row_top = tl.maximum(tl.max(top, 0), tl.max(edge, 0))
        top = tl.maximum(top, row_top)
    x -= top[:, None]
    e = exp_of(x)
    total = tl.sum(e, 1)
    if EDGES:
        edge -= row_top
        row_total = tl.sum(total, 0) + tl.sum(exp_of(edge), 0)
        total = tl.zeros_like(total) + row_total
        y = normalised(edge, exp_of(edge), row_total, LOG, OUT)
        out_edge = row_offset(out_strides, outer, sizes, row)
        tl.store(out_ptr + (out_edge + at), y, mask=there)
    y = normalised(x, e, total[:, None], LOG, OUT)
    tl.store(out_at + column * stride_on, y, mask=here)


@triton.jit
def normalised(x, e, total, LOG: tl.constexpr, OUT: tl.constexpr):
    """The output from x − m, its exponential, and the row's sum of those."""
    if LOG:
        y = x - tl.log(total)
    elif OUT.primitive_bitwidth == 16:
        y = e * (1.0 / total)  # rounded once more than a quotient, which 16 bits do not show
    else:
        y = e / total
    return y.to(OUT)


@triton.jit
def softmax_kernel(
    x_ptr, x_strides, stride_xn, out_ptr, out_strides, stride_on,
    columns, inner, sizes, programs,
    LOG: tl.constexpr, ACC: tl.constexpr, VECTOR: tl.constexpr, EDGES: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """A tile a program; with STAGES > 1 there are fewer programs, which fetch their next row while they are at one."""
    if STAGES == 1:
        softmax_tile(tl.program_id(0), x_ptr, x_strides, stride_xn, out_ptr, out_strides, stride_on,
                     columns, inner, sizes, LOG, ACC, VECTOR, EDGES, ROWS, COLUMNS)  # fmt: skip
    else:
        for program in tl.range(tl.program_id(0), programs, tl.num_programs(0), num_stages=STAGES):
            softmax_tile(program, x_ptr, x_strides, stride_xn, out_ptr, out_strides, stride_on,
                         columns, inner, sizes, LOG, ACC, VECTOR, EDGES, ROWS, COLUMNS)  # fmt: skip


@triton.jit
def softmax_backward_tile(
    program,
    grad_ptr, grad_strides, stride_gn, y_ptr, y_strides, stride_yn, out_ptr, out_strides, stride_on,
    columns, inner, sizes,
    LOG: tl.constexpr, ACC: tl.constexpr, VECTOR: tl.constexpr, EDGES: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, LATE: tl.constexpr,
):  # fmt: skip
    """LATE: y, if the sum does without it, comes after it; it waits in shared memory, and registers are scarce."""
    OUT: tl.constexpr = out_ptr.dtype.element_ty
    outer, row, exists = tile_of_rows(program, inner, ROWS)
    grad_row = row_offset(grad_strides, outer, sizes, row)
    y_row = row_offset(y_strides, outer, sizes, row)
    out_row = row_offset(out_strides, outer, sizes, row)
    head, body = body_of_rows(grad_row, columns, VECTOR, EDGES)
    column = tl.arange(0, COLUMNS)
    here = exists[:, None] & (column[None, :] < body[:, None])
    grad_at = grad_ptr + known_multiple(grad_row + head, VECTOR)[:, None]
    y_at = y_ptr + known_multiple(y_row + head, VECTOR)[:, None]
    out_at = out_ptr + known_multiple(out_row + head, VECTOR)[:, None]
    column = column.to(tl.int64)[None, :]

    g = tl.load(grad_at + column * stride_gn, mask=here, other=0.0).to(ACC)
    if not (LOG and LATE):
        y = tl.load(y_at + column * stride_yn, mask=here, other=0.0).to(ACC)
    if LOG:
        total = tl.sum(g, 1)
    else:
        total = tl.sum(g * y, 1)
    if EDGES:
        total = backward_edges(
            program, total, grad_ptr, grad_strides, y_ptr, y_strides, out_ptr, out_strides, columns, inner, sizes,
            LOG, ACC, VECTOR,
        )  # fmt: skip
    if LOG and LATE:
        y = tl.load(y_at + column * stride_yn, mask=here, other=0.0).to(ACC)
    dx = gradient(g, y, total[:, None], LOG, OUT)
    tl.store(out_at + column * stride_on, dx, mask=here)


@triton.jit
def summand(g, y, LOG: tl.constexpr):
    if LOG:
        return g
    else:
        return g * y


@triton.jit
def gradient(g, y, total, LOG: tl.constexpr, OUT: tl.constexpr):
    if LOG:
        return (g - exp_of(y) * total).to(OUT)
    else:
        return (y * (g - total)).to(OUT)


@triton.jit
def backward_edges(
    program, total, grad_ptr, grad_strides, y_ptr, y_strides, out_ptr, out_strides, columns, inner, sizes,
    LOG: tl.constexpr, ACC: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """Of a program's one row: with the sum over its body, that over all of it; and its edges' gradient is written."""
    outer, row = program // inner, program % inner
    grad_edge = row_offset(grad_strides, outer, sizes, row)
    y_edge = row_offset(y_strides, outer, sizes, row)
    out_edge = row_offset(out_strides, outer, sizes, row)
    at, there = edges_of_row(grad_edge, columns, VECTOR)
    g = tl.load(grad_ptr + (grad_edge + at), mask=there, other=0.0).to(ACC)
    y = tl.load(y_ptr + (y_edge + at), mask=there, other=0.0).to(ACC)
    row_total = tl.sum(total, 0) + tl.sum(summand(g, y, LOG), 0)
    tl.store(out_ptr + (out_edge + at), gradient(g, y, row_total, LOG, out_ptr.dtype.element_ty), mask=there)
    return tl.zeros_like(total) + row_total


@triton.jit
def softmax_backward_kernel(
    grad_ptr, grad_strides, stride_gn, y_ptr, y_strides, stride_yn, out_ptr, out_strides, stride_on,
    columns, inner, sizes, programs,
    LOG: tl.constexpr, ACC: tl.constexpr, VECTOR: tl.constexpr, EDGES: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Programs as in ``softmax_kernel``."""
    if STAGES == 1:
        softmax_backward_tile(
            tl.program_id(0), grad_ptr, grad_strides, stride_gn, y_ptr, y_strides, stride_yn, out_ptr, out_strides,
            stride_on, columns, inner, sizes, LOG, ACC, VECTOR, EDGES, ROWS, COLUMNS, False,
        )  # fmt: skip
    else:
        for program in tl.range(tl.program_id(0), programs, tl.num_programs(0), num_stages=STAGES):
            softmax_backward_tile(
                program, grad_ptr, grad_strides, stride_gn, y_ptr, y_strides, stride_yn, out_ptr, out_strides,
                stride_on, columns, inner, sizes, LOG, ACC, VECTOR, EDGES, ROWS, COLUMNS, True,
            )  # fmt: skip


# --- longer rows ------------------------------------------------------------------------------------------------------

# They are gone over twice in blocks of DEPTH × (ROWS·LANES) × VECTOR elements, the second time from their end, where
# what the first one read is still in the caches. The maximum and the sum are kept online (Milakov and Gimelshein 2018,
# "Online normalizer calculation for softmax", algorithm 3). Where columns lie one behind the other, ROWS is 1, and a
# lane keeps those of its own columns, VECTOR of them at a time: nothing is exchanged within the loop. Otherwise LANES
# and VECTOR are 1, and rows lie where lanes did.


@triton.jit
def block_columns(LANES: tl.constexpr, DEPTH: tl.constexpr, VECTOR: tl.constexpr):
    """The columns of the first block, (DEPTH, LANES, VECTOR)."""
    vector = tl.arange(0, DEPTH)[:, None, None] * LANES + tl.arange(0, LANES)[None, :, None]
    return vector * VECTOR + tl.arange(0, VECTOR)[None, None, :]


@triton.jit
def added(x):
    """The sums of what each lane has of a block."""
    return tl.sum(tl.sum(x, 2), 0)


@triton.jit
def softmax_long_kernel(
    x_ptr, x_strides, stride_xn, out_ptr, out_strides, stride_on,
    columns, inner, sizes,
    LOG: tl.constexpr, ACC: tl.constexpr, VECTOR: tl.constexpr, EDGES: tl.constexpr,
    ROWS: tl.constexpr, LANES: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    BLOCK: tl.constexpr = DEPTH * LANES * VECTOR
    OUT: tl.constexpr = out_ptr.dtype.element_ty
    outer, row, exists = tile_of_rows(tl.program_id(0), inner, ROWS)
    x_row = row_offset(x_strides, outer, sizes, row)
    out_row = row_offset(out_strides, outer, sizes, row)
    head, body = body_of_rows(x_row, columns, VECTOR, EDGES)
    exists = exists[None, :, None]
    x_at = x_ptr + known_multiple(x_row + head, VECTOR)[None, :, None]
    out_at = out_ptr + known_multiple(out_row + head, VECTOR)[None, :, None]
    first = block_columns(LANES, DEPTH, VECTOR)
    blocks = tl.cdiv(columns, BLOCK)

    tops = tl.full((ROWS * LANES,), -float("inf"), ACC)
    totals = tl.zeros((ROWS * LANES,), ACC)
    for i in range(blocks):
        column = i * BLOCK + first
        here = exists & (column < body[None, :, None])
        column = column.to(tl.int64)
        x = tl.load(x_at + column * stride_xn, mask=here, other=-float("inf"), eviction_policy="evict_last").to(ACC)
        higher = tl.maximum(tops, tl.max(tl.max(x, 2), 0))
        totals = totals * exp_of(tops - finite(higher)) + added(exp_of(x - finite(higher)[None, :, None]))
        tops = higher

    tops = tl.reshape(tops, (ROWS, LANES))
    top = tl.max(tops, 1)
    if EDGES:
        outer, row = tl.program_id(0) // inner, tl.program_id(0) % inner
        x_edge = row_offset(x_strides, outer, sizes, row)
        at, there = edges_of_row(x_edge, columns, VECTOR)
        edge = tl.load(x_ptr + (x_edge + at), mask=there, other=-float("inf")).to(ACC)
        row_top = tl.maximum(tl.max(top, 0), tl.max(edge, 0))
        top = tl.maximum(top, row_top)
    total = tl.sum(tl.reshape(totals, (ROWS, LANES)) * exp_of(tops - finite(top)[:, None]), 1)
    if EDGES:
        edge -= row_top
        row_total = tl.sum(total, 0) + tl.sum(exp_of(edge), 0)
        total = tl.zeros_like(total) + row_total
        edge_y = normalised(edge, exp_of(edge), row_total, LOG, OUT)
        out_edge = row_offset(out_strides, outer, sizes, row)
        tl.store(out_ptr + (out_edge + at), edge_y, mask=there)

    top, total = top[None, :, None], total[None, :, None]
    for i in range(blocks):
        column = (blocks - 1 - i) * BLOCK + first
        here = exists & (column < body[None, :, None])
        column = column.to(tl.int64)
        x = tl.load(x_at + column * stride_xn, mask=here, other=0.0, eviction_policy="evict_first").to(ACC) - top
        y = normalised(x, exp_of(x), total, LOG, OUT)
        tl.store(out_at + column * stride_on, y, mask=here, eviction_policy="evict_first")


@triton.jit
def softmax_long_backward_kernel(
    grad_ptr, grad_strides, stride_gn, y_ptr, y_strides, stride_yn, out_ptr, out_strides, stride_on,
    columns, inner, sizes,
    LOG: tl.constexpr, ACC: tl.constexpr, VECTOR: tl.constexpr, EDGES: tl.constexpr,
    ROWS: tl.constexpr, LANES: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """What the sum does not need is read once: y, of the logarithm."""
    BLOCK: tl.constexpr = DEPTH * LANES * VECTOR
    OUT: tl.constexpr = out_ptr.dtype.element_ty
    outer, row, exists = tile_of_rows(tl.program_id(0), inner, ROWS)
    grad_row = row_offset(grad_strides, outer, sizes, row)
    y_row = row_offset(y_strides, outer, sizes, row)
    out_row = row_offset(out_strides, outer, sizes, row)
    head, body = body_of_rows(grad_row, columns, VECTOR, EDGES)
    exists = exists[None, :, None]
    grad_at = grad_ptr + known_multiple(grad_row + head, VECTOR)[None, :, None]
    y_at = y_ptr + known_multiple(y_row + head, VECTOR)[None, :, None]
    out_at = out_ptr + known_multiple(out_row + head, VECTOR)[None, :, None]
    first = block_columns(LANES, DEPTH, VECTOR)
    blocks = tl.cdiv(columns, BLOCK)

    totals = tl.zeros((ROWS * LANES,), ACC)
    for i in range(blocks):
        column = i * BLOCK + first
        here = exists & (column < body[None, :, None])
        column = column.to(tl.int64)
        g = tl.load(grad_at + column * stride_gn, mask=here, other=0.0, eviction_policy="evict_last").to(ACC)
        if not LOG:
            g *= tl.load(y_at + column * stride_yn, mask=here, other=0.0, eviction_policy="evict_last").to(ACC)
        totals += added(g)

    total = tl.sum(tl.reshape(totals, (ROWS, LANES)), 1)
    if EDGES:
        total = backward_edges(
            tl.program_id(0), total, grad_ptr, grad_strides, y_ptr, y_strides, out_ptr, out_strides,
            columns, inner, sizes, LOG, ACC, VECTOR,
        )  # fmt: skip

    total = total[None, :, None]
    for i in range(blocks):
        column = (blocks - 1 - i) * BLOCK + first
        here = exists & (column < body[None, :, None])
        column = column.to(tl.int64)
        g = tl.load(grad_at + column * stride_gn, mask=here, other=0.0, eviction_policy="evict_first").to(ACC)
        y = tl.load(y_at + column * stride_yn, mask=here, other=0.0, eviction_policy="evict_first").to(ACC)
        dx = gradient(g, y, total, LOG, OUT)
        tl.store(out_at + column * stride_on, dx, mask=here, eviction_policy="evict_first")
