"""Matrix products with an epilogue: out = activation(A Bᵀ + bias).

A is (m, k) and B (n, k); each may be stored along either axis. Two kernels share everything but the way in which
their operands come (operands.py): ``matmul_descriptor_kernel`` has the copy engine bring them,
``matmul_pointer_kernel`` takes what that cannot. The launcher chooses by rule. Sums are float32 (float64 for float64)
from the first product to the end of the epilogue, and are rounded once, when they are stored.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from . import configs
from .launch import ALIGNMENT, View, chip_of, descriptor, fits_descriptor, launch
from .operands import Matrix, aligned, alignment, as_bulk, bulk_product, matrix, pointer_product, vector

__all__ = ["Matrix", "Sums", "matmul", "matrix"]

# --- a tile's place ---------------------------------------------------------------------------------------------------


@triton.jit
def limited(size, limit_ptr, start):
    """``size``; or less, where a number that only the device knows leaves less from ``start`` on."""
    if limit_ptr is not None:
        size = tl.minimum(tl.maximum(tl.load(limit_ptr) - start, 0), size)
    return size


@triton.jit
def tile_at(index, tiles_m, tiles_n, GROUP: tl.constexpr):
    """The index-th tile. They go down GROUP rows of tiles and then one column on: programs that run at the same time
    read few rows of A and of B, which then come from the L2 cache."""
    first = index // (GROUP * tiles_n) * GROUP
    height = tl.minimum(tiles_m - first, GROUP)
    within = index % (GROUP * tiles_n)
    return first + within % height, within // height


# --- the epilogue -----------------------------------------------------------------------------------------------------


@triton.jit
def with_bias(tile, bias_ptr, stride_b, first_n, n):
    """A tile's sums, and the bias of its columns."""
    if bias_ptr is not None:
        column = first_n + tl.arange(0, tile.shape[1])
        bias = tl.load(bias_ptr + column.to(tl.int64) * stride_b, mask=column < n, other=0.0)
        tile += bias.to(tile.dtype)[None, :]
    return tile


@triton.jit
def store_tile(
    tile, out, stride_om, stride_on, row_index_ptr, first_m, first_n, m, n,
    BULK: tl.constexpr, ALIGN: tl.constexpr, ACCUMULATE: tl.constexpr,
):  # fmt: skip
    """Rounds a tile and writes it to ``out``, a descriptor if BULK, a pointer otherwise: row r to row_index[r], if that
    is there. ALIGN divides the address, the stride of rows, and n. ACCUMULATE adds to what is there, which no other
    program touches."""
    if BULK:
        out.store([first_m, first_n], tile.to(out.dtype))
    else:
        stride_om, n = aligned(stride_om, ALIGN), aligned(n, ALIGN)
        row, column = first_m + tl.arange(0, tile.shape[0]), first_n + tl.arange(0, tile.shape[1])
        inside = (row < m)[:, None] & (column < n)[None, :]
        if row_index_ptr is not None:
            place = tl.load(row_index_ptr + row, mask=row < m, other=0).to(tl.int64)
        else:
            place = row.to(tl.int64)
        at = out + place[:, None] * stride_om + column.to(tl.int64)[None, :] * stride_on
        if ACCUMULATE:
            tile += tl.load(at, mask=inside, other=0.0)
        tl.store(at, tile.to(out.dtype.element_ty), mask=inside)


