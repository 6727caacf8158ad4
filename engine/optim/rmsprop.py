"""RMSprop and Adagrad: gradients divided by the root of their mean square, or of the sum of their squares."""

from __future__ import annotations

from typing import Any

from ..storage import Array, namespace
from ..tensor import Tensor
from .optimizer import Optimizer, Params, check_at_least_zero, descent


class RMSprop(Optimizer):
    """RMSprop, as torch has it: v is a running mean of g², and p ← p - lr · g / (√v + eps).

    Source: Hinton's lecture 6e of "Neural networks for machine learning", 2012. ``weight_decay · p`` is added
    to g first; ``centered`` takes the variance in place of v (Graves 2013, "Generating sequences with
    recurrent neural networks"); with ``momentum`` the quotient goes into a velocity. ``foreach`` is accepted
    for torch's sake.

    Raises:
        ValueError: a negative lr, alpha, eps, weight_decay or momentum.
    """

    def __init__(
        self,
        params: Params,
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0,
        momentum: float = 0,
        centered: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
    ):
        super().__init__(
            params,
            {
                "lr": lr,
                "alpha": alpha,
                "eps": eps,
                "weight_decay": weight_decay,
                "momentum": momentum,
                "centered": centered,
                "maximize": maximize,
            },
        )

    def _check(self, options: dict[str, Any]) -> None:
        check_at_least_zero("RMSprop", options, "lr", "alpha", "eps", "weight_decay", "momentum")

    def _update(self, p: Tensor, param: Array, grad: Array, options: dict[str, Any]) -> None:
        rmsprop(
            param,
            grad,
            self._buffer(p, "square_avg", param),
            self._buffer(p, "grad_avg", param) if options["centered"] else None,
            self._buffer(p, "momentum_buffer", param) if options["momentum"] else None,
            lr=options["lr"],
            alpha=options["alpha"],
            eps=options["eps"],
            weight_decay=options["weight_decay"],
            momentum=options["momentum"],
            maximize=options["maximize"],
        )


def rmsprop(
    param: Array,  # (…), written
    grad: Array,  # (…)
    square: Array,  # (…), written: the running mean of the gradient's square
    mean: Array | None,  # (…), written: the running mean of the gradient; None unless centered
    velocity: Array | None,  # (…), written; None without momentum
    *,
    lr: float,
    alpha: float,
    eps: float,
    weight_decay: float,
    momentum: float,
    maximize: bool,
) -> None:
    """One step of RMSprop on one parameter."""
    xp = namespace(param)
    g = descent(param, grad, weight_decay, maximize)
    scratch = xp.multiply(g, g, out=xp.empty_like(param))
    scratch *= 1 - alpha
    square *= alpha
    square += scratch
    if mean is None:
        xp.sqrt(square, out=scratch)
    else:
        xp.subtract(g, mean, out=scratch)
        scratch *= 1 - alpha
        mean += scratch
        xp.multiply(mean, mean, out=scratch)
        xp.subtract(square, scratch, out=scratch)
        xp.sqrt(scratch, out=scratch)
    scratch += eps
    xp.divide(g, scratch, out=scratch)
    if velocity is not None:
        velocity *= momentum
        velocity += scratch
        scratch[...] = velocity
    scratch *= lr
    param -= scratch


class Adagrad(Optimizer):
    """Adagrad, as torch has it: s sums g², and p ← p - lr / (1 + (t - 1) · lr_decay) · g / (√s + eps).

    Source: Duchi et al. 2011, "Adaptive subgradient methods for online learning and stochastic optimization".
    ``weight_decay · p`` is added to g first. ``foreach`` and ``fused`` are accepted for torch's sake.

    Raises:
        ValueError: a negative option.
    """

    def __init__(
        self,
        params: Params,
        lr: float = 1e-2,
        lr_decay: float = 0,
        weight_decay: float = 0,
        initial_accumulator_value: float = 0,
        eps: float = 1e-10,
        foreach: bool | None = None,
        *,
        maximize: bool = False,
        fused: bool | None = None,
    ):
        super().__init__(
            params,
            {
                "lr": lr,
                "lr_decay": lr_decay,
                "weight_decay": weight_decay,
                "initial_accumulator_value": initial_accumulator_value,
                "eps": eps,
                "maximize": maximize,
            },
        )

    def _check(self, options: dict[str, Any]) -> None:
        check_at_least_zero("Adagrad", options, "lr", "lr_decay", "weight_decay", "initial_accumulator_value", "eps")

    def _update(self, p: Tensor, param: Array, grad: Array, options: dict[str, Any]) -> None:
        step = self.state[p].get("step", 0) + 1
        self.state[p]["step"] = step
        adagrad(
            param,
            grad,
            self._buffer(p, "sum", param, options["initial_accumulator_value"]),
            lr=options["lr"] / (1 + (step - 1) * options["lr_decay"]),
            eps=options["eps"],
            weight_decay=options["weight_decay"],
            maximize=options["maximize"],
        )


def adagrad(
    param: Array,  # (…), written
    grad: Array,  # (…)
    total: Array,  # (…), written: the sum of the gradient's square
    *,
    lr: float,
    eps: float,
    weight_decay: float,
    maximize: bool,
) -> None:
    """One step of Adagrad on one parameter."""
    xp = namespace(param)
    g = descent(param, grad, weight_decay, maximize)
    scratch = xp.multiply(g, g, out=xp.empty_like(param))
    total += scratch
    xp.sqrt(total, out=scratch)
    scratch += eps
    xp.divide(g, scratch, out=scratch)
    scratch *= lr
    param -= scratch
