"""The logits of a chunk, for linear_cross_entropy.py: a product whose epilogue says what the loss needs to know."""

from __future__ import annotations

import triton
import triton.language as tl

from .chunk_loss import capped, class_shares, rows_in_chunk, smoothing
from .matmul import cut, tile_at
from .operands import aligned, bulk_product, pointer_product
from .rows import finite


@triton.jit
def finish_tile(
    acc, first_row, first_column, bias_ptr, stride_b, logits_ptr, stride_lr, tiles_ptr, argmax_tiles_ptr, order_ptr,
    target_ptr, stride_tn, stride_tc, weight_ptr, stride_weight, start, here, pitch, columns, classes,
    STATISTICS: tl.constexpr, LABEL_SMOOTHING: tl.constexpr, SOFTCAP: tl.constexpr, INDICES: tl.constexpr,
    VECTOR: tl.constexpr, BLOCK_M: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """The logits of a tile to memory, above its rows' maxima, and what it has to say of its rows."""
    ACC: tl.constexpr = acc.dtype
    row, column = first_row + tl.arange(0, BLOCK_M), first_column + tl.arange(0, TILE)
    inside, of_tile = column < columns, row < tl.where(first_column < columns, first_row + BLOCK_M, 0)
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + column.to(tl.int64) * stride_b, mask=inside, other=0.0)
        acc += bias.to(ACC)[None, :]
    if SOFTCAP != 0:
        acc = capped(acc, SOFTCAP)
    z = tl.where(inside[None, :], acc, -float("inf"))
    top = tl.max(z, 1)
    above = z - finite(top)[:, None]
    out = tiles_ptr + (first_column // TILE).to(tl.int64) * pitch + row
    tl.store(out, top, mask=of_tile)
    if logits_ptr is not None:
        stride_lr = aligned(stride_lr, VECTOR)
        at = logits_ptr + row.to(tl.int64)[:, None] * stride_lr + column[None, :]
        there = (row < here)[:, None] & (column < stride_lr)[None, :]
        tl.store(at, above.to(logits_ptr.dtype.element_ty), mask=there)
    if STATISTICS:
        exists = of_tile & (row < here)
        n = tl.load(order_ptr + start + row, mask=exists, other=0).to(tl.int64)
        weight = None
        if weight_ptr is not None and (LABEL_SMOOTHING != 0 or not INDICES):
            weight = tl.load(weight_ptr + column.to(tl.int64) * stride_weight, mask=inside, other=0.0)
        step = tl.cast(tl.cdiv(columns, TILE), tl.int64) * pitch
        tl.store(out + step, tl.sum(tl.exp(above), 1), mask=of_tile)
        if INDICES:
            # Per row what can be: a tile of q would be made in a layout of its own, and take as long as the product.
            target = tl.load(target_ptr + n * stride_tn, mask=exists, other=-1)
            hit = (target >= first_column) & (target < first_column + TILE) & (target < columns)
            target = tl.where(hit, target, -1).to(tl.int32)
            shares = hit.to(ACC) * (1.0 - LABEL_SMOOTHING)
            if weight_ptr is not None:
                shares *= tl.load(weight_ptr + target.to(tl.int64) * stride_weight, mask=exists & hit, other=0.0).to(
                    ACC
                )
            picked = tl.sum(tl.where(column[None, :] == target[:, None], above, 0.0), 1)
            weighted = tl.where(shares == 0, 0.0, shares * picked)
            if LABEL_SMOOTHING != 0:
                each = smoothing(weight, inside, classes, LABEL_SMOOTHING, ACC)
                shares += tl.sum(each, 0)
                weighted += tl.sum(tl.where(each[None, :] == 0, 0.0, each[None, :] * above), 1)
        else:
            place = n[:, None] * stride_tn + column.to(tl.int64)[None, :] * stride_tc
            target = tl.load(target_ptr + place, mask=exists[:, None] & inside[None, :], other=0.0)
            q = class_shares(target, weight, inside, column, classes, LABEL_SMOOTHING, INDICES, ACC)
            shares = tl.sum(q, 1)
            weighted = tl.sum(tl.where(q == 0, 0.0, q * above), 1)
        tl.store(out + 2 * step, shares, mask=of_tile)
        tl.store(out + 3 * step, weighted, mask=of_tile)
        if argmax_tiles_ptr is not None:
            best = tl.min(tl.where(z == top[:, None], column[None, :], columns), 1)
            at = argmax_tiles_ptr + (first_column // TILE).to(tl.int64) * pitch + row
            tl.store(at, best, mask=of_tile)


@triton.jit
def logits_kernel(
    x, x_rows, x_columns,  # (rows, K): a descriptor; or a pointer and its axes
    w, w_rows, w_columns,  # (columns, K): likewise
    bias_ptr, stride_b,  # (columns) or None
    logits_ptr, stride_lr,  # (rows, columns) out, or None; VECTOR divides the stride, and rows are written to their end
    tiles_ptr,  # (4, tiles, pitch) out, the maxima alone if not STATISTICS; whole tiles of rows
    argmax_tiles_ptr,  # (tiles, pitch) out, or None
    order_ptr, counts_ptr,
    target_ptr, stride_tn, stride_tc,  # (N) class indices or (N, C) probabilities, of this d
    weight_ptr, stride_weight,  # (C) or None
    start, rows, pitch, columns, features, classes,
    STATISTICS: tl.constexpr, LABEL_SMOOTHING: tl.constexpr, SOFTCAP: tl.constexpr, INDICES: tl.constexpr,
    VECTOR: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr, BULK: tl.constexpr, X_ALONG_K: tl.constexpr,
    W_ALONG_K: tl.constexpr, ALIGN: tl.constexpr, PIECES: tl.constexpr, GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The logits of a chunk, and what each tile of classes says of its rows' losses."""
    here = rows_in_chunk(counts_ptr + 1, start, rows)
    tiles_m, tiles_n = tl.cdiv(here, BLOCK_M), tl.cdiv(columns, BLOCK_N)
    for tile in range(tl.program_id(0), tiles_m * tiles_n, tl.num_programs(0)):
        at_m, at_n = tile_at(tile, tiles_m, tiles_n, GROUP)
        first_row, first_column = at_m * BLOCK_M, at_n * BLOCK_N
        if BULK:
            acc, _ = bulk_product(
                x, w, None, first_row, first_column, features,
                BLOCK_M, BLOCK_N, BLOCK_K, X_ALONG_K, W_ALONG_K, ACC, PRECISION,
            )  # fmt: skip
        else:
            acc, _ = pointer_product(
                x, x_rows, x_columns, w, None, w_rows, w_columns, first_row, first_column, rows, columns, features,
                BLOCK_M, BLOCK_N, BLOCK_K, X_ALONG_K, W_ALONG_K, ALIGN, ACC, PRECISION,
            )  # fmt: skip
        pieces = cut(acc, PIECES)
        for i in tl.static_range(PIECES):  # one after the other: all of a large tile leaves the statistics no registers
            finish_tile(
                pieces[i], first_row, first_column, bias_ptr, stride_b, logits_ptr, stride_lr, tiles_ptr,
                argmax_tiles_ptr, order_ptr, target_ptr, stride_tn, stride_tc, weight_ptr, stride_weight, start, here,
                pitch, columns, classes, STATISTICS, LABEL_SMOOTHING, SOFTCAP, INDICES, VECTOR, BLOCK_M,
                BLOCK_N // PIECES,
            )  # fmt: skip
            first_column += BLOCK_N // PIECES
