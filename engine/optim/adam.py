"""Adam and AdamW: one update rule, with weight decay coupled to the gradient or decoupled from it."""

from __future__ import annotations

import math
from typing import Any

from ..storage import Array, namespace
from ..tensor import Tensor
from .optimizer import Optimizer, Params, check_at_least_zero, descent


class Adam(Optimizer):
    """Adam, as torch has it.

    Kingma & Ba 2015, "Adam: a method for stochastic optimization": m and v are running means of g and g², and
    p ← p - lr · m̂ / (√v̂ + eps) with m̂ = m / (1 - beta1ᵗ), v̂ = v / (1 - beta2ᵗ). ``weight_decay · p`` is
    added to g first. ``amsgrad`` puts the largest v so far in its place (Reddi et al. 2018, "On the
    convergence of Adam and beyond"). ``foreach`` and ``fused`` are accepted for torch's sake; there is one
    implementation.

    Raises:
        ValueError: a negative lr, eps or weight_decay; ``betas`` that are not two numbers in [0, 1).
    """

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        amsgrad: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        fused: bool | None = None,
        decoupled_weight_decay: bool = False,
    ):
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": betas,
                "eps": eps,
                "weight_decay": weight_decay,
                "amsgrad": amsgrad,
                "maximize": maximize,
                "decoupled_weight_decay": decoupled_weight_decay,
            },
        )

    def _check(self, options: dict[str, Any]) -> None:
        check_at_least_zero(self._name, options, "lr", "eps", "weight_decay")
        betas = options["betas"]
        if not isinstance(betas, (tuple, list)) or len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"{self._name}: expected betas to be two numbers in [0, 1), got {betas!r}")

    def _update_together(self, params: list[Tensor], options: dict[str, Any]) -> bool:
        steps = [self.state[p].get("step", 0) + 1 for p in params]
        names = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")[: 3 if options["amsgrad"] else 2]
        order = ("eps", "weight_decay", "decoupled_weight_decay", "maximize")
        chosen = (options["lr"], *options["betas"], *[options[k] for k in order])
        done = self._run_together("adam", params, names, steps, chosen)
        if done:
            for p, step in zip(params, steps, strict=True):
                self.state[p]["step"] = step
        return done

    def _update(self, p: Tensor, param: Array, grad: Array, options: dict[str, Any]) -> None:
        step = self.state[p].get("step", 0) + 1
        self.state[p]["step"] = step
        adam(
            param,
            grad,
            self._buffer(p, "exp_avg", param),
            self._buffer(p, "exp_avg_sq", param),
            self._buffer(p, "max_exp_avg_sq", param) if options["amsgrad"] else None,
            step=step,
            lr=options["lr"],
            betas=options["betas"],
            eps=options["eps"],
            weight_decay=options["weight_decay"],
            decoupled=options["decoupled_weight_decay"],
            maximize=options["maximize"],
        )


class AdamW(Adam):
    """Adam with weight decay decoupled from the gradient: p ← (1 - lr · weight_decay) · p before each step.

    Source: Loshchilov & Hutter 2019, "Decoupled weight decay regularization". Options and errors are Adam's.
    """

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
    ):
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, maximize=maximize, decoupled_weight_decay=True)


def adam(
    param: Array,  # (…), written
    grad: Array,  # (…)
    mean: Array,  # (…), written: the running mean of the gradient
    square: Array,  # (…), written: the running mean of its square
    largest: Array | None,  # (…), written: with amsgrad, the largest ``square`` so far
    *,
    step: int,  # this one's number, from 1
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    decoupled: bool,
    maximize: bool,
) -> None:
    """One step of Adam on one parameter."""
    xp = namespace(param)
    beta1, beta2 = betas
    if decoupled and weight_decay:
        param *= 1 - lr * weight_decay
    g = descent(param, grad, 0 if decoupled else weight_decay, maximize)
    scratch = xp.subtract(g, mean, out=xp.empty_like(param))
    scratch *= 1 - beta1
    mean += scratch
    xp.multiply(g, g, out=scratch)
    scratch *= 1 - beta2
    square *= beta2
    square += scratch
    if largest is not None:
        square = xp.maximum(largest, square, out=largest)
    xp.sqrt(square, out=scratch)
    scratch /= math.sqrt(1 - beta2**step)
    scratch += eps
    xp.divide(mean, scratch, out=scratch)
    scratch *= lr / (1 - beta1**step)
    param -= scratch
