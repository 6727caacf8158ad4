"""Stochastic gradient descent."""

from __future__ import annotations

from typing import Any

from ..storage import Array, namespace
from ..tensor import Tensor
from .optimizer import Optimizer, Params, check_at_least_zero, descent


class SGD(Optimizer):
    """Stochastic gradient descent with momentum, as torch has it.

    Sutskever et al. 2013, "On the importance of initialization and momentum in deep learning", with the
    learning rate outside the velocity: v ← momentum · v + (1 - dampening) · g, where the first g is taken
    whole; p ← p - lr · v (with ``nesterov`` p ← p - lr · (g + momentum · v)). ``weight_decay · p`` is added
    to g first. ``foreach`` and ``fused`` are accepted for torch's sake; there is one implementation.

    Raises:
        ValueError: a negative lr, momentum or weight_decay; ``nesterov`` without momentum or with dampening.
    """

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
    ):
        super().__init__(
            params,
            {
                "lr": lr,
                "momentum": momentum,
                "dampening": dampening,
                "weight_decay": weight_decay,
                "nesterov": nesterov,
                "maximize": maximize,
            },
        )

    def _check(self, options: dict[str, Any]) -> None:
        check_at_least_zero("SGD", options, "lr", "momentum", "weight_decay")
        if options["nesterov"] and (options["momentum"] <= 0 or options["dampening"] != 0):
            raise ValueError(
                "SGD: nesterov expects momentum > 0 and dampening 0, "
                f"got momentum {options['momentum']} and dampening {options['dampening']}"
            )

    def _update_together(self, params: list[Tensor], options: dict[str, Any]) -> bool:
        names: tuple[str, ...] = ()
        steps = [1] * len(params)
        if options["momentum"]:
            names = ("momentum_buffer",)
            steps = [2 if "momentum_buffer" in self.state[p] else 1 for p in params]  # at 1 it is begun
        order = ("lr", "momentum", "dampening", "weight_decay", "nesterov", "maximize")
        return self._run_together("sgd", params, names, steps, tuple([options[k] for k in order]))

    def _update(self, p: Tensor, param: Array, grad: Array, options: dict[str, Any]) -> None:
        momentum = options["momentum"]
        first = momentum != 0 and "momentum_buffer" not in self.state[p]
        sgd(
            param,
            grad,
            self._buffer(p, "momentum_buffer", param) if momentum else None,
            first=first,
            lr=options["lr"],
            momentum=momentum,
            dampening=options["dampening"],
            weight_decay=options["weight_decay"],
            nesterov=options["nesterov"],
            maximize=options["maximize"],
        )


def sgd(
    param: Array,  # (…), written
    grad: Array,  # (…)
    velocity: Array | None,  # (…), written; None without momentum
    *,
    first: bool,
    lr: float,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    maximize: bool,
) -> None:
    """One step of SGD on one parameter; ``first`` says that ``velocity`` holds nothing yet."""
    xp = namespace(param)
    g = descent(param, grad, weight_decay, maximize)
    scratch = xp.empty_like(param)
    if velocity is not None:
        if first:
            velocity[...] = g
        else:
            velocity *= momentum
            velocity += xp.multiply(g, 1 - dampening, out=scratch) if dampening else g
        if nesterov:
            xp.multiply(velocity, momentum, out=scratch)
            g = xp.add(scratch, g, out=scratch)
        else:
            g = velocity
    param -= xp.multiply(g, lr, out=scratch)
