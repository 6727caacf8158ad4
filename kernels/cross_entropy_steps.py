"""Cross-entropy on tiles of ROWS × COLUMNS logits, step by step: the device functions of cross_entropy_rows.py.

    t      what the target gives a class: 1 or 0, or its probability
    q      how much −log p of each class counts: w·((1 − ε)·t + ε/C), smoothed as in Szegedy et al. 2016, section 7
    m, s   the row's maximum, and the log of Σ exp(z − m); m + s is the logsumexp, and kept apart they lose nothing
    loss   Σq·s − Σ q·(z − m) + λ·(m + s)²
    dz     f·(p·Σq − q) + f_z·2λ·(m + s)·p,  p being exp(z − m − s), f and f_z the upstream gradient of the two terms

Logits are computed with in float32 (float64 for float64) as they were loaded, the few numbers of a row's loss in
float64. Where w·t is 0 a class takes no part: 0·(−inf) must not make a NaN of a row whose −inf logits are of classes
without weight.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .row_losses import rows_at, store_rounded, tile_at
from .rows import exp_of

# --- arithmetic -------------------------------------------------------------------------------------------------------


@triton.jit
def capped(z, SOFTCAP: tl.constexpr):
    """c·tanh(u) with u = z/c, exactly ±c for ±inf, and its slope."""
    if SOFTCAP == 0:
        return z, tl.full(z.shape, 1.0, z.dtype)
    else:
        # tanh |u| = 1 − 2r with r = 1 / (1 + exp 2|u|), 0 where that overflows.
        if z.dtype == tl.float64:
            r = 1.0 / (1.0 + tl.exp(tl.abs(z) * (2.0 / SOFTCAP)))
        else:
            r = 1.0 / (1.0 + tl.exp2(tl.abs(z) * (2.0 * 1.4426950408889634 / SOFTCAP)))
        y = SOFTCAP - 2.0 * SOFTCAP * r
        y = tl.where(z < 0, -y, y)
        slope = 4.0 * r * (1.0 - r)
        if z.dtype == tl.float32:
            # Near 0 that is a difference of near equals: there u + u·u²·P(u²), P fitted to 5e-9 for |u| < 1.
            u = z * (1.0 / SOFTCAP)
            s = u * u
            p = -0.000358450023 * s + 0.00230135769
            p = p * s - 0.00794609729
            p = p * s + 0.0214866512
            p = p * s - 0.0538798012
            p = p * s + 0.133323446
            p = p * s - 0.333332956
            near = u + u * (s * p)
            y = tl.where(tl.abs(u) < 0.98, z + z * (s * p), y)
            slope = tl.where(tl.abs(u) < 0.98, 1.0 - near * near, slope)
        return y, slope


@triton.jit
def first_of(z, top, column):
    """Where each row's maximum comes first, or before it a NaN: that column less 2³¹."""
    key = tl.where(z == top[:, None], column[None, :], 0x7FFFFFFF)
    return tl.min(tl.where(z != z, column[None, :] + (-0x80000000), key), 1)


# --- the target -------------------------------------------------------------------------------------------------------


@triton.jit
def read_weights(weight_ptr, stride_w, column, classes, ACC: tl.constexpr):
    """The weights of a tile's classes, (1, COLUMNS)."""
    if weight_ptr is None:
        return tl.full((1, column.shape[0]), 1.0, ACC)
    else:
        weight = tl.load(weight_ptr + column.to(tl.int64) * stride_w, mask=column < classes, other=0.0)
        return weight.to(ACC)[None, :]


@triton.jit
def read_target_logit(logits, outer, row, sizes, of_row, there, SOFTCAP: tl.constexpr, ACC: tl.constexpr):
    """Each target's logit, capped, and the slope there."""
    pointers = rows_at(logits, outer, row, sizes) + of_row * logits.column
    return capped(tl.load(pointers, mask=there, other=0.0).to(ACC), SOFTCAP)


@triton.jit
def read_probabilities(
    target, outer, row, sizes, column, here, ALIGN: tl.constexpr, ALONG_COLUMNS: tl.constexpr, ACC: tl.constexpr
):
    """A tile of t."""
    target_ptrs = tile_at(target, outer, row, sizes, column, ALIGN, ALONG_COLUMNS)
    return tl.load(target_ptrs, mask=here, other=0.0).to(ACC)


@triton.jit
def smoothed(of_target, of_all, classes, LABEL_SMOOTHING: tl.constexpr):
    """Sums with q, in float64, from those with w·t and those with w."""
    sums = of_target.to(tl.float64)
    if LABEL_SMOOTHING != 0:
        sums = (1.0 - LABEL_SMOOTHING) * sums + of_all.to(tl.float64) * (LABEL_SMOOTHING / tl.cast(classes, tl.float64))
    return sums


