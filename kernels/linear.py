"""Linear + bias + activation: y = act(x Wᵀ + b), in one launch; and backward, in at most three.

With n rows, K features in, M out and e bytes an element, in multiply-adds and bytes:

    forward    n·M·K,      (n·K + M·K + n·M)·e, and n·M·e of pre-activation where backward will need it
    dZ         O(n·M),     3·n·M·e: reads dY and what the forward kept, writes dZ; and sums its columns on the way
    backward   2·n·M·K,    the two products dX = dZ W and dW = dZᵀ X

The pass that makes dZ leaves the gradient of the bias in parts, one for a block of rows, which the product that follows
adds up beside its own work: in the same order always, so the result is the same bits always.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import triton
import triton.language as tl

from . import configs
from .activation import Activation, activation_of
from .launch import ALIGNMENT, FLOATS, View, chip_of, launch, merged, optional, view
from .matmul import PART_COLUMNS, Sums, add_parts, matmul
from .operands import Axis, aligned, axis_offset, matrix, vector

# --- forward ----------------------------------------------------------------------------------------------------------


def linear(
    x: Any,  # (…, K)
    weight: Any,  # (M, K), or (2M, K) for a gated activation: gate above up
    bias: Any,  # (M) or (2M), or None
    activation: str | None,
    *,
    out: Any,  # (…, M)
    pre: Any,  # (…, M) or (…, 2M): the pre-activation; None: not wanted
    tf32: bool = False,  # float32 products may be TF32
) -> None:
    """out = activation(x Wᵀ + b).

    Inputs may have any strides; outputs are contiguous. Gated activations: Shazeer 2020, "GLU Variants Improve
    Transformer".

    Raises:
        ValueError: shapes that do not go together, or an unknown activation. TypeError: dtypes that differ, or that the
            kernels do not take.
    """
    x, weight, bias, out, pre = view(x), view(weight), optional(bias), view(out), optional(pre)
    act = activation_of(activation)
    _check(act, x, weight, bias)
    features = weight.shape[0] // 2 if act.gated else weight.shape[0]
    pre = None if pre is None else _flat(pre)
    of_up = features if act.gated else None
    matmul(
        matrix(x), matrix(weight.narrow(0, 0, features)), _flat(out), activation=act.of, bias=_part(bias, 0, features),
        pre=_part(pre, 0, features), b_up=None if of_up is None else matrix(weight.narrow(0, of_up, features)),
        bias_up=_part(bias, of_up, features), pre_up=_part(pre, of_up, features), tf32=tf32,
    )  # fmt: skip


def _check(act: Activation, x: View, weight: View, bias: View | None) -> None:
    for name, other in (("weight", weight), ("bias", bias)):
        if other is not None and other.dtype is not x.dtype:
            raise TypeError(f"linear: expected {name} of the input's dtype {x.dtype}, got {other.dtype}")
    if x.dtype.name not in FLOATS:
        raise TypeError(f"linear: the Triton kernels take {', '.join(FLOATS)}, got {x.dtype}")
    if x.ndim < 1:
        raise ValueError("linear: expected an input of one dimension or more, got none")
    if weight.ndim != 2 or weight.shape[1] != x.shape[-1] or (act.gated and weight.shape[0] % 2):
        rows = "2·out_features" if act.gated else "out_features"
        raise ValueError(f"linear: expected weight of shape ({rows}, {x.shape[-1]}), got {weight.shape}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"linear: expected bias of shape {weight.shape[:1]}, got {bias.shape}")


def _flat(v: View) -> View:
    """A contiguous (…, columns) as (rows, columns)."""
    return v.viewed((math.prod(v.shape[:-1]), v.shape[-1]), (v.shape[-1], 1))


def _part(v: View | None, start: int | None, length: int) -> View | None:
    return None if v is None or start is None else v.narrow(v.ndim - 1, start, length)


# --- backward: the pass that makes dZ ---------------------------------------------------------------------------------


@triton.jit
def dz_kernel(
    grad_ptr, grad_rows, stride_gm,  # (n, M) of any strides
    saved_ptr, saved_rows, stride_sm,  # (n, M) or (n, 2M), or None: no activation
    dz_ptr,  # (n, M) or (n, 2M), contiguous, out; or None
    parts_ptr,  # (parts, M) or (parts, 2M) out: sums over the rows of a program; or None
    rows, columns, steps,
    OF: tl.constexpr, GRAD: tl.constexpr, GATED: tl.constexpr, ACC: tl.constexpr,
    GRAD_ALIGN: tl.constexpr, SAVED_ALIGN: tl.constexpr, ALIGN: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """dZ = dY · act'(Z), and the sums of its columns before it is rounded.

    A program goes down ``steps`` tiles of ROWS rows, whose sums stay in registers until the end.
    """
    columns = aligned(columns, ALIGN)
    width = columns * 2 if GATED else columns
    blocks = tl.cdiv(columns, COLUMNS)
    part = tl.program_id(0) // blocks
    column = (tl.program_id(0) % blocks) * COLUMNS + tl.arange(0, COLUMNS)
    c = column.to(tl.int64)[None, :]
    total = tl.zeros((ROWS, COLUMNS), ACC)
    total_up = tl.zeros((ROWS, COLUMNS), ACC)
    for step in tl.range(0, steps):
        row = (part * steps + step) * ROWS + tl.arange(0, ROWS)
        inside = (row < rows)[:, None] & (column < columns)[None, :]
        at = axis_offset(row, grad_rows, GRAD_ALIGN)[:, None] + c * stride_gm
        d = tl.load(grad_ptr + at, mask=inside, other=0.0).to(ACC)
        to = row.to(tl.int64)[:, None] * width + c
        if saved_ptr is not None:
            at = axis_offset(row, saved_rows, SAVED_ALIGN)[:, None] + c * stride_sm
            z = tl.load(saved_ptr + at, mask=inside, other=0.0).to(ACC)
            if GATED:
                up = tl.load(saved_ptr + at + columns.to(tl.int64) * stride_sm, mask=inside, other=0.0).to(ACC)
                d_up = d * OF(z)
                d *= up
                if dz_ptr is not None:
                    tl.store(dz_ptr + to + columns, d_up.to(dz_ptr.dtype.element_ty), mask=inside)
                total_up += d_up
            d *= GRAD(z)
            if dz_ptr is not None:
                tl.store(dz_ptr + to, d.to(dz_ptr.dtype.element_ty), mask=inside)
        total += d
    if parts_ptr is not None:
        at = parts_ptr + part.to(tl.int64) * width + column
        tl.store(at, tl.sum(total, 0), mask=column < columns)
        if GATED:
            tl.store(at + columns, tl.sum(total_up, 0), mask=column < columns)


@triton.jit
def add_parts_kernel(parts_ptr, sums_ptr, stride_s, parts, columns):
    """The gradient of the bias, where no product follows that would add it up."""
    add_parts(parts_ptr, sums_ptr, stride_s, parts, columns)


# --- backward: the launcher -------------------------------------------------------------------------------------------


class Pass(NamedTuple):
    """How the pass that makes dZ is cut up."""

    rows: int  # n
    columns: int  # M, of dY
    width: int  # of Z: M or 2M
    span: int  # rows of a program
    parts: int
    blocks: int  # of columns
    config: configs.RowBlock


def _pass_of(grad: View, weight: View, gated: bool) -> Pass:
    """Programs of so many rows that parts are below 2 % of what is read and written; fewer if the chip would idle."""
    chip = chip_of(grad)
    config = configs.for_chip(configs.DZ, chip.name)
    width = weight.shape[0]
    columns = width // 2 if gated else width
    rows = math.prod(grad.shape[:-1])
    blocks, span = triton.cdiv(columns, config.columns), config.span
    while span > config.rows and blocks * triton.cdiv(rows, span) < chip.multiprocessors:
        span //= 2
    while blocks * triton.cdiv(rows, 2 * span) > config.programs * chip.multiprocessors:
        span *= 2
    return Pass(rows, columns, width, span, triton.cdiv(rows, span), blocks, config)


def linear_backward_workspace(
    grad: Any, x: Any, weight: Any, saved: Any, activation: str | None,
    *, grad_input: Any, grad_weight: Any, grad_bias: Any, tf32: bool = False,
) -> dict[str, tuple[tuple[int, ...], str]]:  # fmt: skip
    """Names, shapes and dtypes of what ``linear_backward`` needs beside its outputs."""
    act, grad = activation_of(activation), view(grad)
    plan = _pass_of(grad, view(weight), act.gated)
    needed: dict[str, tuple[tuple[int, ...], str]] = {}
    if activation is not None and (grad_input is not None or grad_weight is not None):
        needed["dz"] = ((plan.rows, plan.width), grad.dtype.name)
    if grad_bias is not None:
        needed["parts"] = ((plan.parts, plan.width), _wide(grad))
    return needed


def _wide(v: View) -> str:
    return "float64" if v.dtype.name == "float64" else "float32"


def linear_backward(
    grad: Any,  # (…, M)
    x: Any,  # (…, K)
    weight: Any,  # (M, K) or (2M, K)
    saved: Any,  # the pre-activation, or where only its sign counts, the output; None without an activation
    activation: str | None,
    *,
    grad_input: Any,  # each may be None: not wanted, and then not computed
    grad_weight: Any,
    grad_bias: Any,
    workspace: dict[str, Any],
    tf32: bool = False,
) -> None:
    """dZ = dY · act'(Z); dX = dZ W; dW = dZᵀ X; db = Σ dZ.

    Raises:
        ValueError, TypeError: as ``linear`` does.
    """
    grad, x, weight, saved = view(grad), view(x), view(weight), optional(saved)
    dx, dw, db = optional(grad_input), optional(grad_weight), optional(grad_bias)
    buffers = {name: view(buffer) for name, buffer in workspace.items()}
    act = activation_of(activation)
    _check(act, x, weight, db)
    if activation is not None and saved is None:
        raise ValueError(f"linear: expected what the forward saved for activation {activation!r}, got None")
    dz, sums = matrix(grad), None
    if buffers:
        _launch_dz(grad, weight, saved, act, buffers)
        if "dz" in buffers:
            dz = matrix(buffers["dz"])
        if db is not None:
            sums = Sums(buffers["parts"], db)
    if dx is not None and dx.size:
        matmul(dz, matrix(weight).T, _flat(dx), sums=sums, tf32=tf32)
        sums = None
    if dw is not None and dw.size:
        matmul(dz.T, matrix(x).T, dw, sums=sums, tf32=tf32)
        sums = None
    if sums is not None:
        parts, columns = sums.parts.shape
        grid = (triton.cdiv(columns, PART_COLUMNS.value),)
        launch(add_parts_kernel, grid, sums.parts, sums.out, *sums.out.strides, parts, columns, num_warps=4)


def _launch_dz(grad: View, weight: View, saved: View | None, act: Activation, buffers: dict[str, View]) -> None:
    plan, dz, parts = _pass_of(grad, weight, act.gated), buffers.get("dz"), buffers.get("parts")
    arrays = [grad] if saved is None else [grad, saved]
    sizes, found = merged(grad.shape[:-1], *(v.strides[:-1] for v in arrays))
    rows = [Axis(sizes or (1,), strides or (0,)) for strides in found]
    align = [vector(v, *axis.strides) if v.strides[-1] == 1 else 1 for v, axis in zip(arrays, rows, strict=True)]
    of_columns = min(vector(v, plan.columns) for v in (grad, dz) if v is not None)
    itemsize = grad.dtype.itemsize
    height = plan.config.tile_rows(act.gated, min(*align, of_columns) * itemsize == ALIGNMENT, itemsize)
    launch(
        dz_kernel, (plan.blocks * plan.parts,),
        grad, rows[0], grad.strides[-1],
        *((None, None, 0) if saved is None else (saved, rows[1], saved.strides[-1])),
        dz, parts, plan.rows, plan.columns, plan.span // height,
        OF=act.of if act.gated else None, GRAD=act.grad, GATED=act.gated,
        ACC=tl.float64 if grad.dtype.name == "float64" else tl.float32,
        GRAD_ALIGN=align[0], SAVED_ALIGN=align[-1], ALIGN=of_columns,
        ROWS=height, COLUMNS=plan.config.columns, num_warps=plan.config.warps,
    )  # fmt: skip
