"""The fused operations in plain array code: what every backend has to equal, and the fallback of last resort.

Arrays are NumPy's or CuPy's, of any strides; every function writes into the outputs it is handed and returns nothing.
An output that is None is not wanted. Everything is computed in float64 and rounded once, when it is written: this is
the oracle, so it is exact before it is fast. Rows are what remains of the logits' shape without the class dimension.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from . import activations
from .activations import ACTIVATIONS
from .storage import Array, namespace

CHUNK = 1 << 21  # logits that linear_cross_entropy holds at a time


class LossOptions(NamedTuple):
    """What a cross-entropy computes, beside its arrays.

    ``softcap`` c replaces the logits z by c·tanh(z/c) (0: off). Each row's loss is −Σ q·log softmax(z), where q are the
    class weights times the target, smoothed by ``label_smoothing``, plus ``z_loss``·logsumexp(z)².
    """

    reduction: str = "mean"
    ignore_index: int = -100
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    softcap: float = 0.0


def _exact(x: Array) -> Array:
    return x.astype(np.float64, copy=False)


# --- linear -----------------------------------------------------------------------------------------------------------


def linear(
    x: Array,  # (…, K)
    weight: Array,  # (M, K), or (2M, K) for a gated activation: gate above up
    bias: Array | None,  # (M) or (2M)
    activation: str | None,
    *,
    out: Array,  # (…, M)
    pre: Array | None,  # (…, M) or (…, 2M): the pre-activation
    tf32: bool = False,  # float32 products may be TF32; here they never are
) -> None:
    """out = activation(x Wᵀ + b)."""
    z = _matmul(_exact(x), _exact(weight).T)
    if bias is not None:
        z = z + _exact(bias)
    if pre is not None:
        pre[...] = z
    out[...] = _activated(z, activation)


def _matmul(a: Array, b: Array) -> Array:
    """(…, K) @ (K, M) as one product of matrices."""
    rows = namespace(a).ascontiguousarray(a).reshape(int(np.prod(a.shape[:-1])), a.shape[-1])
    return (rows @ b).reshape(*a.shape[:-1], b.shape[1])


def _activated(z: Array, activation: str | None) -> Array:
    if activation is None:
        return z
    act, xp = ACTIVATIONS[activation], namespace(z)
    if act.gated:
        gate, up = xp.split(z, 2, axis=-1)
        return act.of(xp, gate) * up
    return act.of(xp, z)


def linear_backward(
    grad: Array,  # (…, M)
    x: Array,
    weight: Array,
    saved: Array | None,  # the pre-activation (or, where only its sign counts, the output)
    activation: str | None,
    *,
    grad_input: Array | None,
    grad_weight: Array | None,
    grad_bias: Array | None,
    tf32: bool = False,
) -> None:
    """dZ = dY · act'(Z); dX = dZ W; dW = dZᵀ X; db = Σ dZ."""
    dz, xp = _exact(grad), namespace(grad)
    if activation is not None:
        dz = activations.backward(xp, xp.concatenate, activation, _exact(saved), dz)
    if grad_input is not None:
        grad_input[...] = _matmul(dz, _exact(weight))
    dz = dz.reshape(-1, weight.shape[0])
    if grad_weight is not None:
        grad_weight[...] = dz.T @ _exact(x).reshape(len(dz), x.shape[-1])
    if grad_bias is not None:
        grad_bias[...] = dz.sum(0)


# --- softmax ----------------------------------------------------------------------------------------------------------


def softmax(x: Array, dim: int, log: bool, *, out: Array) -> None:
    """Along ``dim``: exp(x) / Σ exp(x), or its logarithm; ``out`` may be of another dtype than ``x``."""
    xp = namespace(x)
    z = _exact(x) - _exact(x.max(axis=dim, keepdims=True))
    total = xp.exp(z).sum(axis=dim, keepdims=True)
    out[...] = z - xp.log(total) if log else xp.exp(z) / total


def softmax_backward(grad: Array, y: Array, dim: int, log: bool, *, out: Array) -> None:
    """From the output y: g − exp(y)·Σg for the logarithm, y·(g − Σ g·y) otherwise."""
    g, y = _exact(grad), _exact(y)
    if log:
        out[...] = g - namespace(g).exp(y) * g.sum(axis=dim, keepdims=True)
    else:
        out[...] = y * (g - (g * y).sum(axis=dim, keepdims=True))


# --- the rows of a loss -----------------------------------------------------------------------------------------------


class Targets(NamedTuple):
    """What the targets alone say, per row."""

    q: Array  # (rows, C): how much −log p of each class counts
    valid: Array  # (rows): not ignored
    share: Array  # (rows): what the row adds to the denominator of a mean


