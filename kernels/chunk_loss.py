"""The loss of a chunk of logits, for linear_cross_entropy.py: everything there that is not a matrix product.

Samples are worked on in an order of their own, the ignored ones last, so that those never reach a product;
``order_ptr`` maps a place in that order to the sample. How many count is known on the device only: ``counts_ptr`` holds
the number of samples with a target, and of those whose logits are wanted (all of them, where statistics are). A sample
has D losses; the kernels below see one d at a time, whose place is ``place * losses + d``.

Per row of logits five numbers decide everything that follows, and are kept in ``stats_ptr``, an array of (5, N·D): the
maximum m, the log of the sum S above it, the upstream gradient f of −Σ q·log p, f·Σq/S, and the z-loss's f_z·2λ·lse/S.
(Not the sum of the last two, which exp(z − m) multiplies both: where p is close to 1, f·Σq·p − f·q all but vanishes,
and would take the digits of the other with it. And not p from its logarithm, which would cost p as many digits as
−log p has.) They are put together from what each tile of classes found, in ``tiles_ptr`` (4, tiles, pitch): its maximum
m', Σ exp(z − m'), Σ q and Σ q·(z − m'). Its rows go on, with numbers of no use, to the end of a tile.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .activation import tanh
from .operands import aligned
from .rows import finite


@triton.jit
def rows_in_chunk(counts_ptr, start, rows):
    """How many of a chunk's rows are there, the chunk beginning at place ``start``."""
    return tl.minimum(tl.maximum(tl.load(counts_ptr) - start, 0), rows)


