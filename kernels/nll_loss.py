"""The negative log-likelihood of log-probabilities: −w[t]·logp[t] of each row, and its gradient.

Forward, one element a row is gathered, and each program's sums are put together by a second launch. Backward, the whole
gradient is written in one pass, almost all of it zeros; of the log-probabilities themselves nothing is read.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from . import configs
from .launch import View, chip_of, launch, optional, view
from .row_losses import (
    PARTIALS,
    SUMS,
    check_arrays,
    class_axis,
    denominators,
    layout,
    of_weight,
    prepare,
    programs_for,
    raise_flag,
    read_targets,
    read_weight,
    rows_at,
    store_rounded,
    tile_at,
    tile_of,
    total_of,
    vector,
)

# --- forward ----------------------------------------------------------------------------------------------------------


@triton.jit
def gather_loss_kernel(
    logp, target, weight_ptr, stride_w, loss, flag_ptr,
    partials_ptr,  # (3, programs) out: each program's loss, weights and rows
    programs, sizes, inner, tiles, classes, ignore_index,
    SCALAR: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    ACC: tl.constexpr = tl.float64 if logp.ptr.dtype.element_ty == tl.float64 else tl.float32
    losses = tl.zeros((ROWS,), tl.float64)
    shares = tl.zeros((ROWS,), tl.float64)
    for tile in range(tl.program_id(0), tiles, programs):
        outer, row = tile_of(tile, inner, sizes, ROWS)
        exists = row < inner
        of_row, _, there, bad = read_targets(target, outer, row, sizes, exists, classes, ignore_index, True)
        share = read_weight(weight_ptr, stride_w, of_row, there, ACC)
        at_target = rows_at(logp, outer, row, sizes) + of_row * logp.column
        x = tl.load(at_target, mask=there & (share != 0), other=0.0).to(ACC)  # no weight: no part, whatever logp is
        of_rows = tl.where(bad, float("nan"), -share * x)
        raise_flag(flag_ptr, bad)
        if SCALAR:
            losses += of_rows.to(tl.float64)
            shares += share.to(tl.float64)
        else:
            tl.store(rows_at(loss, outer, row, sizes), of_rows.to(loss.ptr.dtype.element_ty), mask=exists)
    if SCALAR:
        tl.store(partials_ptr + tl.program_id(0), tl.sum(losses, 0))
        tl.store(partials_ptr + programs + tl.program_id(0), tl.sum(shares, 0))


@triton.jit
def add_up_kernel(partials_ptr, loss_ptr, programs, MEAN: tl.constexpr, BLOCK: tl.constexpr):
    loss = total_of(partials_ptr, programs, BLOCK)
    if MEAN:
        loss = loss / total_of(partials_ptr + programs, programs, BLOCK)
    store_rounded(loss_ptr, loss)


def nll_loss(
    logp: Any, target: Any, weight: Any, o: Any, *, loss: Any, flag: Any, workspace: dict[str, Any] | None = None
) -> None:
    """−w[t]·logp[t] of each row, reduced; ignored rows count nothing.

    Args:
        logp: (C), (N, C) or (N, C, d…), any strides. target: the same without C, class indices. weight: (C) or None.
        loss: 0-d, or the rows. flag: 1 element, set if a target is out of range, which makes its row NaN.
        workspace: what ``nll_loss_workspace`` lists.

    Raises:
        TypeError: a dtype that the kernels do not compute in. ValueError: class indices past 31 bits.
    """
    logp, target, weight, loss = view(logp), view(target), optional(weight), view(loss)
    check_arrays("nll_loss", logp, target, probabilities=False)
    scalar = o.reduction != "none"
    axis = class_axis(logp)
    where = layout(axis, {"logp": logp}, {"target": target, "loss": loss})
    programs, tiles = _programs(logp, where.tiles(configs.NLL_ROWS))
    partials = view(workspace["partials"]) if scalar and workspace else None
    launch(
        gather_loss_kernel, (programs,), where.arrays["logp"], where.arrays["target"], *of_weight(weight),
        where.arrays["loss"], optional(flag), partials, programs, where.outer, where.inner, tiles,
        logp.shape[axis], o.ignore_index, SCALAR=scalar, ROWS=configs.NLL_ROWS, num_warps=4,
    )  # fmt: skip
    if scalar:
        launch(add_up_kernel, (1,), partials, loss, programs, MEAN=o.reduction == "mean", BLOCK=PARTIALS, num_warps=4)


def nll_loss_workspace(
    logp: Any, target: Any, weight: Any, o: Any, *, loss: Any, flag: Any
) -> dict[str, tuple[tuple[int, ...], str]]:
    """The shape and dtype of each buffer."""
    if o.reduction == "none":
        return {}
    logp = view(logp)
    where = layout(class_axis(logp), {"logp": logp}, {"target": view(target), "loss": view(loss)})
    return {"partials": ((2, _programs(logp, where.tiles(configs.NLL_ROWS))[0]), "float64")}


def _programs(x: View, tiles: int) -> tuple[int, int]:
    return programs_for(tiles, configs.NLL_PROGRAMS * chip_of(x).multiprocessors), tiles


# --- backward ---------------------------------------------------------------------------------------------------------


@triton.jit
def spread_gradient_kernel(
    grad, target, weight_ptr, stride_w, upstream, sums_ptr, sums, programs,
    sizes, inner, tiles, classes, ignore_index,
    MEAN: tl.constexpr, ALIGN: tl.constexpr, ALONG_COLUMNS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, SUMS: tl.constexpr,
):  # fmt: skip
    """−f·w[t] at the target, 0 elsewhere; NaN all along a row whose target is out of range."""
    ACC: tl.constexpr = tl.float64 if grad.ptr.dtype.element_ty == tl.float64 else tl.float32
    by_share, _by_count = denominators(sums_ptr, sums, MEAN, SUMS)
    limit = classes // ALIGN * ALIGN if ALONG_COLUMNS else classes
    pieces = tl.cdiv(classes, COLUMNS)
    for piece in range(tl.program_id(0), tiles * pieces, programs):
        outer, row = tile_of(piece // pieces, inner, sizes, ROWS)
        exists = row < (inner if ALONG_COLUMNS else inner // ALIGN * ALIGN)
        of_row, _, there, bad = read_targets(target, outer, row, sizes, exists, classes, ignore_index, True)
        share = read_weight(weight_ptr, stride_w, of_row, there, ACC)
        f = tl.load(rows_at(upstream, outer, row, sizes), mask=exists, other=0.0).to(ACC) / by_share.to(ACC)
        here = tl.where(there & (share != 0), -f * share, 0.0)
        elsewhere = tl.where(bad, float("nan"), tl.zeros_like(f))
        column = piece % pieces * COLUMNS + tl.arange(0, COLUMNS)
        d = tl.where(of_row.to(tl.int32)[:, None] == column[None, :], here[:, None], elsewhere[:, None])
        d = tl.where(bad[:, None], float("nan"), d)
        inside = exists[:, None] & (column < limit)[None, :]
        grad_ptrs = tile_at(grad, outer, row, sizes, column, ALIGN, ALONG_COLUMNS)
        tl.store(grad_ptrs, d.to(grad.ptr.dtype.element_ty), mask=inside)


def nll_loss_backward(
    upstream: Any, logp: Any, target: Any, weight: Any, o: Any, *, grad: Any, workspace: dict[str, Any] | None = None
) -> None:
    """−f·w[t] at the target, 0 elsewhere. ``upstream`` is 0-d, or one for each row; errors are as for ``nll_loss``."""
    logp, target, weight, grad = view(logp), view(target), optional(weight), view(grad)
    check_arrays("nll_loss_backward", logp, target, probabilities=False)
    axis, mean = class_axis(logp), o.reduction == "mean"
    classes = logp.shape[axis]
    where = layout(axis, {"grad": grad}, {"target": target, "upstream": view(upstream)})
    placed = where.arrays["grad"]
    assert placed is not None
    along = placed.column == 1
    table = configs.NLL_ALONG if along or where.inner == 1 else configs.NLL_ACROSS
    columns = min(table.columns, triton.next_power_of_2(classes))
    rows = min(table.rows * (table.columns // columns), triton.next_power_of_2(where.inner))
    tiles = where.tiles(rows)
    programs, _ = _programs(grad, tiles * triton.cdiv(classes, columns))
    buffers = {name: view(x) for name, x in (workspace or {}).items()}
    sums = 1
    if mean:
        bytes_of_program = where.rows * classes * grad.dtype.itemsize // programs
        sums = prepare(where, where.arrays["target"], weight, classes, o, True, True, buffers, bytes_of_program)
    launch(
        spread_gradient_kernel, (programs,), placed, where.arrays["target"], *of_weight(weight),
        where.arrays["upstream"], buffers.get("sums"), sums, programs, where.outer, where.inner, tiles, classes,
        o.ignore_index, MEAN=mean, ALIGN=vector(where, classes, placed), ALONG_COLUMNS=along, ROWS=rows,
        COLUMNS=columns, SUMS=SUMS, num_warps=4,
    )  # fmt: skip


def nll_loss_backward_workspace(
    upstream: Any, logp: Any, target: Any, weight: Any, o: Any, *, grad: Any
) -> dict[str, tuple[tuple[int, ...], str]]:
    """The shape and dtype of each buffer."""
    return {"sums": ((2, SUMS), "float64")} if o.reduction == "mean" else {}