def first_bad_index(target: Array, classes: int, ignore_index: int) -> int | None:
    """The first class index outside of [0, classes) that is not to be ignored."""
    bad = target[(target != ignore_index) & ((target < 0) | (target >= classes))]
    return int(bad.flat[0]) if bad.size else None


def _targets(target: Array, weight: Array | None, o: LossOptions, classes: int, indices: bool) -> Targets:
    """``target`` is (rows) class indices, or (rows, C) probabilities. A target out of range makes its row NaN."""
    xp = namespace(target)
    w = xp.ones(classes) if weight is None else _exact(weight)
    smooth, each = 1 - o.label_smoothing, o.label_smoothing / max(classes, 1)
    if not indices:
        ones = xp.ones(target.shape[:-1])
        return Targets(w * (smooth * _exact(target) + each), ones > 0, ones)
    valid = target != o.ignore_index
    hit = target[..., None] == xp.arange(classes)
    share = xp.where(valid, (hit * w).sum(-1), 0)
    q = w * (smooth * hit + each)
    return Targets(xp.where((valid & ~hit.any(-1))[..., None], xp.nan, q), valid, share)


def _denominators(t: Targets, o: LossOptions) -> tuple[Any, Any]:
    """What a mean divides the cross-entropy and the z-loss by."""
    return t.share.sum(dtype=np.float64), t.valid.sum(dtype=np.float64)


def _reduced(cross: Array, square: Array, t: Targets, o: LossOptions) -> Array:
    """The losses of all rows, from −Σ q·log p and λ·lse² of each."""
    if o.reduction == "none":
        return cross + square
    cross, square = cross.sum(dtype=np.float64), square.sum(dtype=np.float64)
    if o.reduction == "mean":
        by_share, by_count = _denominators(t, o)
        cross = cross / by_share
        square = square / by_count if o.z_loss else 0.0
    return cross + square


def _factors(upstream: Array, denominators: tuple[Any, Any], o: LossOptions) -> tuple[Array, Array]:
    """The upstream gradient of each row's two terms: (rows) or 0-d."""
    g = _exact(upstream)
    if o.reduction != "mean":
        return g, g
    by_share, by_count = denominators
    return g / by_share, g / by_count


def _capped(logits: Array, o: LossOptions) -> tuple[Array, Array | None]:
    """The logits as the loss sees them, and their slope under soft-capping."""
    z = _exact(logits)
    if not o.softcap:
        return z, None
    t = namespace(z).tanh(z / o.softcap)
    return o.softcap * t, 1 - t * t


def _log_sum(z: Array) -> tuple[Array, Array]:
    """(rows, C) → the maximum of each row and the log of the sum above it. Their sum is the logsumexp; kept apart,
    they lose nothing where the logits are large."""
    xp = namespace(z)
    top = z.max(-1)
    return top, xp.log(xp.exp(z - top[..., None]).sum(-1))


def _row_losses(z: Array, lse: tuple[Array, Array], t: Targets, o: LossOptions) -> tuple[Array, Array]:
    """−Σ q·log p and λ·lse² of each row; 0 for ignored ones."""
    xp = namespace(z)
    log_p = z - lse[0][..., None] - lse[1][..., None]
    # A class without weight may have p = 0; but a row of NaN has no loss, even if none of its classes has a weight.
    cross = 0 * lse[1] - xp.where(t.q != 0, t.q * log_p, 0).sum(-1)
    square = o.z_loss * (lse[0] + lse[1]) ** 2
    return xp.where(t.valid, cross, 0), xp.where(t.valid, square, 0)


def _row_gradients(
    z: Array, slope: Array | None, lse: tuple[Array, Array], t: Targets, factors: tuple[Array, Array], o: LossOptions
) -> Array:
    """The gradient of the logits: p·(f·Σq + f_z·2λ·lse) − f·q, through the soft-cap; 0 for ignored rows."""
    xp = namespace(z)
    f, f_z = (xp.broadcast_to(factor, t.valid.shape)[..., None] for factor in factors)
    top, log_sum = (part[..., None] for part in lse)
    mass = f * t.q.sum(-1, keepdims=True)
    if o.z_loss:
        mass = mass + f_z * (2 * o.z_loss) * (top + log_sum)
    d = xp.exp(z - top - log_sum) * mass - f * t.q
    if slope is not None:
        d = d * slope
    return xp.where(t.valid[..., None], d, 0)


def _target_gradients(z: Array, lse: tuple[Array, Array], weight: Array | None, f: Array, o: LossOptions) -> Array:
    """The gradient of class probabilities: −f·w·(1 − smoothing)·log p."""
    xp = namespace(z)
    f = xp.broadcast_to(f, z.shape[:-1])[..., None]
    log_p = z - lse[0][..., None] - lse[1][..., None]
    return -(1 - o.label_smoothing) * f * log_p * (1 if weight is None else _exact(weight))