@triton.jit
def halves(tile):
    """The left and the right half of a tile's columns; a thread's elements stay its own."""
    rows: tl.constexpr = tile.shape[0]
    columns: tl.constexpr = tile.shape[1]
    return tl.split(tl.permute(tl.reshape(tile, (rows, 2, columns // 2)), (0, 2, 1)))


@triton.jit
def cut(tile, PIECES: tl.constexpr):
    """The columns of a tile in 1, 2 or 4 pieces, from left to right."""
    if PIECES == 1:
        pieces = (tile,)
    elif PIECES == 2:
        pieces = halves(tile)
    else:
        left, right = halves(tile)
        pieces = halves(left) + halves(right)
    return pieces


@triton.jit
def epilogue(
    acc, up, out, stride_om, stride_on, row_index_ptr, pre, pre_up, stride_pm,
    bias_ptr, bias_up_ptr, stride_b, first_m, first_n, m, n,
    ACTIVATION: tl.constexpr, GATED: tl.constexpr, PIECES: tl.constexpr, BULK: tl.constexpr, OUT_ALIGN: tl.constexpr,
    ACCUMULATE: tl.constexpr,
):  # fmt: skip
    """Bias and activation; ``up`` is what a gated one multiplies with. What backward needs is kept if ``pre`` is there.

    A large tile leaves too few registers to work on all of it: it is gone through in PIECES.
    """
    tiles, ups = cut(acc, PIECES), cut(up, PIECES)
    for i in tl.static_range(PIECES):
        tile = with_bias(tiles[i], bias_ptr, stride_b, first_n, n)
        if pre is not None:
            store_tile(tile, pre, stride_pm, 1, None, first_m, first_n, m, n, BULK, OUT_ALIGN, False)
        if ACTIVATION is not None:
            tile = ACTIVATION(tile)
        if GATED:
            factor = with_bias(ups[i], bias_up_ptr, stride_b, first_n, n)
            if pre_up is not None:
                store_tile(factor, pre_up, stride_pm, 1, None, first_m, first_n, m, n, BULK, OUT_ALIGN, False)
            tile *= factor
        store_tile(tile, out, stride_om, stride_on, row_index_ptr, first_m, first_n, m, n, BULK, OUT_ALIGN, ACCUMULATE)
        first_n += tiles[i].shape[1]


PART_ROWS, PART_COLUMNS = tl.constexpr(32), tl.constexpr(32)  # lines of 128 bytes, so that there is work for many


@triton.jit
def add_parts(parts_ptr, sums_ptr, stride_s, parts, columns):
    """(parts, columns) → (columns): sums that an earlier launch left in parts, always added up in the same order."""
    # The last programs first: those of a last, incomplete round of tiles have nothing else to do.
    first_block = tl.num_programs(0) - 1 - tl.program_id(0)
    for block in tl.range(first_block, tl.cdiv(columns, PART_COLUMNS), tl.num_programs(0)):
        column = block * PART_COLUMNS + tl.arange(0, PART_COLUMNS)
        total = tl.zeros((PART_ROWS, PART_COLUMNS), parts_ptr.dtype.element_ty)
        for first in tl.range(0, parts, PART_ROWS):
            row = first + tl.arange(0, PART_ROWS)
            at = parts_ptr + row.to(tl.int64)[:, None] * columns + column[None, :]
            total += tl.load(at, mask=(row < parts)[:, None] & (column < columns)[None, :], other=0.0)
        at = sums_ptr + column.to(tl.int64) * stride_s
        tl.store(at, tl.sum(total, 0).to(sums_ptr.dtype.element_ty), mask=column < columns)


# --- the kernels ------------------------------------------------------------------------------------------------------


@triton.jit
def matmul_descriptor_kernel(
    a_desc, b_desc, b_up_desc,
    out, stride_om, stride_on, row_index_ptr, pre, pre_up, stride_pm,  # descriptors if BULK_STORE
    bias_ptr, bias_up_ptr, stride_b,
    parts_ptr, sums_ptr, stride_s, parts, columns,
    limit_ptr, limit_start, m, n, k,
    A_ALONG_K: tl.constexpr, B_ALONG_K: tl.constexpr, BULK_STORE: tl.constexpr, LIMIT_K: tl.constexpr,
    ACTIVATION: tl.constexpr, ACCUMULATE: tl.constexpr, OUT_ALIGN: tl.constexpr, ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr, PIECES: tl.constexpr,
    FLATTEN: tl.constexpr,
):  # fmt: skip
    """Persistent: a program does one tile after the other, the first loads of the next beside this one's stores."""
    if LIMIT_K:
        k = limited(k, limit_ptr, limit_start)
    else:
        m = limited(m, limit_ptr, limit_start)
    tiles_m, tiles_n = tl.cdiv(m, BLOCK_M), tl.cdiv(n, BLOCK_N)
    for tile in tl.range(tl.program_id(0), tiles_m * tiles_n, tl.num_programs(0), flatten=FLATTEN):
        tile_m, tile_n = tile_at(tile, tiles_m, tiles_n, GROUP)
        first_m, first_n = tile_m * BLOCK_M, tile_n * BLOCK_N
        acc, up = bulk_product(
            a_desc, b_desc, b_up_desc, first_m, first_n, k,
            BLOCK_M, BLOCK_N, BLOCK_K, A_ALONG_K, B_ALONG_K, ACC, PRECISION,
        )  # fmt: skip
        epilogue(
            acc, up, out, stride_om, stride_on, row_index_ptr, pre, pre_up, stride_pm,
            bias_ptr, bias_up_ptr, stride_b, first_m, first_n, m, n,
            ACTIVATION, b_up_desc is not None, PIECES, BULK_STORE, OUT_ALIGN, ACCUMULATE,
        )  # fmt: skip
    if parts_ptr is not None:
        add_parts(parts_ptr, sums_ptr, stride_s, parts, columns)


@triton.jit
def matmul_pointer_kernel(
    a_ptr, a_axis_m, a_axis_k, b_ptr, b_up_ptr, b_axis_n, b_axis_k,
    out_ptr, stride_om, stride_on, row_index_ptr, pre_ptr, pre_up_ptr, stride_pm,
    bias_ptr, bias_up_ptr, stride_b,
    parts_ptr, sums_ptr, stride_s, parts, columns,
    limit_ptr, limit_start, m, n, k,
    A_ALONG_K: tl.constexpr, B_ALONG_K: tl.constexpr, ALIGN: tl.constexpr, LIMIT_K: tl.constexpr,
    ACTIVATION: tl.constexpr, ACCUMULATE: tl.constexpr, OUT_ALIGN: tl.constexpr, ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr, PIECES: tl.constexpr,
):  # fmt: skip
    """A program does one tile."""
    if LIMIT_K:
        k = limited(k, limit_ptr, limit_start)
    else:
        m = limited(m, limit_ptr, limit_start)
    tiles_m, tiles_n = tl.cdiv(m, BLOCK_M), tl.cdiv(n, BLOCK_N)
    if tl.program_id(0) < tiles_m * tiles_n:
        tile_m, tile_n = tile_at(tl.program_id(0), tiles_m, tiles_n, GROUP)
        first_m, first_n = tile_m * BLOCK_M, tile_n * BLOCK_N
        acc, up = pointer_product(
            a_ptr, a_axis_m, a_axis_k, b_ptr, b_up_ptr, b_axis_n, b_axis_k, first_m, first_n, m, n, k,
            BLOCK_M, BLOCK_N, BLOCK_K, A_ALONG_K, B_ALONG_K, ALIGN, ACC, PRECISION,
        )  # fmt: skip
        epilogue(
            acc, up, out_ptr, stride_om, stride_on, row_index_ptr, pre_ptr, pre_up_ptr, stride_pm,
            bias_ptr, bias_up_ptr, stride_b, first_m, first_n, m, n,
            ACTIVATION, b_up_ptr is not None, PIECES, False, OUT_ALIGN, ACCUMULATE,
        )  # fmt: skip
    if parts_ptr is not None:
        add_parts(parts_ptr, sums_ptr, stride_s, parts, columns)


# --- the launcher -----------------------------------------------------------------------------------------------------


class Sums(NamedTuple):
    """What a product adds up beside its own work: (parts, columns), contiguous, to (columns)."""

    parts: View
    out: View


def matmul(
    a: Matrix,  # (m, k)
    b: Matrix,  # (n, k)
    out: View,  # (m, n); with row_index any number of rows
    *,
    activation: Any = None,  # a function of activation.py
    bias: View | None = None,  # (n)
    pre: View | None = None,  # (m, n) of dense rows: out before the activation
    b_up: Matrix | None = None,  # (n, k), laid out as b is: out is multiplied with A Bᵤᵀ + bias_up
    bias_up: View | None = None,  # laid out as bias is
    pre_up: View | None = None,  # laid out as pre is
    row_index: View | None = None,  # (m): the row of out that each row goes to
    accumulate: bool = False,  # out is added to; it is of the accumulators' dtype
    limit: View | None = None,  # 1 element of int32, less limit_start: how many rows there are, if not m
    limit_start: int = 0,
    limit_k: bool = False,  # the limit is that of k
    sums: Sums | None = None,
    tf32: bool = False,
) -> None:
    """out = activation(A Bᵀ + bias), in one launch; nothing is launched where out is empty.

    A limit is read on the device. Rows of out beyond it are not written. Of A's and B's columns beyond it, those up to
    the next multiple of the tile's depth may be multiplied, and have to be zeros.
    """
    m, n, k = a.rows.size, b.rows.size, a.columns.size
    chip, dtype = chip_of(out), a.view.dtype
    operands = [a, b] if b_up is None else [a, b, b_up]
    targets = [out] if pre is None else [out, pre] if pre_up is None else [out, pre, pre_up]
    # How the arrays can be moved decides on the kernel and the tile.
    bulk = as_bulk(operands, chip, tf32)
    bulk_store = not accumulate and limit is None and row_index is None and all(map(fits_descriptor, targets))
    along = [x.columns.is_dense for x in operands] if bulk is None else [along_k for _, along_k in bulk]
    align = alignment(operands, along, limit, limit_k) if bulk is None else ALIGNMENT // dtype.itemsize
    out_align = min(vector(t, t.strides[0], n) if t.strides[1] == 1 else 1 for t in targets)
    wide = align * dtype.itemsize == out_align * out.dtype.itemsize == ALIGNMENT
    if bulk is not None and bulk_store and b_up is None and sums is None:
        won = configs.gluon_tile(
            chip.name, dtype.name, (along[0], along[1]), m, n, k, activation and activation.__name__, pre is not None
        )
        if won is not None:
            from .matmul_gluon import matmul_gluon  # the experimental part of Triton, imported where it is used

            matmul_gluon(bulk, out, activation=activation, bias=bias, pre=pre, tile=won, chip=chip)
            return
    kind = _kind(dtype.name, tf32, bulk is not None, wide)
    tile = configs.matmul_tile(chip.name, chip.multiprocessors, kind, m, n, b_up is not None)
    tiles = triton.cdiv(m, tile.block_m) * triton.cdiv(n, tile.block_n)
    constants = {
        "A_ALONG_K": along[0], "B_ALONG_K": all(along[1:]), "LIMIT_K": limit_k,
        "ACTIVATION": activation, "ACCUMULATE": accumulate, "OUT_ALIGN": out_align,
        "ACC": tl.float64 if dtype.name == "float64" else tl.float32, "PRECISION": "tf32" if "tf32" in kind else "ieee",
        "BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n, "BLOCK_K": tile.block_k,
        "PIECES": tile.pieces, "GROUP": tile.group, "num_warps": tile.warps, "num_stages": tile.stages,
    }  # fmt: skip
    stride_pm = 0 if pre is None else pre.strides[0]
    common = (
        *((bias, bias_up, bias.strides[0]) if bias is not None else (None, None, 0)),
        *((*sums, sums.out.strides[0], *sums.parts.shape) if sums is not None else (None, None, 0, 0, 0)),
        *(limit, limit_start, m, n, k),
    )
    if bulk is None:
        launch(
            matmul_pointer_kernel, (tiles,),
            a.view, a.rows, a.columns, b.view, None if b_up is None else b_up.view, b.rows, b.columns,
            out, *out.strides, row_index, pre, pre_up, stride_pm, *common, ALIGN=align, **constants,
        )  # fmt: skip
        return
    sides = [tile.block_m, tile.block_n, tile.block_n]
    a_desc, b_desc, *b_up_desc = (
        descriptor(v, [side, tile.block_k] if along_k else [tile.block_k, side])
        for (v, along_k), side in zip(bulk, sides, strict=False)
    )
    block = [tile.block_m, tile.block_n // tile.pieces]
    stored = [descriptor(t, block) for t in targets] if bulk_store else targets
    out_arg, pre_arg, pre_up_arg = (*stored, None, None)[:3]
    launch(
        matmul_descriptor_kernel, (min(tiles, tile.resident * chip.multiprocessors),),
        a_desc, b_desc, *(b_up_desc or [None]), out_arg, *out.strides, row_index, pre_arg, pre_up_arg, stride_pm,
        *common, BULK_STORE=bulk_store,
        # With two products wgmma would wait for each in turn; addresses of narrow results would be kept all the while;
        # and a sum that may be of nothing is no loop to fuse with.
        FLATTEN=b_up is None and wide and not limit_k, **constants,
    )  # fmt: skip


def _kind(dtype: str, tf32: bool, bulk: bool, wide: bool) -> str:
    """The name of the tables of tiles."""
    if dtype == "float64" or (dtype == "float32" and not tf32):
        return dtype
    words = ["bulk"] * bulk + ["tf32"] * (dtype == "float32")
    return " ".join([*words, *(["narrow"] * (not wide) or ["wide"] * (not bulk))])