@triton.jit
def asked(t, weight, f, classes, LABEL_SMOOTHING: tl.constexpr):
    """f·q of a tile; for class indices (``t`` None) as if none of them were the target."""
    if LABEL_SMOOTHING == 0:
        each = tl.zeros((1, 1), f.dtype)
    else:
        each = f[:, None] * (LABEL_SMOOTHING / tl.cast(classes, f.dtype)) * weight
    if t is None:
        return each
    else:
        return (1.0 - LABEL_SMOOTHING) * f[:, None] * (t * weight) + each


# --- rows -------------------------------------------------------------------------------------------------------------


@triton.jit
def row_loss(top, log_sum, share, dot, valid, bad, Z_LOSS: tl.constexpr):
    """The two terms of each row's loss in float64, ``share`` being Σq and ``dot`` Σ q·(z − m)."""
    top, log_sum = top.to(tl.float64), log_sum.to(tl.float64)
    cross = share * log_sum - dot  # a log_sum of NaN makes it NaN even if no class takes part
    cross = tl.where(valid, tl.where(bad, float("nan"), cross), 0.0)
    if Z_LOSS == 0:
        return cross, tl.zeros_like(cross)
    else:
        return cross, tl.where(valid, Z_LOSS * (top + log_sum) * (top + log_sum), 0.0)


@triton.jit
def row_factors(
    upstream, outer, row, sizes, exists, top, log_sum, share, bad, by_share, by_count, Z_LOSS: tl.constexpr
):
    """f; what p counts in the gradient of −Σ q·log p, f·Σq; and in that of the z-loss. No upstream gradient is 1."""
    f = tl.full(row.shape, 1.0, top.dtype)
    if upstream is not None:
        f = tl.load(rows_at(upstream, outer, row, sizes), mask=exists, other=0.0).to(top.dtype)
    f_z = f / by_count.to(f.dtype)
    f = f / by_share.to(f.dtype)
    mass = tl.where(bad, float("nan"), f * share.to(f.dtype))
    if Z_LOSS == 0:
        return f, mass, tl.zeros_like(mass)
    else:
        return f, mass, f_z * (2 * Z_LOSS) * (top + log_sum)


@triton.jit
def write_rows(array, outer, row, sizes, exists, values):
    if array is not None:
        store_rounded(rows_at(array, outer, row, sizes), values, exists)


# --- gradients --------------------------------------------------------------------------------------------------------


@triton.jit
def logits_gradient(exp, scale, scale_z, asked, slope, Z_LOSS: tl.constexpr, SOFTCAP: tl.constexpr):
    """dz from exp(z − m), with the factors that make of it p and its part in either term, and f·q."""
    d = exp * scale - asked
    if Z_LOSS != 0:
        d += exp * scale_z
    if SOFTCAP != 0:
        d *= slope
    return d


@triton.jit
def correct_target(
    grad, outer, row, sizes, of_row, there, at_target, slope, top, total, mass, mass_z, share, f, classes,
    LABEL_SMOOTHING: tl.constexpr, Z_LOSS: tl.constexpr, SOFTCAP: tl.constexpr,
):  # fmt: skip
    """The target's gradient, over the one that was stored there as if it were any class."""
    exp = exp_of(at_target - top)
    if LABEL_SMOOTHING == 0:
        # p − 1 as (exp − total) / total: as precise for a p next to 1 as for any other.
        d = logits_gradient(exp - total, mass / total, 0.0, 0.0, slope, 0.0, SOFTCAP)
        if Z_LOSS != 0:
            d += exp * (mass_z / total) * slope
    else:
        q = (1.0 - LABEL_SMOOTHING + LABEL_SMOOTHING / tl.cast(classes, f.dtype)) * share
        d = logits_gradient(exp, mass / total, mass_z / total, f * q, slope, Z_LOSS, SOFTCAP)
    tl.debug_barrier()  # another thread stored it
    pointers = rows_at(grad, outer, row, sizes) + of_row * grad.column
    tl.store(pointers, d.to(grad.ptr.dtype.element_ty), mask=there)


@triton.jit
def target_gradient(above, log_sum, f, weight, LABEL_SMOOTHING: tl.constexpr):
    """That of probabilities: −f·w·(1 − ε)·log p."""
    return ((LABEL_SMOOTHING - 1.0) * f)[:, None] * (above - log_sum[:, None]) * weight


@triton.jit
def store_gradient(grad_ptrs, d, valid, exists, inside, ALONG_COLUMNS: tl.constexpr):
    """An ignored row's gradient is zero whatever it holds: not one that is multiplied by 0."""
    dtype: tl.constexpr = grad_ptrs.dtype.element_ty
    if ALONG_COLUMNS:  # a vector is of one row: two stores cost less than an instruction for each element
        tl.store(grad_ptrs, d.to(dtype), mask=valid[:, None] & inside)
        tl.store(grad_ptrs, tl.zeros(d.shape, dtype), mask=(exists & ~valid)[:, None] & inside)
    else:
        tl.store(grad_ptrs, tl.where(valid[:, None], d, 0.0).to(dtype), mask=exists[:, None] & inside)