def _flag_bad(target: Array, classes: int, o: LossOptions, flag: Array | None) -> None:
    if flag is not None:
        flag |= ((target != o.ignore_index) & ((target < 0) | (target >= classes))).any()


# --- negative log-likelihood ------------------------------------------------------------------------------------------


def nll_loss(
    logp: Array,  # (C), (N, C) or (N, C, d…)
    target: Array,  # the same without C: class indices
    weight: Array | None,  # (C)
    o: LossOptions,  # reduction and ignore_index count
    *,
    loss: Array,  # 0-d, or the rows
    flag: Array | None,
) -> None:
    """−w[t]·logp[t] of each row, reduced; ignored rows count nothing."""
    x, xp = namespace(logp).moveaxis(_exact(logp), 1 if logp.ndim > 1 else 0, -1), namespace(logp)
    _flag_bad(target, x.shape[-1], o, flag)
    t = _targets(target, weight, o, x.shape[-1], True)
    cross = xp.where(t.valid, -xp.where(t.q != 0, t.q * x, 0).sum(-1), 0)
    loss[...] = _reduced(cross, xp.zeros_like(cross), t, o)


def nll_loss_backward(
    upstream: Array, logp: Array, target: Array, weight: Array | None, o: LossOptions, *, grad: Array
) -> None:
    """−f·w[t] at the target, 0 elsewhere."""
    xp = namespace(logp)
    axis = 1 if logp.ndim > 1 else 0
    t = _targets(target, weight, o, logp.shape[axis], True)
    f = xp.broadcast_to(_factors(upstream, _denominators(t, o), o)[0], t.valid.shape)[..., None]
    xp.moveaxis(grad, axis, -1)[...] = xp.where(t.valid[..., None] & (t.q != 0), -f * t.q, 0)


# --- cross-entropy ----------------------------------------------------------------------------------------------------


def cross_entropy(
    logits: Array,  # (C), (N, C) or (N, C, d…)
    target: Array,  # the rows: class indices; or the shape of the logits: class probabilities
    weight: Array | None,  # (C)
    o: LossOptions,
    *,
    loss: Array,  # 0-d, or the rows
    lse: Array | None,  # (2, rows): maximum and log of the sum above it
    argmax: Array | None,  # (rows)
    grad: Array | None,  # the gradient of the logits for an upstream gradient of 1
    flag: Array | None,  # 1 element: set if a target is out of range
) -> None:
    """The loss; in the same pass, on request, its gradient, and each row's logsumexp and argmax."""
    z, slope, target, out = _class_last(logits, target, o, grad)
    indices = target.ndim < z.ndim
    if indices:
        _flag_bad(target, z.shape[-1], o, flag)
    t = _targets(target, weight, o, z.shape[-1], indices)
    parts = _log_sum(z)
    loss[...] = _reduced(*_row_losses(z, parts, t, o), t, o)
    if lse is not None:
        lse[0], lse[1] = parts
    if argmax is not None:
        argmax[...] = z.argmax(-1)
    if out is not None:
        one = namespace(z).ones(())
        out[...] = _row_gradients(z, slope, parts, t, _factors(one, _denominators(t, o), o), o)


def cross_entropy_backward(
    upstream: Array,  # 0-d, or the rows
    logits: Array,
    target: Array,
    weight: Array | None,
    lse: Array,  # what the forward wrote; not needed here, where the rows are summed again
    o: LossOptions,
    *,
    grad: Array | None,
    grad_target: Array | None,  # of class probabilities
) -> None:
    """The gradients, with every row's probabilities made again from its logits."""
    del lse
    z, slope, target, out = _class_last(logits, target, o, grad)
    t = _targets(target, weight, o, z.shape[-1], target.ndim < z.ndim)
    factors = _factors(upstream, _denominators(t, o), o)
    parts = _log_sum(z)
    if out is not None:
        out[...] = _row_gradients(z, slope, parts, t, factors, o)
    if grad_target is not None:
        of_target = _target_gradients(z, parts, weight, factors[0], o)
        grad_target[...] = namespace(z).moveaxis(of_target, -1, 1 if logits.ndim > 1 else 0)


def _class_last(
    logits: Array, target: Array, o: LossOptions, grad: Array | None
) -> tuple[Array, Array | None, Array, Array | None]:
    """Logits, their soft-cap slope, target and gradient with the class dimension moved to the end (views)."""
    xp = namespace(logits)
    axis = 1 if logits.ndim > 1 else 0
    z, slope = _capped(xp.moveaxis(logits, axis, -1), o)
    target = xp.moveaxis(target, axis, -1) if target.ndim == logits.ndim else target
    return z, slope, target, None if grad is None else xp.moveaxis(grad, axis, -1)


