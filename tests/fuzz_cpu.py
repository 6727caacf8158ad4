"""Random calls of the compiled CPU kernels, each compared with the reference in float64.

``python tests/fuzz_cpu.py --minutes 10`` draws shapes, strides, dtypes, options and special values until the time is
up or a call is wrong; ``--seed S --case N`` repeats one call. Besides its value a call must leave its inputs and all
memory around its outputs as they were, and give the same bits again with another number of threads.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import math
import secrets
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from fuzz_case import SPECIAL, THREADS, Case, magnitude, set_num_threads

import tilegrad as tg
from tilegrad import activations, cpu, reference
from tilegrad.activations import ACTIVATIONS
from tilegrad.reference import LossOptions
from tilegrad.storage import wide_dtype

# --- softmax ----------------------------------------------------------------------------------------------------------


def softmax(case: Case) -> None:
    shape, axis = case.shape()
    dtype, log = case.dtype(), case.chance(0.5)
    out_dtype = case.dtype() if case.chance(0.3) else dtype
    compute = max(wide_dtype(dtype), wide_dtype(out_dtype))
    x = case.array(case.numbers(shape), dtype, "x")
    out = case.output(shape, out_dtype)
    truth = case.run("softmax", x, axis - case.one_of(0, len(shape)), log, out=out)["out"]
    below = magnitude(np.float64(x) - np.max(np.float64(x), axis, keepdims=True))
    if log:
        case.close("log_softmax", out, truth, 4 + below + magnitude(truth), compute, 4)
    else:
        case.close("softmax", out, truth, truth * (4 + below), compute, 4, of_exp=1.0)


def softmax_backward(case: Case) -> None:
    shape, axis = case.shape()
    dtype, log = case.dtype(), case.chance(0.5)
    made = np.empty(shape)
    reference.softmax(case.numbers(shape).astype(dtype), axis, log, out=made)
    grad = case.array(case.numbers(shape, special=False), dtype, "grad")
    y = case.array(made, dtype, "y")
    out = case.output(shape, case.dtype() if case.chance(0.3) else dtype)
    truth = case.run("softmax_backward", grad, y, axis, log, out=out)["out"]
    g, p, compute = magnitude(grad), np.float64(y), max(wide_dtype(dtype), wide_dtype(out.dtype))
    if log:
        scale = g + np.exp(p) * (1 + np.where(np.isinf(p), 0, np.abs(p))) * g.sum(axis, keepdims=True)
    else:
        scale = p * (g + (g * p).sum(axis, keepdims=True))
    of_exp = g.sum(axis, keepdims=True)
    case.close("log_softmax gradient" if log else "softmax gradient", out, truth, scale, compute, of_exp=of_exp)


# --- losses -----------------------------------------------------------------------------------------------------------


class Loss:
    """The arguments of a loss, and the terms of its results by the reference's own formulas."""

    def __init__(self, case: Case, shape: tuple[int, ...], dtype: np.dtype, plain: bool = False):
        self.case, self.dtype, self.compute = case, dtype, wide_dtype(dtype)
        self.axis = 1 if len(shape) > 1 else 0
        self.shape, self.classes = shape, shape[self.axis]
        self.row_shape = (*shape[: self.axis], *shape[self.axis + 1 :])
        self.o = LossOptions(
            case.one_of("none", "sum", "mean"),
            int(case.one_of(-100, -1, 0, self.classes - 1)),
            case.one_of(0.0, 0.0, 0.1, 1.0),
            case.one_of(0.0, 0.0, 1e-4, 0.1),
            case.one_of(0.0, 0.0, 5.0, 50.0),
        )
        if plain:
            self.o = self.o._replace(label_smoothing=0.0, z_loss=0.0, softcap=0.0)
        weight = case.rng.random(self.classes) + 0.1
        self.weight = case.array(weight, dtype, "weight") if case.chance(0.4) else None

    def indices(self) -> np.ndarray:
        dtype = self.case.one_of(np.int64, np.int64, np.int32, np.int16, np.int8, np.uint8)
        t = self.case.rng.integers(0, min(self.classes, np.iinfo(dtype).max), self.row_shape)
        if self.o.ignore_index >= np.iinfo(dtype).min and self.o.ignore_index <= np.iinfo(dtype).max:
            t = np.where(self.case.rng.random(self.row_shape) < self.case.one_of(0, 0.2, 1), self.o.ignore_index, t)
        return self.case.array(t, dtype, "target")

    def probabilities(self) -> np.ndarray:
        p = self.case.rng.random(self.shape) * (self.case.rng.random(self.shape) < self.case.one_of(0.3, 1, 1))
        return self.case.array(p / np.maximum(p.sum(self.axis, keepdims=True), 1e-9), self.dtype, "target")

    def upstream(self) -> np.ndarray:
        shape = self.row_shape if self.o.reduction == "none" else ()
        return self.case.array(self.case.one_of(1, 3) * self.case.rng.standard_normal(shape), self.dtype, "upstream")

    def terms(self, logits: np.ndarray, target: np.ndarray, upstream: np.ndarray | None) -> None:
        """``of_loss``, ``of_rows``, ``of_grad`` and ``of_target``: the scales of the results."""
        o, indices, upstream = self.o, target.ndim < logits.ndim, np.ones(()) if upstream is None else upstream
        z, _, target, _ = reference._class_last(logits, target, o, None)
        t = reference._targets(target, self.weight, o, self.classes, indices)
        top, log_sum = reference._log_sum(z)
        p, q = np.exp(z - top[..., None] - log_sum[..., None]), np.abs(t.q)
        below = np.where(np.isneginf(z), 0, magnitude(z - top[..., None])) + magnitude(log_sum)[..., None] + 4
        below = below + o.softcap
        self.z, self.log_sum, self.top = z, log_sum, top
        self.of_rows = (q * below).sum(-1) + o.z_loss * (2 * (top + log_sum) ** 2 + magnitude(top + log_sum) * 4 + 4)
        self.of_rows = np.where(t.valid, self.of_rows, 0)
        denominators = reference._denominators(t, o)
        divisor = min(denominators) if o.reduction == "mean" else 1
        self.of_loss = self.of_rows if o.reduction == "none" else self.of_rows.sum() / divisor
        factors = reference._factors(upstream, denominators, o)
        f, f_z = (np.broadcast_to(magnitude(factor), t.valid.shape)[..., None] for factor in factors)
        mass = f * q.sum(-1, keepdims=True) + f_z * 2 * o.z_loss * (magnitude(top + log_sum) + 1)[..., None]
        of_grad = np.where(np.isneginf(z), 0, p) * below * mass + f * q
        self.mass = np.moveaxis(np.broadcast_to(mass, z.shape), -1, self.axis)
        self.of_grad = np.moveaxis(np.where(t.valid[..., None], of_grad, 0), -1, self.axis)
        of_target = f * (below + np.where(np.isneginf(z), 0, np.abs(z - top[..., None])))
        self.of_target = np.moveaxis(of_target * (1 if self.weight is None else magnitude(self.weight)), -1, self.axis)


