"""Cross-entropy of classes, forward and backward: which kernel runs, on which tiles, with what workspace.

The kernels are in cross_entropy_rows.py, what they compute in cross_entropy_steps.py. With R rows of C classes, e bytes
a logit, targets as indices and rows that are held whole (whole_rows_kernel), the traffic is

    forward               R·C·e read
    forward and gradient  R·C·e read, R·C·e written
    backward              R·C·e read, R·C·e written

and O(R) of targets, losses and statistics; class probabilities are one more read. Longer rows are read a second time
for their gradient. A scalar loss takes two launches, reduction "none" one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton

from . import configs
from .cross_entropy_rows import long_rows_kernel, whole_rows_kernel
from .launch import View, chip_of, launch, optional, view
from .row_losses import (
    PARTIALS,
    SUMS,
    Layout,
    check_arrays,
    class_axis,
    layout,
    of_weight,
    prepare,
    programs_for,
    vector,
)


class _Plan(NamedTuple):
    layout: Layout
    tile: configs.CrossEntropyTile
    whole: bool
    align: int
    along_columns: bool
    tiles: int
    programs: int


def cross_entropy(
    logits: Any, target: Any, weight: Any, o: Any, *,
    loss: Any, lse: Any, argmax: Any, grad: Any, flag: Any, workspace: dict[str, Any] | None = None,
) -> None:  # fmt: skip
    """The loss; in the same pass, on request, its gradient, and each row's logsumexp and argmax.

    Args:
        logits: (C), (N, C) or (N, C, d…), any strides.
        target: class indices, one for each row; or class probabilities in the shape and dtype of the logits.
        weight: (C) or None. o: the options of tilegrad.reference.
        loss: 0-d, or the rows. lse: (2, rows), the maximum and the log of the sum above it, or None. argmax: the rows.
        grad: like the logits, for an upstream gradient of 1, or None. flag: 1 element, set if a target is out of range.
        workspace: what ``cross_entropy_workspace`` lists.

    Raises:
        TypeError: a dtype that the kernels do not compute in. ValueError: class indices past 31 bits.
    """
    logits, target, weight = view(logits), view(target), optional(weight)
    plan = _plan(logits, target, weight, o, _forward_arrays(loss, lse, argmax, grad), grad=grad)
    _launch(plan, logits, target, weight, o, None if flag is None else view(flag), workspace or {}, forward=True)


def cross_entropy_workspace(
    logits: Any, target: Any, weight: Any, o: Any, *, loss: Any, lse: Any, argmax: Any, grad: Any, flag: Any
) -> dict[str, tuple[tuple[int, ...], str]]:
    """The shape and dtype of each buffer."""
    if o.reduction == "none":
        return {}
    plan = _plan(view(logits), view(target), optional(weight), o, _forward_arrays(loss, lse, argmax, grad), grad=grad)
    return {"sums": ((2, SUMS), "float64"), "partials": ((2, plan.programs), "float64"), "counter": ((1,), "int32")}


def _forward_arrays(loss: Any, lse: Any, argmax: Any, grad: Any) -> dict[str, View | None]:
    lse = optional(lse)
    return {
        "max": None if lse is None else lse.select(0, 0),
        "log_sum": None if lse is None else lse.select(0, 1),
        "argmax": optional(argmax),
        "loss": view(loss),
    }


def cross_entropy_backward(
    upstream: Any, logits: Any, target: Any, weight: Any, lse: Any, o: Any, *,
    grad: Any, grad_target: Any, workspace: dict[str, Any] | None = None,
) -> None:  # fmt: skip
    """The gradients of the logits and of class probabilities (None where not wanted), from the logsumexp of the rows.

    Args:
        upstream: 0-d, or one for each row, any strides. lse: (2, rows), as the forward wrote it.
        The others are as for ``cross_entropy``.

    Raises:
        As ``cross_entropy``.
    """
    logits, target, weight = view(logits), view(target), optional(weight)
    plan = _plan(logits, target, weight, o, _backward_arrays(upstream, lse), grad=grad, grad_target=grad_target)
    _launch(plan, logits, target, weight, o, None, workspace or {}, forward=False)


def cross_entropy_backward_workspace(
    upstream: Any, logits: Any, target: Any, weight: Any, lse: Any, o: Any, *, grad: Any, grad_target: Any
) -> dict[str, tuple[tuple[int, ...], str]]:
    """The shape and dtype of each buffer."""
    return {"sums": ((2, SUMS), "float64")} if o.reduction == "mean" else {}


def _backward_arrays(upstream: Any, lse: Any) -> dict[str, View | None]:
    lse = view(lse)
    return {"max": lse.select(0, 0), "log_sum": lse.select(0, 1), "upstream": view(upstream)}


# --- the plan ---------------------------------------------------------------------------------------------------------


def _plan(
    logits: View, target: View, weight: View | None, o: Any, rows: dict[str, View | None], *,
    grad: Any, grad_target: Any = None,
) -> _Plan:  # fmt: skip
    check_arrays("cross_entropy", logits, target, probabilities=True)
    axis, indices = class_axis(logits), target.ndim < logits.ndim
    classes = logits.shape[axis]
    columns = {
        "logits": logits,
        "probabilities": None if indices else target,
        "grad": optional(grad),
        "grad_target": optional(grad_target),
    }
    where = layout(axis, columns, {"indices": target if indices else None, **rows})
    chip = chip_of(logits)
    along = logits.strides[axis] == 1 or where.inner == 1
    kind = _kind(
        logits.dtype.itemsize,
        costly=bool(o.softcap or not indices or (o.label_smoothing and weight is not None)),
        plain=not (o.label_smoothing or o.z_loss or rows.get("argmax")),
    )
    twice = grad is not None and "loss" in rows  # a long row is read twice only for its statistics and its gradient
    tile, whole = _tile(chip.name, along, kind, twice, classes, where.inner)
    tiles = where.tiles(tile.rows)
    return _Plan(
        where, tile, whole,
        align=vector(where, classes, *(where.arrays[name] for name in columns)),
        along_columns=all(a.column == 1 for name in columns if (a := where.arrays[name]) is not None),
        tiles=tiles,
        programs=programs_for(tiles, tile.programs * chip.multiprocessors),
    )  # fmt: skip


def _kind(itemsize: int, costly: bool, plain: bool) -> str:
    """What a thread holds for each logit, as the tables call it."""
    if itemsize == 8:
        return "costly double" if costly else "costly"
    if costly:
        return "costly"
    return "single" if itemsize == 4 else "plain" if plain else "half"


def _tile(
    chip: str, along: bool, kind: str, twice: bool, classes: int, inner: int
) -> tuple[configs.CrossEntropyTile, bool]:
    """The tile for rows of ``classes``, and whether it holds them whole."""
    columns, most_rows = triton.next_power_of_2(classes), triton.next_power_of_2(inner)
    tile = configs.cross_entropy_tile(chip, along, kind, twice, columns)
    if tile is not None:
        rows = tile.rows * (tile.columns // columns)
        return tile._replace(rows=max(1, min(rows, most_rows)), columns=columns), True
    long = configs.cross_entropy_tiles(chip, along, kind).long
    rows = max(1, min(long.rows, most_rows))
    return long._replace(rows=rows, columns=long.columns * (long.rows // rows)), False


# --- the launches -----------------------------------------------------------------------------------------------------


def _launch(
    plan: _Plan, logits: View, target: View, weight: View | None, o: Any, flag: View | None,
    workspace: dict[str, Any], *, forward: bool,
) -> None:  # fmt: skip
    arrays, tile, classes = plan.layout.arrays, plan.tile, logits.shape[class_axis(logits)]
    buffers = {name: view(x) for name, x in workspace.items()}
    indices, mean, scalar = target.ndim < logits.ndim, o.reduction == "mean", forward and o.reduction != "none"
    targets = arrays["indices" if indices else "probabilities"]
    sums = 1
    if scalar or mean:
        bytes_of_program = plan.layout.rows * classes * logits.dtype.itemsize // plan.programs
        sums = prepare(plan.layout, targets, weight, classes, o, indices, mean, buffers, bytes_of_program)
    options = {} if tile.registers is None else {"maxnreg": tile.registers}
    launch(
        whole_rows_kernel if plan.whole else long_rows_kernel, (plan.programs,),
        arrays["logits"], targets, *of_weight(weight), arrays.get("upstream"), arrays["max"], arrays["log_sum"],
        arrays.get("argmax"), arrays.get("loss"), arrays["grad"], arrays["grad_target"], flag,
        buffers.get("sums"), buffers.get("partials"), buffers.get("counter"), sums, plan.programs,
        plan.layout.outer, plan.layout.inner, plan.tiles, classes, o.ignore_index,
        FORWARD=forward, INDICES=indices, MEAN=mean, SCALAR=scalar,
        LABEL_SMOOTHING=o.label_smoothing, Z_LOSS=o.z_loss, SOFTCAP=o.softcap,
        ALIGN=plan.align, ALONG_COLUMNS=plan.along_columns, ROWS=tile.rows, COLUMNS=tile.columns,
        SUMS=SUMS, PARTIALS=PARTIALS, num_warps=tile.warps, **options,
    )  # fmt: skip