def scale(upstream: Array, *, inplace: Array) -> None:
    """A gradient that a forward pass made for an upstream gradient of 1, for the scalar that came."""
    inplace *= upstream


# --- linear + cross-entropy -------------------------------------------------------------------------------------------


def linear_cross_entropy(
    x: Array,  # (N, K)
    linear_weight: Array,  # (C, D, K): D losses for every sample
    linear_bias: Array | None,  # (C, D)
    target: Array,  # (N, D) class indices or (N, C, D) class probabilities
    weight: Array | None,  # (C)
    o: LossOptions,
    *,
    upstream: Array | None,  # 0-d or (N, D); None: 1
    loss: Array | None,  # 0-d or (N, D)
    lse: Array | None,  # (2, N, D)
    argmax: Array | None,  # (N, D)
    grad_input: Array | None,
    grad_weight: Array | None,
    grad_bias: Array | None,
    grad_target: Array | None,
    flag: Array | None,
    tf32: bool = False,
) -> None:
    """Cross-entropy of the logits x Wᵀ + b, forward and backward, a chunk of rows at a time: the logits of all rows
    never exist together. Gradients are summed over the chunks in float64."""
    xp = namespace(x)
    classes, losses, features = linear_weight.shape
    w = _exact(linear_weight).reshape(-1, features)
    indices = target.ndim == 2
    rows = target if indices else xp.moveaxis(target, 1, -1)
    if indices:
        _flag_bad(target, classes, o, flag)
    # For a mean the targets of all rows are needed before the first chunk, (N, D) of them at a time.
    denominators = _mean_denominators(rows, weight, o, classes, indices) if o.reduction == "mean" else (1.0, 1.0)
    g = xp.ones(()) if upstream is None else upstream
    sums = {name: None if out is None else xp.zeros(out.shape) for name, out in (("w", grad_weight), ("b", grad_bias))}
    total = xp.zeros(2)
    step = max(1, CHUNK // max(1, classes * losses))
    for start in range(0, len(x), step):
        part = slice(start, start + step)
        flat = _matmul(_exact(x[part]), w.T)
        if linear_bias is not None:
            flat = flat + _exact(linear_bias).reshape(-1)
        z, slope = _capped(xp.moveaxis(flat.reshape(-1, classes, losses), 1, -1), o)
        t = _targets(rows[part], weight, o, classes, indices)
        pieces = _log_sum(z)
        if loss is not None:
            cross, square = _row_losses(z, pieces, t, o)
            if o.reduction == "none":
                loss[part] = cross + square
            else:
                total = total + xp.stack([cross.sum(), square.sum()])
        if lse is not None:
            lse[0, part], lse[1, part] = pieces
        if argmax is not None:
            argmax[part] = z.argmax(-1)
        factors = _factors(g if g.ndim == 0 else g[part], denominators, o)
        if grad_target is not None:
            of_target = _target_gradients(z, pieces, weight, xp.broadcast_to(factors[0], t.valid.shape), o)
            grad_target[part] = xp.moveaxis(of_target, -1, 1)
        if grad_input is None and sums["w"] is None and sums["b"] is None:
            continue
        dz = xp.moveaxis(_row_gradients(z, slope, pieces, t, factors, o), -1, 1)
        if grad_input is not None:
            grad_input[part] = dz.reshape(len(z), -1) @ w
        if sums["w"] is not None:
            for d in range(losses):  # an ignored row may hold NaN, and 0·NaN is NaN: it is left out
                sums["w"][:, d] += dz[..., d].T @ xp.where(t.valid[:, d, None], _exact(x[part]), 0)
        if sums["b"] is not None:
            sums["b"] += dz.sum(0)
    if loss is not None and o.reduction != "none":
        by_share, by_count = denominators
        loss[...] = total[0] / by_share + (total[1] / by_count if o.z_loss else 0.0)
    for out, summed in ((grad_weight, sums["w"]), (grad_bias, sums["b"])):
        if out is not None:
            out[...] = summed


def _mean_denominators(
    rows: Array, weight: Array | None, o: LossOptions, classes: int, indices: bool
) -> tuple[Any, Any]:
    xp = namespace(rows)
    if not indices:
        count = float(np.prod(rows.shape[:-1]))
        return np.float64(count), np.float64(count)
    valid = rows != o.ignore_index
    share = valid if weight is None else xp.where(valid, _exact(weight)[xp.clip(rows, 0, classes - 1)], 0)
    return share.sum(dtype=np.float64), valid.sum(dtype=np.float64)