@triton.jit
def prepare_kernel(
    target_ptr, stride_tn, stride_td,  # (N, D) class indices; not read if probabilities
    weight_ptr, stride_w,  # (C) or None
    order_ptr,  # (N) out
    counts_ptr,  # (2) out: samples with a target, samples whose logits are wanted
    sums_ptr,  # (2) out: what a mean divides the cross-entropy and the z-loss by
    flag_ptr,
    samples, losses, classes, ignore_index,
    INDICES: tl.constexpr, KEEP_ALL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program: the order of the samples and the denominators, in the order of the targets, so always the same."""
    lane = tl.arange(0, BLOCK)
    if INDICES:
        kept = 0
        share = tl.zeros((BLOCK,), tl.float64)
        valid_rows = tl.zeros((BLOCK,), tl.int64)
        for first in range(0, samples, BLOCK):
            n = first + lane
            counts = tl.zeros((BLOCK,), tl.int32)
            for d in range(losses):
                target = tl.load(
                    target_ptr + n.to(tl.int64) * stride_tn + d * stride_td, mask=n < samples, other=ignore_index
                )
                valid = target != ignore_index
                inside = (target >= 0) & (target < classes)
                if flag_ptr is not None:
                    tl.store(flag_ptr + lane * 0, True, mask=valid & ~inside)
                if weight_ptr is not None:
                    weight = tl.load(weight_ptr + target.to(tl.int64) * stride_w, mask=valid & inside, other=0.0)
                    share += weight.to(tl.float64)
                else:
                    share += (valid & inside).to(tl.float64)
                valid_rows += valid.to(tl.int64)
                counts = tl.maximum(counts, valid.to(tl.int32))
            place = kept + tl.cumsum(counts, 0) - counts
            tl.store(order_ptr + place, n, mask=counts != 0)
            kept += tl.sum(counts, 0)
        ignored = kept
        for first in range(0, samples, BLOCK):
            n = first + lane
            counts = (n < samples).to(tl.int32)
            for d in range(losses):
                target = tl.load(
                    target_ptr + n.to(tl.int64) * stride_tn + d * stride_td, mask=n < samples, other=ignore_index
                )
                counts = tl.minimum(counts, (target == ignore_index).to(tl.int32))
            place = ignored + tl.cumsum(counts, 0) - counts
            tl.store(order_ptr + place, n, mask=counts != 0)
            ignored += tl.sum(counts, 0)
        tl.store(counts_ptr, kept)
        tl.store(counts_ptr + 1, samples if KEEP_ALL else kept)
        tl.store(sums_ptr, tl.sum(share, 0))
        tl.store(sums_ptr + 1, tl.sum(valid_rows, 0).to(tl.float64))
    else:
        for first in range(0, samples, BLOCK):
            n = first + lane
            tl.store(order_ptr + n, n, mask=n < samples)
        rows = tl.cast(samples, tl.float64) * losses
        tl.store(counts_ptr, samples)
        tl.store(counts_ptr + 1, samples)
        tl.store(sums_ptr, rows)
        tl.store(sums_ptr + 1, rows)


@triton.jit
def gather_kernel(
    x_ptr, stride_xn, stride_xk,  # (N, K)
    order_ptr, counts_ptr,
    target_ptr, stride_tn,  # (N) class indices of one d, whose ignored samples become zeros too; or None
    out_ptr,  # (rows, K): the chunk's samples, then zeros
    start, rows, features, ignore_index,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The samples of a chunk, one after the other. What the matrix products read beyond the last is made zero."""
    here = rows_in_chunk(counts_ptr + 1, start, rows)
    if here > 0:
        row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
        column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        n = tl.load(order_ptr + start + row, mask=row < here, other=0).to(tl.int64)
        inside = column[None, :] < features
        wanted = row < here
        if target_ptr is not None:
            wanted &= tl.load(target_ptr + n * stride_tn, mask=wanted, other=0) != ignore_index
        x = tl.load(
            x_ptr + n[:, None] * stride_xn + column.to(tl.int64)[None, :] * stride_xk,
            mask=wanted[:, None] & inside,
            other=0.0,
        )
        tl.store(
            out_ptr + row.to(tl.int64)[:, None] * features + column[None, :], x, mask=(row < rows)[:, None] & inside
        )


@triton.jit
def smoothing(weight, inside, classes, LABEL_SMOOTHING: tl.constexpr, ACC: tl.constexpr):
    """What label smoothing gives to each class, (columns): a part of 1, times its weight. 0 beyond the last class."""
    each = inside.to(ACC) * (LABEL_SMOOTHING / tl.cast(classes, ACC))
    if weight is not None:
        each *= weight.to(ACC)
    return each


@triton.jit
def class_shares(
    row_target, weight, inside,  # (rows) or (rows, columns) of probabilities; (columns); (columns)
    column, classes,
    LABEL_SMOOTHING: tl.constexpr, INDICES: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """q: how much −log p of each class counts. 0 beyond the last class."""
    if INDICES:
        q = (row_target[:, None] == column[None, :]).to(ACC) * (1.0 - LABEL_SMOOTHING)
    else:
        q = row_target.to(ACC) * (1.0 - LABEL_SMOOTHING)
    if LABEL_SMOOTHING != 0:
        q += LABEL_SMOOTHING / tl.cast(classes, ACC)
    if weight is not None:
        q *= weight.to(ACC)[None, :]
    return tl.where(inside[None, :], q, 0.0)


@triton.jit
def capped(z, SOFTCAP: tl.constexpr):
    """c·tanh(z/c)."""
    return SOFTCAP * tanh(z / SOFTCAP)


@triton.jit
def combine_kernel(
    tiles_ptr,  # (4, tiles, pitch)
    argmax_tiles_ptr,  # (tiles, pitch) or None
    order_ptr, counts_ptr, sums_ptr,
    target_ptr, stride_tn,  # (N) class indices of this d; not read if probabilities
    upstream_ptr, stride_un,  # 0-d, (N) of this d, or None: 1
    stats_ptr,  # (5, N·D) out
    losses_ptr,  # (N·D) by place, out, zeros for places without a target; or None
    loss_ptr, stride_ln,  # (N) of this d, out, or None
    max_ptr, log_sum_ptr, argmax_ptr, stride_sn,  # (N) of this d, out, or None
    start, rows, pitch, tiles, samples, losses, d, classes, ignore_index,
    Z_LOSS: tl.constexpr, INDICES: tl.constexpr, MEAN: tl.constexpr, ROWS: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """The rows' statistics and losses, from those of their tiles."""
    ACC: tl.constexpr = tiles_ptr.dtype.element_ty
    here = rows_in_chunk(counts_ptr + 1, start, rows)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    exists = row < here
    tile = tl.arange(0, TILES)
    part = tiles_ptr + tile.to(tl.int64)[None, :] * pitch + row[:, None]
    step = tl.cast(tiles, tl.int64) * pitch
    of_rows = tl.where(tl.program_id(0) * ROWS < here, tiles, 0)  # no mask along the rows, so that vectors reach them

    # A thread goes through the tiles by itself; the threads of a row put their findings together once, at the end.
    top = tl.full((ROWS, TILES), -float("inf"), ACC)
    for first in range(0, of_rows, TILES):
        inside = (first + tile < tiles)[None, :]
        m = tl.load(part + tl.cast(first, tl.int64) * pitch, mask=inside, other=-float("inf"))
        top = tl.where(m > top, m, top)
    top = tl.max(top, 1)
    base = finite(top)
    total = tl.zeros((ROWS, TILES), ACC)
    shares = tl.zeros((ROWS, TILES), ACC)
    weighted = tl.zeros((ROWS, TILES), ACC)  # Σ q·(z − base)
    for first in range(0, of_rows, TILES):
        inside = (first + tile < tiles)[None, :]
        at = part + tl.cast(first, tl.int64) * pitch
        m = finite(tl.load(at, mask=inside, other=-float("inf")))
        # The sum of a tile of −inf is 0, whatever it is scaled by; 0·inf must not come of it.
        s = tl.load(at + step, mask=inside, other=0.0)
        total += tl.where(s == 0, 0.0, s * tl.exp(m - base[:, None]))
        q = tl.load(at + 2 * step, mask=inside, other=0.0)
        shares += q
        weighted += tl.load(at + 3 * step, mask=inside, other=0.0) + tl.where(q == 0, 0.0, q * (m - base[:, None]))
    total, shares, weighted = tl.sum(total, 1), tl.sum(shares, 1), tl.sum(weighted, 1)
    log_sum = tl.where(top == -float("inf"), float("nan"), tl.log(total))

    n = tl.load(order_ptr + start + row, mask=exists, other=0).to(tl.int64)
    if INDICES:
        target = tl.load(target_ptr + n * stride_tn, mask=exists, other=ignore_index)
        valid = exists & (target != ignore_index)
        poison = valid & ((target < 0) | (target >= classes))
    else:
        valid = exists
        poison = row < 0
    by_share = tl.cast(1.0, ACC)
    by_count = tl.cast(1.0, ACC)
    if MEAN:
        by_share = tl.load(sums_ptr).to(ACC)
        by_count = tl.load(sums_ptr + 1).to(ACC)
    cross = shares * log_sum - weighted  # a log_sum of NaN makes it NaN even if no class has a share
    lse = top + log_sum
    if losses_ptr is not None or loss_ptr is not None:
        loss = cross / by_share
        if Z_LOSS != 0:
            loss += Z_LOSS * lse * lse / by_count
        loss = tl.where(valid, tl.where(poison, float("nan"), loss), 0.0)
        if losses_ptr is not None:
            tl.store(losses_ptr + (start + row).to(tl.int64) * losses + d, loss, mask=row < rows)
        else:
            tl.store(loss_ptr + n * stride_ln, loss.to(loss_ptr.dtype.element_ty), mask=exists)
    if max_ptr is not None:
        tl.store(max_ptr + n * stride_sn, top, mask=exists)
        tl.store(log_sum_ptr + n * stride_sn, log_sum, mask=exists)
    if argmax_ptr is not None:  # the first of equal logits; 0 for a row of NaN
        best = tl.full((ROWS, TILES), 0, tl.int32) + classes
        for first in range(0, of_rows, TILES):
            inside = (first + tile < tiles)[None, :]
            offset = tl.cast(first, tl.int64) * pitch
            m = tl.load(part + offset, mask=inside, other=-float("inf"))
            at = argmax_tiles_ptr + (tile.to(tl.int64)[None, :] * pitch + row[:, None] + offset)
            index = tl.load(at, mask=inside, other=classes)
            best = tl.minimum(best, tl.where(inside & (m == top[:, None]), index, classes))
        best = tl.min(best, 1)
        tl.store(argmax_ptr + n * stride_sn, tl.where(best == classes, 0, best).to(tl.int64), mask=exists)

    f = tl.full((ROWS,), 1.0, ACC)
    if upstream_ptr is not None:
        f = tl.load(upstream_ptr + n * stride_un, mask=exists, other=0.0).to(ACC)
    out = stats_ptr + (start + row).to(tl.int64) * losses + d
    every = tl.cast(samples, tl.int64) * losses
    tl.store(out, base, mask=exists)
    tl.store(out + every, log_sum, mask=exists)
    tl.store(out + 2 * every, f / by_share, mask=exists)
    tl.store(out + 3 * every, tl.where(poison, float("nan"), f / by_share * (shares / total)), mask=exists)
    if Z_LOSS != 0:
        tl.store(out + 4 * every, f / by_count * (2 * Z_LOSS) * (lse / total), mask=exists)


@triton.jit
def gradient_kernel(
    logits_ptr, grad_ptr, stride_lr,  # (rows, columns) in the same memory: logits above their tile's maximum, gradients
    tiles_ptr,  # (tiles, pitch): the maxima
    stats_ptr,  # (5, N·D)
    order_ptr, counts_ptr,
    target_ptr, stride_tn, stride_tc,  # (N) class indices or (N, C) probabilities, of this d
    weight_ptr, stride_w,  # (C) or None
    grad_target_ptr, stride_gn, stride_gc,  # (N, C) of this d, out, or None
    start, rows, pitch, samples, losses, d, classes, first_class, columns, ignore_index,
    Z_LOSS: tl.constexpr, LABEL_SMOOTHING: tl.constexpr, SOFTCAP: tl.constexpr, INDICES: tl.constexpr,
    VECTOR: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """Logits to gradients in place, f·(Σq·p − q) and the z-loss's, through the soft-cap; a program goes through TILES
    tiles of its rows, whose statistics it reads once.

    The rows beyond the last are made zero, for the product over rows that follows; what pads a row, which VECTOR
    divides, becomes anything. An element is read and written by one thread alone.
    """
    ACC: tl.constexpr = stats_ptr.dtype.element_ty
    stride_lr = aligned(stride_lr, VECTOR)
    here = rows_in_chunk(counts_ptr, start, rows)
    if here > 0:
        row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
        exists = row < here
        n = tl.load(order_ptr + start + row, mask=exists, other=0).to(tl.int64)
        stats = stats_ptr + (start + row).to(tl.int64) * losses + d
        every = tl.cast(samples, tl.int64) * losses
        top = tl.load(stats, mask=exists, other=0.0)
        f = tl.load(stats + 2 * every, mask=exists, other=0.0)[:, None]
        mass = tl.load(stats + 3 * every, mask=exists, other=0.0)[:, None]
        if Z_LOSS != 0:
            square = tl.load(stats + 4 * every, mask=exists, other=0.0)[:, None]
        if grad_target_ptr is not None:
            log_sum = tl.load(stats + every, mask=exists, other=0.0)[:, None]
        if INDICES:
            target = tl.load(target_ptr + n * stride_tn, mask=exists, other=ignore_index)
            valid = (exists & (target != ignore_index))[:, None]
        else:
            valid = exists[:, None]

        for tile in range(tl.program_id(1) * TILES, (tl.program_id(1) + 1) * TILES):
            column = tile * COLUMNS + tl.arange(0, COLUMNS)
            inside = column < columns
            c = (first_class + column).to(tl.int64)
            mask = exists[:, None] & inside[None, :]
            padded = (column < stride_lr)[None, :]
            offset = row.to(tl.int64)[:, None] * stride_lr + column[None, :]
            above = tl.load(logits_ptr + offset, mask=exists[:, None] & padded, other=0.0).to(ACC)
            there = row < tl.where(tile * COLUMNS < columns, here, 0)
            base = tl.load(tiles_ptr + tl.cast(tile, tl.int64) * pitch + row, mask=there, other=0.0)
            base = finite(base)
            weight = None
            if weight_ptr is not None:
                weight = tl.load(weight_ptr + c * stride_w, mask=inside, other=0.0)
            shares_of = target if INDICES else tl.load(
                target_ptr + n[:, None] * stride_tn + c[None, :] * stride_tc, mask=mask, other=0.0
            )  # fmt: skip
            q = class_shares(shares_of, weight, inside, c, classes, LABEL_SMOOTHING, INDICES, ACC)
            below_top = above + (base - top)[:, None]
            p = tl.exp(below_top)  # times S
            grad = p * mass - f * q
            if Z_LOSS != 0:
                grad += p * square
            if SOFTCAP != 0:
                t = (above + base[:, None]) / SOFTCAP
                grad *= 1.0 - t * t
            grad = tl.where(valid, grad, 0.0).to(grad_ptr.dtype.element_ty)
            tl.store(grad_ptr + offset, grad, mask=(row < rows)[:, None] & padded)
            if grad_target_ptr is not None:
                of_target = -(1.0 - LABEL_SMOOTHING) * f * (below_top - log_sum)
                if weight is not None:
                    of_target *= weight.to(ACC)[None, :]
                at = grad_target_ptr + n[:, None] * stride_gn + c[None, :] * stride_gc
                tl.store(at, of_target.to(grad_target_ptr.dtype.element_ty), mask=mask)


@triton.jit
def column_sums_kernel(
    grad_ptr, stride_gr,  # (rows, columns) of a chunk, padded as in ``gradient_kernel``
    counts_ptr,
    sums_ptr, stride_s,  # (columns): added to, or begun
    start, rows, columns,
    FIRST: tl.constexpr, VECTOR: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The gradient of the bias: a program adds up all rows of its columns, in their order."""
    ACC: tl.constexpr = sums_ptr.dtype.element_ty
    stride_gr = aligned(stride_gr, VECTOR)
    here = rows_in_chunk(counts_ptr, start, rows)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < columns
    total = tl.zeros((ROWS, COLUMNS), ACC)
    for first in range(0, here, ROWS):
        row = first + tl.arange(0, ROWS)
        at = grad_ptr + row.to(tl.int64)[:, None] * stride_gr + column[None, :]
        total += tl.load(at, mask=(row < here)[:, None] & (column < stride_gr)[None, :], other=0.0).to(ACC)
    out = sums_ptr + column.to(tl.int64) * stride_s
    result = tl.sum(total, 0)
    if not FIRST:
        result += tl.load(out, mask=inside, other=0.0)
    tl.store(out, result, mask=inside)


@triton.jit
def ignored_kernel(
    order_ptr, counts_ptr,
    grad_input_ptr, stride_gn, stride_gk,  # (N, K) or None
    loss_ptr, stride_ln, stride_ld,  # (N, D) or None
    samples, losses, features,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """Exact zeros for the samples without a target: program p is of place p."""
    place = tl.program_id(0)
    if place >= tl.load(counts_ptr):
        n = tl.load(order_ptr + place).to(tl.int64)
        lane = tl.arange(0, COLUMNS)
        if grad_input_ptr is not None:
            for first in range(0, features, COLUMNS):
                k = first + lane
                zero = tl.zeros((COLUMNS,), grad_input_ptr.dtype.element_ty)
                tl.store(grad_input_ptr + n * stride_gn + k.to(tl.int64) * stride_gk, zero, mask=k < features)
        if loss_ptr is not None:
            for first in range(0, losses, COLUMNS):
                d = first + lane
                zero = tl.zeros((COLUMNS,), loss_ptr.dtype.element_ty)
                tl.store(loss_ptr + n * stride_ln + d.to(tl.int64) * stride_ld, zero, mask=d < losses)


@triton.jit
def total_kernel(losses_ptr, sums_ptr, loss_ptr, count, MEAN: tl.constexpr, BLOCK: tl.constexpr):
    """One program: the sum of the rows' losses, in the order of their places."""
    lane = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float64)
    for first in range(0, count, BLOCK):
        total += tl.load(losses_ptr + first + lane, mask=first + lane < count, other=0.0).to(tl.float64)
    result = tl.sum(total, 0)
    if MEAN:
        result += 0.0 / tl.load(sums_ptr)  # NaN where there is nothing to take the mean of
    tl.store(loss_ptr, result.to(loss_ptr.dtype.element_ty))


@triton.jit
def convert_kernel(
    source_ptr, stride_sr,  # (rows, columns) in the wide dtype
    out_ptr, stride_or, stride_oc,  # (rows, columns), or (N, columns) by order
    order_ptr, counts_ptr,  # or None
    start, rows, columns,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Sums, rounded once; with ``order_ptr`` each to where its sample is."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    exists = row < rows
    place = row.to(tl.int64)
    if order_ptr is not None:
        exists = row < rows_in_chunk(counts_ptr, start, rows)
        place = tl.load(order_ptr + start + row, mask=exists, other=0).to(tl.int64)
    inside = exists[:, None] & (column < columns)[None, :]
    x = tl.load(source_ptr + row.to(tl.int64)[:, None] * stride_sr + column[None, :], mask=inside)
    out = out_ptr + place[:, None] * stride_or + column.to(tl.int64)[None, :] * stride_oc
    tl.store(out, x.to(out_ptr.dtype.element_ty), mask=inside)
