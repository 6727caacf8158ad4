"""The two kernels of cross-entropy, each of them forward, backward, and both at once.

``whole_rows_kernel`` holds rows in registers between their statistics and their gradient: one read, one write.
``long_rows_kernel`` goes over them in pieces, and reads them again for the gradient. What they compute is in
cross_entropy_steps.py. A program goes on from tile to tile, so that what it costs by itself is spread over them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .cross_entropy_steps import (
    asked,
    capped,
    correct_target,
    first_of,
    logits_gradient,
    read_probabilities,
    read_target_logit,
    read_weights,
    row_factors,
    row_loss,
    smoothed,
    store_gradient,
    target_gradient,
    write_rows,
)
from .row_losses import denominators, raise_flag, read_targets, read_weight, reduce_loss, rows_at, tile_at, tile_of
from .rows import exp_of, finite

# --- whole rows -------------------------------------------------------------------------------------------------------


@triton.jit
def whole_rows_kernel(
    logits, target, weight_ptr, stride_w, upstream, max_of, log_sum_of, argmax, loss, grad, grad_target, flag_ptr,
    sums_ptr, partials_ptr, counter_ptr, sums, programs, sizes, inner, tiles, classes, ignore_index,
    FORWARD: tl.constexpr, INDICES: tl.constexpr, MEAN: tl.constexpr, SCALAR: tl.constexpr,
    LABEL_SMOOTHING: tl.constexpr, Z_LOSS: tl.constexpr, SOFTCAP: tl.constexpr,
    ALIGN: tl.constexpr, ALONG_COLUMNS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    SUMS: tl.constexpr, PARTIALS: tl.constexpr,
):  # fmt: skip
    """Tiles of rows that are no longer than COLUMNS. Forward, the logsumexp is written; backward, it is read.

    A target's logit is loaded by itself, and its gradient stored again. Both find it in a cache; picking it out of the
    tile would take four instructions an element, and keep more of the tile than there are registers for.
    """
    ACC: tl.constexpr = tl.float64 if logits.ptr.dtype.element_ty == tl.float64 else tl.float32
    ONE: tl.constexpr = INDICES and LABEL_SMOOTHING == 0  # class has all of q
    column = tl.arange(0, COLUMNS)
    inside = (column < (classes // ALIGN * ALIGN if ALONG_COLUMNS else classes))[None, :]
    weight = read_weights(None if ONE else weight_ptr, stride_w, column, classes, ACC)
    of_weights = tl.sum(tl.where(inside, weight, 0.0), 1)
    by_share, by_count = denominators(sums_ptr, sums, MEAN, SUMS)
    cross_sum = tl.cast(0.0, tl.float64)
    square_sum = tl.cast(0.0, tl.float64)
    for tile in range(tl.program_id(0), tiles, programs):
        outer, row = tile_of(tile, inner, sizes, ROWS)
        exists = row < (inner if ALONG_COLUMNS else inner // ALIGN * ALIGN)
        here = exists[:, None] & inside
        of_row, valid, there, bad = read_targets(target, outer, row, sizes, exists, classes, ignore_index, INDICES)
        logits_ptrs = tile_at(logits, outer, row, sizes, column, ALIGN, ALONG_COLUMNS)
        raw = tl.load(logits_ptrs, mask=here, other=-float("inf")).to(ACC)
        if INDICES:
            at_target, slope_there = read_target_logit(logits, outer, row, sizes, of_row, there, SOFTCAP, ACC)
        z, slope = capped(raw, SOFTCAP)
        if SOFTCAP != 0:
            z = tl.where(here, z, -float("inf"))  # what is not there must not become −c

        # The row's statistics.
        if FORWARD:
            top = tl.max(raw, 1)
            if argmax is not None:
                write_rows(argmax, outer, row, sizes, exists, first_of(raw, top, column) & 0x7FFFFFFF)
            top, _ = capped(top, SOFTCAP)
        else:
            top = tl.load(rows_at(max_of, outer, row, sizes), mask=exists, other=0.0).to(ACC)
            log_sum = tl.load(rows_at(log_sum_of, outer, row, sizes), mask=exists, other=0.0).to(ACC)
        above = z - top[:, None]
        exp = exp_of(above)
        if FORWARD:
            total = tl.sum(exp, 1)
            log_sum = tl.log(total)
            write_rows(max_of, outer, row, sizes, exists, top)
            write_rows(log_sum_of, outer, row, sizes, exists, log_sum)
        else:
            total = exp_of(log_sum)

        # What the target asks for: Σq, and Σ q·(z − m).
        t = None
        if INDICES:
            share = read_weight(weight_ptr, stride_w, of_row, there, ACC)
        else:
            t = read_probabilities(target, outer, row, sizes, column, here, ALIGN, ALONG_COLUMNS, ACC)
            of_t = t * weight
            share = tl.sum(of_t, 1)
        shares = smoothed(share, of_weights, classes, LABEL_SMOOTHING)
        if FORWARD:
            if INDICES:
                dot = tl.where(share == 0, 0.0, share.to(tl.float64) * (at_target.to(tl.float64) - top.to(tl.float64)))
            else:
                dot = tl.sum(tl.where(of_t == 0, 0.0, of_t * above), 1)
            of_all = tl.sum(tl.where(inside & (weight != 0), weight * above, 0.0), 1)
            dot = smoothed(dot, of_all, classes, LABEL_SMOOTHING)
            cross, square = row_loss(top, log_sum, shares, dot, valid, bad, Z_LOSS)
            if SCALAR:
                cross_sum += tl.sum(cross, 0)
                square_sum += tl.sum(square, 0)
            else:
                write_rows(loss, outer, row, sizes, exists, cross + square)
            raise_flag(flag_ptr, bad)

        # The gradients.
        f, mass, mass_z = row_factors(
            upstream, outer, row, sizes, exists, top, log_sum, shares, bad, by_share, by_count, Z_LOSS
        )
        if grad is not None:
            of_target = asked(t, weight, f, classes, LABEL_SMOOTHING)
            d = logits_gradient(
                exp, (mass / total)[:, None], (mass_z / total)[:, None], of_target, slope, Z_LOSS, SOFTCAP
            )
            grad_ptrs = tile_at(grad, outer, row, sizes, column, ALIGN, ALONG_COLUMNS)
            store_gradient(grad_ptrs, d, valid, exists, inside, ALONG_COLUMNS)
            if INDICES:
                correct_target(
                    grad, outer, row, sizes, of_row, there, at_target, slope_there, top, total, mass, mass_z, share, f,
                    classes, LABEL_SMOOTHING, Z_LOSS, SOFTCAP,
                )  # fmt: skip
        if grad_target is not None:
            target_ptrs = tile_at(grad_target, outer, row, sizes, column, ALIGN, ALONG_COLUMNS)
            d = target_gradient(above, log_sum, f, weight, LABEL_SMOOTHING)
            tl.store(target_ptrs, d.to(grad_target.ptr.dtype.element_ty), mask=here)
    if SCALAR:
        reduce_loss(
            cross_sum,
            square_sum,
            by_share,
            by_count,
            loss.ptr,
            partials_ptr,
            counter_ptr,
            programs,
            Z_LOSS != 0,
            PARTIALS,
        )


# --- long rows --------------------------------------------------------------------------------------------------------


@triton.jit
def long_rows_kernel(
    logits, target, weight_ptr, stride_w, upstream, max_of, log_sum_of, argmax, loss, grad, grad_target, flag_ptr,
    sums_ptr, partials_ptr, counter_ptr, sums, programs, sizes, inner, tiles, classes, ignore_index,
    FORWARD: tl.constexpr, INDICES: tl.constexpr, MEAN: tl.constexpr, SCALAR: tl.constexpr,
    LABEL_SMOOTHING: tl.constexpr, Z_LOSS: tl.constexpr, SOFTCAP: tl.constexpr,
    ALIGN: tl.constexpr, ALONG_COLUMNS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    SUMS: tl.constexpr, PARTIALS: tl.constexpr,
):  # fmt: skip
    """The same for rows of any length, COLUMNS of them at a time.

    The statistics are kept against the maximum so far. What was read last is read first for the gradient, as it may
    still be in a cache, and is told to leave it then.
    """
    ACC: tl.constexpr = tl.float64 if logits.ptr.dtype.element_ty == tl.float64 else tl.float32
    ONE: tl.constexpr = INDICES and LABEL_SMOOTHING == 0  # class has all of q
    limit = classes // ALIGN * ALIGN if ALONG_COLUMNS else classes
    last = (tl.cdiv(classes, COLUMNS) - 1) * COLUMNS
    by_share, by_count = denominators(sums_ptr, sums, MEAN, SUMS)
    cross_sum = tl.cast(0.0, tl.float64)
    square_sum = tl.cast(0.0, tl.float64)
    for tile in range(tl.program_id(0), tiles, programs):
        outer, row = tile_of(tile, inner, sizes, ROWS)
        exists = row < (inner if ALONG_COLUMNS else inner // ALIGN * ALIGN)
        of_row, valid, there, bad = read_targets(target, outer, row, sizes, exists, classes, ignore_index, INDICES)
        if INDICES:
            at_target, slope_there = read_target_logit(logits, outer, row, sizes, of_row, there, SOFTCAP, ACC)

        # One pass for the row's statistics, and for what the target asks of them.
        largest = tl.full((ROWS,), -float("inf"), ACC)  # of the logits as they came
        best = tl.full((ROWS,), 0x7FFFFFFF, tl.int32)  # where that is, as of first_of
        top = largest
        totals = tl.zeros((ROWS, COLUMNS), ACC)
        of_t = tl.zeros((ROWS, COLUMNS), ACC)  # w·t, and that times z − base
        t_dots = tl.zeros((ROWS, COLUMNS), ACC)
        of_all = tl.zeros((ROWS, COLUMNS), ACC)  # the same of w
        all_dots = tl.zeros((ROWS, COLUMNS), ACC)
        base = tl.load(rows_at(logits, outer, row, sizes), mask=exists, other=0.0).to(ACC)
        base, _ = capped(tl.where(tl.abs(base) < float("inf"), base, 0.0), SOFTCAP)
        for start in range(0, classes if FORWARD or not ONE else 0, COLUMNS):
            column = start + tl.arange(0, COLUMNS)
            here = exists[:, None] & (column < limit)[None, :]
            weight = read_weights(None if ONE else weight_ptr, stride_w, column, classes, ACC)
            if FORWARD:
                logits_ptrs = tile_at(logits, outer, row, sizes, column, ALIGN, ALONG_COLUMNS)
                raw = tl.load(logits_ptrs, mask=here, other=-float("inf")).to(ACC)
                of_tile = tl.max(raw, 1)
                if argmax is not None:
                    first = first_of(raw, of_tile, column)
                    better = (of_tile > largest) | (first < 0) | (best == 0x7FFFFFFF)
                    best = tl.where(better & (best >= 0), first, best)
                    largest = tl.maximum(largest, of_tile)
                z, _ = capped(raw, SOFTCAP)
                of_tile, _ = capped(of_tile, SOFTCAP)
                if SOFTCAP != 0:
                    z = tl.where(here, z, -float("inf"))
                so_far = tl.maximum(top, of_tile)
                totals = totals * exp_of(top - finite(so_far))[:, None] + exp_of(z - finite(so_far)[:, None])
                top = so_far
            if LABEL_SMOOTHING != 0:
                inside = (column < limit)[None, :]
                of_all += tl.where(inside, weight, 0.0)
                if FORWARD:
                    all_dots += tl.where(inside & (weight != 0), weight * (z - base[:, None]), 0.0)
            if not INDICES:
                t = read_probabilities(target, outer, row, sizes, column, here, ALIGN, ALONG_COLUMNS, ACC)
                of_t += t * weight
                if FORWARD:
                    t_dots += tl.where(t * weight == 0, 0.0, t * weight * (z - base[:, None]))
        if INDICES:
            share = read_weight(weight_ptr, stride_w, of_row, there, ACC)
        else:
            share = tl.sum(of_t, 1)
        shares = smoothed(share, tl.sum(of_all, 1), classes, LABEL_SMOOTHING)
        if FORWARD:
            log_sum = tl.where(top == -float("inf"), float("nan"), tl.log(tl.sum(totals, 1)))
            write_rows(max_of, outer, row, sizes, exists, top)
            write_rows(log_sum_of, outer, row, sizes, exists, log_sum)
            if argmax is not None:
                write_rows(argmax, outer, row, sizes, exists, best & 0x7FFFFFFF)
            if INDICES:
                dot = tl.where(share == 0, 0.0, share.to(tl.float64) * (at_target.to(tl.float64) - base.to(tl.float64)))
            else:
                dot = tl.sum(t_dots, 1)
            dot = smoothed(dot, tl.sum(all_dots, 1), classes, LABEL_SMOOTHING)
            dot -= tl.where(shares == 0, 0.0, shares * (top.to(tl.float64) - base.to(tl.float64)))
            cross, square = row_loss(top, log_sum, shares, dot, valid, bad, Z_LOSS)
            if SCALAR:
                cross_sum += tl.sum(cross, 0)
                square_sum += tl.sum(square, 0)
            else:
                write_rows(loss, outer, row, sizes, exists, cross + square)
            raise_flag(flag_ptr, bad)
        else:
            top = tl.load(rows_at(max_of, outer, row, sizes), mask=exists, other=0.0).to(ACC)
            log_sum = tl.load(rows_at(log_sum_of, outer, row, sizes), mask=exists, other=0.0).to(ACC)

        # Another one for the gradients.
        if not (grad is None and grad_target is None):
            f, mass, mass_z = row_factors(
                upstream, outer, row, sizes, exists, top, log_sum, shares, bad, by_share, by_count, Z_LOSS
            )
            total = exp_of(log_sum)
            for back in range(0, classes, COLUMNS):
                column = last - back + tl.arange(0, COLUMNS)
                inside = (column < limit)[None, :]
                here = exists[:, None] & inside
                logits_ptrs = tile_at(logits, outer, row, sizes, column, ALIGN, ALONG_COLUMNS)
                raw = tl.load(logits_ptrs, mask=here, other=-float("inf"), eviction_policy="evict_first").to(ACC)
                z, slope = capped(raw, SOFTCAP)
                above = z - top[:, None]
                weight = read_weights(None if ONE else weight_ptr, stride_w, column, classes, ACC)
                if grad is not None:
                    t = None
                    if not INDICES:
                        t = read_probabilities(target, outer, row, sizes, column, here, ALIGN, ALONG_COLUMNS, ACC)
                    of_target = asked(t, weight, f, classes, LABEL_SMOOTHING)
                    d = logits_gradient(
                        exp_of(above),
                        (mass / total)[:, None],
                        (mass_z / total)[:, None],
                        of_target,
                        slope,
                        Z_LOSS,
                        SOFTCAP,
                    )
                    grad_ptrs = tile_at(grad, outer, row, sizes, column, ALIGN, ALONG_COLUMNS)
                    store_gradient(grad_ptrs, d, valid, exists, inside, ALONG_COLUMNS)
                if grad_target is not None:
                    target_ptrs = tile_at(grad_target, outer, row, sizes, column, ALIGN, ALONG_COLUMNS)
                    d = target_gradient(above, log_sum, f, weight, LABEL_SMOOTHING)
                    tl.store(target_ptrs, d.to(grad_target.ptr.dtype.element_ty), mask=here)
            if INDICES and grad is not None:
                correct_target(
                    grad, outer, row, sizes, of_row, there, at_target, slope_there, top, total, mass, mass_z, share, f,
                    classes, LABEL_SMOOTHING, Z_LOSS, SOFTCAP,
                )  # fmt: skip
    if SCALAR:
        reduce_loss(
            cross_sum,
            square_sum,
            by_share,
            by_count,
            loss.ptr,
            partials_ptr,
            counter_ptr,
            programs,
            Z_LOSS != 0,
            PARTIALS,
        )