def loss_shape(case: Case) -> tuple[int, ...]:
    classes = case.size()
    lead = case.rows(classes)
    shapes = [(lead, classes)] * 6 + [(classes,), (0, classes), (max(1, lead // 6), classes, 3), (2, classes, 1, 3)]
    return case.one_of(*shapes)


def cross_entropy(case: Case) -> None:
    loss = Loss(case, loss_shape(case), case.dtype())
    o, rows = loss.o, loss.row_shape
    logits = case.array(case.numbers(loss.shape), loss.dtype, "logits")
    target = loss.indices() if case.chance(0.7) else loss.probabilities()
    made = {
        "loss": case.output(rows if o.reduction == "none" else (), loss.dtype),
        "lse": case.output((2, *rows), loss.compute) if case.chance(0.5) else None,
        "argmax": case.output(rows, np.int64) if case.chance(0.5) else None,
        "grad": case.output(loss.shape, loss.dtype) if case.chance(0.7) else None,
    }
    truth = case.run("cross_entropy", logits, target, loss.weight, o, **made)
    loss.terms(logits, target, None)
    case.close("loss", made["loss"], truth["loss"], loss.of_loss, loss.compute)
    case.close("loss gradient", made["grad"], truth["grad"], loss.of_grad, loss.compute, of_exp=loss.mass)
    if made["lse"] is not None:
        case.close("maximum", made["lse"][0], loss.top, o.softcap, loss.compute)
        case.close("log of sum", made["lse"][1], loss.log_sum, 4 + magnitude(loss.log_sum) + o.softcap, loss.compute)
    if made["argmax"] is not None and loss.z.size:
        at = np.take_along_axis(loss.z, made["argmax"][..., None], -1)[..., 0]
        case.close("argmax", at, truth["lse"][0] if made["lse"] is not None else loss.top, o.softcap, loss.compute)


def cross_entropy_backward(case: Case) -> None:
    loss = Loss(case, loss_shape(case), case.dtype())
    logits = case.array(case.numbers(loss.shape), loss.dtype, "logits")
    indices = case.chance(0.6)
    target = loss.indices() if indices else loss.probabilities()
    upstream = loss.upstream()
    loss.terms(logits, target, upstream)
    lse = case.array(np.stack([loss.top, loss.log_sum]), loss.compute, "lse", ours=True)
    made = {
        "grad": case.output(loss.shape, loss.dtype),
        "grad_target": None if indices or case.chance(0.5) else case.output(loss.shape, loss.dtype),
    }
    truth = case.run("cross_entropy_backward", upstream, logits, target, loss.weight, lse, loss.o, **made)
    case.close("loss gradient from lse", made["grad"], truth["grad"], loss.of_grad, loss.compute, of_exp=loss.mass)
    case.close("target's gradient", made["grad_target"], truth["grad_target"], loss.of_target, loss.compute)


def nll_loss(case: Case) -> None:
    loss = Loss(case, loss_shape(case), case.dtype(), plain=True)
    logp = case.array(-np.abs(case.numbers(loss.shape)), loss.dtype, "logp")
    target = loss.indices()
    out = case.output(loss.row_shape if loss.o.reduction == "none" else (), loss.dtype)
    truth = case.run("nll_loss", logp, target, loss.weight, loss.o, loss=out)["loss"]
    case.close("nll_loss", out, truth, np.abs(truth), loss.compute)


def nll_loss_backward(case: Case) -> None:
    loss = Loss(case, loss_shape(case), case.dtype(), plain=True)
    logp = case.array(-np.abs(case.numbers(loss.shape)), loss.dtype, "logp")
    target, upstream = loss.indices(), loss.upstream()
    grad = case.output(loss.shape, loss.dtype)
    truth = case.run("nll_loss_backward", upstream, logp, target, loss.weight, loss.o, grad=grad)["grad"]
    case.close("nll_loss gradient", grad, truth, np.abs(truth), loss.compute)


# --- linear -----------------------------------------------------------------------------------------------------------


def lead_of(case: Case) -> tuple[int, ...]:
    return case.one_of((), (0,), (1,), (case.size() % 200 + 1,), (3, case.size() % 50 + 1))


def rounded_factor(dtype: np.dtype) -> float:
    """What a product may lose, in units of float32, where the gradient that it takes is rounded to bfloat16 first."""
    return 8 + (2.0**15 if dtype == tg.bfloat16.dtype else 0)


def of_subnormal(dtype: np.dtype, a: np.ndarray, b: np.ndarray) -> Any:
    """The factors of subnormal numbers in a·b, of magnitudes (…, K) and (K, N): bfloat16 may be multiplied by
    instructions that take them for zeros."""
    return a.sum(-1, keepdims=True) + b.sum(0) + len(b) if dtype == tg.bfloat16.dtype else 0.0


def linear(case: Case) -> None:
    dtype, activation, lead = case.dtype(), case.one_of(None, *ACTIVATIONS), lead_of(case)
    gated = activation is not None and ACTIVATIONS[activation].gated
    k, m = case.size() % 300 + 1, case.size() % (300 if math.prod(lead) else 5000) + 1
    rows, compute = (2 * m if gated else m), wide_dtype(dtype)
    x = case.array(case.numbers((*lead, k)), dtype, "x")
    weight = case.array(case.rng.standard_normal((rows, k)) / k**0.5, dtype, "weight")
    bias = case.array(case.rng.standard_normal(rows), dtype, "bias") if case.chance(0.6) else None
    out = case.output((*lead, m), dtype, dense=True)
    pre = case.output((*lead, rows), dtype, dense=True) if case.chance(0.5) else None
    truth = case.run("linear", x, weight, bias, activation, out=out, pre=pre)
    scale = magnitude(x) @ magnitude(weight).T + (0 if bias is None else magnitude(bias))
    z = np.float64(x) @ np.float64(weight).T + (0 if bias is None else np.float64(bias))
    units, subnormal = 8 + k / 8, of_subnormal(dtype, magnitude(x), magnitude(weight).T)
    case.close("pre-activation", pre, truth["pre"], scale, compute, units, subnormal)
    of_type = np.finfo(compute)
    off = units * (of_type.eps * scale + of_type.smallest_subnormal) + float(of_type.tiny) * subnormal
    of_out = functools.partial(reference._activated, activation=activation)
    half = np.arange(rows) < m
    moved = [
        np.abs(of_out(z + d) - of_out(z)) for d in (off, -off, np.where(half, off, -off), np.where(half, -off, off))
    ]
    size = magnitude(z[..., :m]) * (magnitude(z[..., m:]) if gated else 1)
    scale = np.nan_to_num(np.max(moved, 0) / of_type.eps) + 8 * (np.abs(truth["out"]) + size)
    case.close(f"linear with {activation}", out, truth["out"], scale, compute, 1)


def of_derivative(grad: np.ndarray, saved: np.ndarray, activation: str, dz: np.ndarray) -> np.ndarray:
    """The scale of an activation's gradient."""
    g, s, m = magnitude(grad), magnitude(saved), grad.shape[-1]
    if ACTIVATIONS[activation].gated:
        g, s = np.concatenate([g, g], -1), np.concatenate([s[..., m:], s[..., :m]], -1)
    return np.abs(dz) + g * (1 + s)


def linear_backward(case: Case) -> None:
    dtype, activation, lead = case.dtype(), case.one_of(None, *ACTIVATIONS), lead_of(case)
    act = ACTIVATIONS.get(activation)
    k, m = case.size() % 300 + 1, case.size() % (300 if math.prod(lead) else 5000) + 1
    width, compute = (2 * m if act and act.gated else m), wide_dtype(dtype)
    grad = case.array(case.numbers((*lead, m), special=False), dtype, "grad")
    x = case.array(case.rng.standard_normal((*lead, k)), dtype, "x")
    weight = case.array(case.rng.standard_normal((width, k)), dtype, "weight")
    z = case.one_of(1, 3, 30) * case.rng.standard_normal((*lead, width))
    if act and act.by_sign:
        z = reference._activated(z, activation)
    saved = None if act is None else case.array(z, dtype, "saved", ours=True)
    made = {
        "grad_input": case.output((*lead, k), dtype, dense=True) if case.chance(0.7) else None,
        "grad_weight": case.output((width, k), dtype, dense=True) if case.chance(0.7) else None,
        "grad_bias": case.output((width,), dtype, dense=True) if case.chance(0.7) else None,
    }
    truth = case.run("linear_backward", grad, x, weight, saved, activation, **made)
    of_dz = magnitude(grad)
    if act is not None:
        dz = activations.backward(np, np.concatenate, activation, np.float64(saved), np.float64(grad))
        of_dz = of_derivative(grad, saved, activation, dz)
    of_dz = of_dz.reshape(math.prod(lead), width)
    rows = magnitude(x).reshape(len(of_dz), k)
    scales = {
        "grad_input": (of_dz @ magnitude(weight)).reshape(*lead, k),
        "grad_weight": of_dz.T @ rows,
        "grad_bias": of_dz.sum(0),
    }
    of_product = rounded_factor(dtype)
    units = {"grad_input": of_product + width / 8, "grad_weight": of_product + len(rows) / 8, "grad_bias": 8}
    subnormal = {
        "grad_input": of_subnormal(dtype, of_dz.reshape(*lead, width), magnitude(weight)),
        "grad_weight": of_subnormal(dtype, of_dz.T, rows),
    }
    for name, got in made.items():
        of_exp = subnormal.get(name, 0.0)
        case.close(f"{name} with {activation}", got, truth[name], scales[name], compute, units[name], of_exp)


def linear_cross_entropy(case: Case) -> None:
    samples, features, classes = case.one_of(0, 1, case.size() % 90), case.size() % 70 + 1, case.size() % 3000 + 1
    losses = case.one_of(1, 1, 1, 2, 3)
    loss = Loss(case, (samples, classes, losses), case.dtype())
    dtype, o, rows = loss.dtype, loss.o, loss.row_shape
    target = loss.indices() if case.chance(0.7) else loss.probabilities()
    indices = target.ndim == 2
    values = case.rng.standard_normal((samples, features))
    if indices:  # rows that do not count may hold anything
        values[(target == o.ignore_index).all(1)] = case.one_of(1.0, *SPECIAL[:3])
    x = case.array(values, dtype, "x")
    weight = case.array(case.rng.standard_normal((classes, losses, features)) / features**0.5, dtype, "linear_weight")
    bias = case.array(case.rng.standard_normal((classes, losses)), dtype, "linear_bias") if case.chance(0.5) else None
    forward = case.chance(0.6)
    gradients = not forward or o.reduction != "none"
    upstream = None if forward else loss.upstream()
    made = {
        "loss": case.output(rows if o.reduction == "none" else (), dtype, dense=True) if forward else None,
        "lse": case.output((2, *rows), loss.compute, dense=True) if forward and case.chance(0.4) else None,
        "argmax": None,
        "grad_input": case.output(x.shape, dtype, dense=True) if gradients and case.chance(0.8) else None,
        "grad_weight": case.output(weight.shape, dtype, dense=True) if gradients and case.chance(0.8) else None,
        "grad_bias": case.output((classes, losses), dtype, dense=True) if gradients and case.chance(0.5) else None,
        "grad_target": None if indices or not gradients else case.output(loss.shape, dtype, dense=True),
    }
    truth = case.run(
        "linear_cross_entropy", x, weight, bias, target, loss.weight, o, given={"upstream": upstream}, **made
    )
    kept = np.isfinite(values)
    a, w = np.where(kept, np.float64(x), 0), np.float64(weight)
    logits = np.einsum("nk,cdk->ncd", a, w) + (0 if bias is None else np.float64(bias))
    size = np.einsum("nk,cdk->ncd", np.abs(a), np.abs(w)) + (0 if bias is None else magnitude(bias))
    loss.terms(logits, target, upstream)
    # What a product loses shifts the logits, and the loss by as much; a gradient by as much of itself.
    lost = (1 + features / 8) * (1 + size.max(1, initial=0))
    shifted = loss.of_rows * lost
    if o.reduction != "none":
        count = (target != o.ignore_index).sum() if indices else math.prod(rows)
        shifted = shifted.sum() / (0.1 * count if o.reduction == "mean" else 1)
    case.close("linear + loss", made["loss"], truth["loss"], shifted, loss.compute)
    of_dz = loss.of_grad * lost[:, None]
    scales = {
        "lse": (4 + magnitude(truth["lse"])) * lost if made["lse"] is not None else 0,
        "grad_input": np.einsum("ncd,cdk->nk", of_dz, np.abs(w)),
        "grad_weight": np.einsum("ncd,nk->cdk", of_dz, np.abs(a)),
        "grad_bias": of_dz.sum(0),
        "grad_target": loss.of_target * lost[:, None],
    }
    of_product = rounded_factor(dtype)
    units = {"grad_input": of_product + classes / 8, "grad_weight": of_product + samples / 8}
    subnormal = np.abs(a).sum() + np.abs(w).sum() + of_dz.sum() + of_dz.size if dtype == tg.bfloat16.dtype else 0.0
    for name, scale in scales.items():
        of_exp = subnormal if name in units else 0.0
        case.close(f"linear + loss: {name}", made[name], truth[name], scale, loss.compute, units.get(name, 8), of_exp)


# --- elements ---------------------------------------------------------------------------------------------------------


def scale(case: Case) -> None:
    shape, _ = case.shape()
    dtype = case.dtype()
    values = case.numbers(shape).astype(dtype)
    upstream = np.asarray(case.one_of(0.0, 1.0, -2.5, 1e-3), dtype)
    out = case.output(shape, dtype, dense=True)

    def call() -> None:
        out[...] = values
        cpu.scale(upstream, inplace=out)

    case.repeated(call)
    truth = np.float64(values) * np.float64(upstream)
    case.close("scale", out, truth, np.abs(truth), wide_dtype(dtype))


def convert(case: Case) -> None:
    shape, _ = case.shape()
    x, to = case.array(case.numbers(shape), case.dtype(), "x"), case.dtype()
    got = cpu._converted(x, to)
    case.repeated(lambda: None)
    truth = np.float64(x)
    case.close("convert", got, truth, np.abs(truth) if wide_dtype(to) == x.dtype else 0, wide_dtype(to), 1)


UNGATED = [name for name, act in ACTIVATIONS.items() if not act.gated]


def activation(case: Case) -> None:
    name, dtype, shape = case.one_of(*UNGATED), case.dtype(), case.shape()[0]
    x = case.array(case.numbers(shape), dtype, "x")
    out = case.output(shape, dtype, dense=True)
    case.story.append(name)
    case.repeated(lambda: cpu.activation(x, name, out=out))
    truth = reference._activated(np.float64(x), name)
    case.close(f"activation {name}", out, truth, np.abs(truth) + np.nan_to_num(magnitude(x)), wide_dtype(dtype))


def activation_backward(case: Case) -> None:
    name, dtype, shape = case.one_of(*UNGATED), case.dtype(), case.shape()[0]
    grad = case.array(case.numbers(shape, special=False), dtype, "grad")
    z = case.one_of(1, 3, 30) * case.rng.standard_normal(shape)
    saved = case.array(reference._activated(z, name) if ACTIVATIONS[name].by_sign else z, dtype, "saved")
    out = case.output(shape, dtype, dense=True)
    case.story.append(name)
    case.repeated(lambda: cpu.activation_backward(grad, saved, name, out=out))
    truth = activations.backward(np, np.concatenate, name, np.float64(saved), np.float64(grad))
    case.close(f"gradient of {name}", out, truth, of_derivative(grad, saved, name, truth), wide_dtype(dtype))


def optimisers(case: Case) -> None:
    """Three steps of one optimiser on several parameters, compared with the formulas in float64."""
    dtype = case.one_of(np.float32, np.float64)
    start = [case.rng.standard_normal(case.size() % 40_000) for _ in range(case.one_of(1, 3))]
    parameters = [tg.tensor(v.astype(dtype), requires_grad=True) for v in start]
    options: dict[str, Any] = {
        "lr": case.one_of(0.1, 1e-3), "weight_decay": case.one_of(0.0, 0.1), "maximize": case.chance(0.2)
    }  # fmt: skip
    if case.chance(0.4):
        options["momentum"] = case.one_of(0.0, 0.9)
        options["nesterov"] = options["momentum"] > 0 and case.chance(0.4)
        options["dampening"] = 0.0 if options["nesterov"] else case.one_of(0.0, 0.3)
        optimizer, kind = tg.optim.SGD(parameters, **options), "SGD"
    else:
        options |= {"betas": case.one_of((0.9, 0.999), (0.0, 0.5)), "eps": 1e-8, "amsgrad": case.chance(0.3)}
        kind = case.one_of("Adam", "AdamW")
        optimizer = getattr(tg.optim, kind)(parameters, **options)
    case.story += [kind, repr(options)]
    truths = [{"value": p.numpy(force=True).astype(np.float64)} for p in parameters]
    for step in range(1, 4):
        set_num_threads(case.one_of(*THREADS))
        for p, state in zip(parameters, truths, strict=True):
            grad = case.rng.standard_normal(p.shape).astype(dtype)
            p.grad = tg.tensor(grad)
            step_in_float64(kind, state, grad.astype(np.float64), step, options)
        optimizer.step()
    for p, state in zip(parameters, truths, strict=True):
        case.close(
            kind, p.numpy(force=True), state["value"], 1 + np.abs(state["value"]) + state["lost"], np.dtype(dtype)
        )


def step_in_float64(kind: str, state: dict[str, Any], grad: np.ndarray, step: int, o: dict[str, Any]) -> None:
    x, zero = state["value"], np.zeros(grad.shape)
    g = -grad if o["maximize"] else grad
    terms = np.abs(g) + o["weight_decay"] * np.abs(x)  # that may cancel
    if kind == "AdamW":
        x = x * (1 - o["lr"] * o["weight_decay"])
    else:
        g = g + o["weight_decay"] * x
    if kind == "SGD":
        if o["momentum"]:
            state["v"] = g if step == 1 else o["momentum"] * state["v"] + (1 - o["dampening"]) * g
            g = g + o["momentum"] * state["v"] if o["nesterov"] else state["v"]
        state["value"] = x - o["lr"] * g
        state["lost"] = state.get("lost", zero) + 4 * o["lr"] * terms
        return
    b1, b2 = o["betas"]
    state["m"] = b1 * state.get("m", zero) + (1 - b1) * g
    state["v"] = b2 * state.get("v", zero) + (1 - b2) * g * g
    state["most"] = np.maximum(state.get("most", zero), state["v"]) if o["amsgrad"] else state["v"]
    root = np.sqrt(state["most"] / (1 - b2**step)) + o["eps"]
    state["value"] = x - o["lr"] * (state["m"] / (1 - b1**step)) / root
    state["lost"] = state.get("lost", zero) + 4 * o["lr"] * (1 + np.abs(state["m"]) / root) * (1 + terms / root)


# --- the run ----------------------------------------------------------------------------------------------------------

OPERATIONS: list[Callable[[Case], None]] = [
    *[softmax, softmax_backward] * 3,
    *[cross_entropy, cross_entropy_backward] * 5,
    *[nll_loss, nll_loss_backward, scale, convert, optimisers, activation, activation_backward],
    *[linear, linear_backward, linear_cross_entropy] * 2,
]


def check(seed: int, number: int, worst: dict[str, float]) -> str:
    """One call; returns the operation's name. Raises AssertionError with all that it was drawn as."""
    case = Case(seed, number, worst)
    operation = case.one_of(*OPERATIONS)
    try:
        with np.errstate(all="ignore"):
            operation(case)
    except Exception as error:
        story = "\n  ".join([operation.__name__, *case.story])
        again = f"python tests/fuzz_cpu.py --seed {seed} --case {number}"
        raise AssertionError(f"{error}\n  {story}\nagain with: {again} ({cpu._C.isa()})") from error
    return operation.__name__


def run(seed: int, *, cases: int | None = None, minutes: float = math.inf, verbose: bool = False) -> None:
    """Calls until their number or the time is up; prints how many of each operation, and the largest errors.

    ``verbose`` prints the number of each before it is made, for one that does not come back."""
    worst: dict[str, float] = {}
    end, counts = time.monotonic() + 60 * minutes, dict.fromkeys((f.__name__ for f in OPERATIONS), 0)
    for number in itertools.count():
        if number == cases or time.monotonic() > end:
            break
        if verbose:
            print("case", number, flush=True)
        counts[check(seed, number, worst)] += 1
    print(", ".join(f"{count} {name}" for name, count in counts.items()))
    for what, share in sorted(worst.items(), key=lambda item: -item[1])[:10]:
        print(f"{what}: {share:.2f} of what is allowed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=secrets.randbits(32))
    parser.add_argument("--case", type=int, default=None, help="only this one")
    parser.add_argument("--verbose", action="store_true", help="print the number of each before it is made")
    options = parser.parse_args()
    print(f"seed {options.seed}, {cpu._C.isa()}", flush=True)
    if options.case is None:
        run(options.seed, minutes=options.minutes, verbose=options.verbose)
    else:
        print(check(options.seed, options.case, {}))


if __name__ == "__main__":
    main()
