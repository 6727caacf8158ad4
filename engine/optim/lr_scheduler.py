"""Learning-rate schedules, with torch's semantics: call ``step()`` once per epoch, after the optimiser's.

Most follow recursively from the group's present lr, so that two schedules on one optimiser compose and a rate
set by hand is kept; where torch computes from the initial rate, so do they. Making a schedule takes its step
to epoch 0.
"""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from .optimizer import Optimizer

__all__ = [
    "CosineAnnealingLR",
    "ExponentialLR",
    "LRScheduler",
    "LambdaLR",
    "LinearLR",
    "MultiStepLR",
    "OneCycleLR",
    "ReduceLROnPlateau",
    "StepLR",
]


class LRScheduler:
    """Base class of the schedules: ``get_lr`` of a subclass says what each group's lr is at ``last_epoch``.

    ``last_epoch`` other than -1 resumes after that epoch, on an optimiser whose groups hold ``initial_lr``.

    Raises:
        TypeError: not an Optimizer. KeyError: resuming without ``initial_lr`` in the groups.
    """

    def __init__(self, optimizer: Optimizer, last_epoch: int = -1):
        self.optimizer = _checked(optimizer)
        for i, group in enumerate(optimizer.param_groups):
            if last_epoch == -1:
                group.setdefault("initial_lr", group["lr"])
            elif "initial_lr" not in group:
                raise KeyError(
                    f"last_epoch={last_epoch} resumes a schedule: expected 'initial_lr' in param_groups[{i}]"
                )
        self.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]
        self.last_epoch = last_epoch
        self._initial = True  # resuming must not move the rate that was loaded once more
        self.step()
        self._initial = False

    def get_lr(self) -> list[float]:
        """The groups' learning rates at ``last_epoch``, from those they have now."""
        raise NotImplementedError(f"{type(self).__name__} is missing the required get_lr")

    def get_last_lr(self) -> list[float]:
        """The learning rates that the last ``step`` set, one per group."""
        return self._last_lr

    def step(self) -> None:
        """Go to the next epoch, and set the learning rates."""
        self.last_epoch += 1
        self._set(self.get_lr())

    def _set(self, rates: Sequence[float]) -> None:
        for group, lr in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = lr
        self._last_lr = self._present()

    def _present(self) -> list[float]:
        return [group["lr"] for group in self.optimizer.param_groups]

    def _scaled(self, factor: float) -> list[float]:
        return [lr * factor for lr in self._present()]

    def state_dict(self) -> dict[str, Any]:
        """The schedule's own values, without the optimiser."""
        return {name: value for name, value in self.__dict__.items() if name != "optimizer"}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what ``state_dict`` of the same kind of schedule gave."""
        self.__dict__.update(state_dict)


class LambdaLR(LRScheduler):
    """lr = initial lr · lr_lambda(epoch), with one function or one per group; they are not in ``state_dict``.

    Raises:
        ValueError: another number of functions than of groups.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        lr_lambda: Callable[[int], float] | Sequence[Callable[[int], float]],
        last_epoch: int = -1,
    ):
        groups = len(_checked(optimizer).param_groups)
        several: Any = lr_lambda if isinstance(lr_lambda, (list, tuple)) else [lr_lambda] * groups
        self.lr_lambdas: list[Callable[[int], float]] = list(several)
        if len(self.lr_lambdas) != groups:
            raise ValueError(f"LambdaLR: expected {groups} lr_lambdas, one per group, got {len(self.lr_lambdas)}")
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        """From the initial rates."""
        return [base * fn(self.last_epoch) for base, fn in zip(self.base_lrs, self.lr_lambdas, strict=True)]

    def state_dict(self) -> dict[str, Any]:
        """The schedule's values; of callable objects their attributes, of functions nothing."""
        kept = [None if isinstance(fn, types.FunctionType) else dict(fn.__dict__) for fn in self.lr_lambdas]
        return {**super().state_dict(), "lr_lambdas": kept}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the values, and the attributes of callable objects."""
        own = self.lr_lambdas
        super().load_state_dict(state_dict)
        self.lr_lambdas = own
        for fn, attributes in zip(own, state_dict["lr_lambdas"], strict=True):
            if attributes is not None:
                fn.__dict__.update(attributes)


class StepLR(LRScheduler):
    """lr · gamma every ``step_size`` epochs."""

    def __init__(self, optimizer: Optimizer, step_size: int, gamma: float = 0.1, last_epoch: int = -1):
        self.step_size = step_size
        self.gamma = gamma
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        """From the present rates."""
        due = self.last_epoch > 0 and self.last_epoch % self.step_size == 0
        return self._scaled(self.gamma if due else 1)


class MultiStepLR(LRScheduler):
    """lr · gamma at each epoch of ``milestones``; one that stands there twice counts twice."""

    def __init__(self, optimizer: Optimizer, milestones: Iterable[int], gamma: float = 0.1, last_epoch: int = -1):
        self.milestones = sorted(milestones)
        self.gamma = gamma
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        """From the present rates."""
        return self._scaled(self.gamma ** self.milestones.count(self.last_epoch))


class LinearLR(LRScheduler):
    """lr · factor, which goes evenly from ``start_factor`` to ``end_factor`` over ``total_iters`` epochs.

    Raises:
        ValueError: ``start_factor`` outside (0, 1] or ``end_factor`` outside [0, 1].
    """

    def __init__(
        self,
        optimizer: Optimizer,
        start_factor: float = 1 / 3,
        end_factor: float = 1.0,
        total_iters: int = 5,
        last_epoch: int = -1,
    ):
        if not 0 < start_factor <= 1:
            raise ValueError(f"LinearLR: expected start_factor in (0, 1], got {start_factor}")
        if not 0 <= end_factor <= 1:
            raise ValueError(f"LinearLR: expected end_factor in [0, 1], got {end_factor}")
        self.start_factor = start_factor
        self.end_factor = end_factor
        self.total_iters = total_iters
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        """From the present rates."""
        if self.last_epoch == 0:
            return self._scaled(self.start_factor)
        if self._initial or self.last_epoch > self.total_iters:
            return self._present()
        rise = self.end_factor - self.start_factor
        return self._scaled(1 + rise / (self.total_iters * self.start_factor + (self.last_epoch - 1) * rise))


class ExponentialLR(LRScheduler):
    """lr · gamma every epoch."""

    def __init__(self, optimizer: Optimizer, gamma: float, last_epoch: int = -1):
        self.gamma = gamma
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        """From the present rates."""
        return self._scaled(1 if self._initial else self.gamma)


class CosineAnnealingLR(LRScheduler):
    """From the initial lr to ``eta_min`` along half a cosine of ``T_max`` epochs, and back, and so on.

    Source: Loshchilov & Hutter 2017, "SGDR: stochastic gradient descent with warm restarts", without the
    restarts.
    """

    def __init__(self, optimizer: Optimizer, T_max: int, eta_min: float = 0.0, last_epoch: int = -1):
        self.T_max = T_max
        self.eta_min = eta_min
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        """From the present rates, except where the recursion would divide by zero."""
        if self._initial:
            return self._present()
        if (self.last_epoch - 1 - self.T_max) % (2 * self.T_max) == 0:
            up = (1 - math.cos(math.pi / self.T_max)) / 2
            return [lr + (base - self.eta_min) * up for lr, base in zip(self._present(), self.base_lrs, strict=True)]
        now, before = (1 + math.cos(math.pi * t / self.T_max) for t in (self.last_epoch, self.last_epoch - 1))
        return [now / before * (lr - self.eta_min) + self.eta_min for lr in self._present()]


class OneCycleLR(LRScheduler):
    """Per batch: from max_lr / div_factor up to max_lr, then down to max_lr / div_factor / final_div_factor.

    The momentum (or beta1) goes the other way, between ``max_momentum`` and ``base_momentum``. The way up
    takes the share ``pct_start`` of ``total_steps``, or of ``epochs · steps_per_epoch``. Source: Smith &
    Topin 2018, "Super-convergence".

    Raises:
        ValueError: no number of steps; ``pct_start`` outside [0, 1]; an unknown ``anneal_strategy``;
            ``cycle_momentum`` with an optimiser that has none; more steps than there are.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        max_lr: float | Sequence[float],
        total_steps: int | None = None,
        epochs: int | None = None,
        steps_per_epoch: int | None = None,
        pct_start: float = 0.3,
        anneal_strategy: str = "cos",
        cycle_momentum: bool = True,
        base_momentum: float = 0.85,
        max_momentum: float = 0.95,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
        last_epoch: int = -1,
    ):
        if total_steps is None and epochs is not None and steps_per_epoch is not None:
            total_steps = epochs * steps_per_epoch
        if not isinstance(total_steps, int) or total_steps <= 0:
            raise ValueError(
                "OneCycleLR: expected total_steps, or epochs and steps_per_epoch, as positive integers, got "
                f"total_steps={total_steps}, epochs={epochs}, steps_per_epoch={steps_per_epoch}"
            )
        if not 0 <= pct_start <= 1:
            raise ValueError(f"OneCycleLR: expected pct_start in [0, 1], got {pct_start}")
        if anneal_strategy not in ("cos", "linear"):
            raise ValueError(f"OneCycleLR: expected anneal_strategy 'cos' or 'linear', got {anneal_strategy!r}")
        options = _checked(optimizer).defaults
        if cycle_momentum and not ("momentum" in options or "betas" in options):
            raise ValueError(f"OneCycleLR: cycle_momentum expects momentum or betas, which {optimizer} has not")
        self.total_steps = total_steps
        self.pct_start = pct_start
        self.anneal_strategy = anneal_strategy
        self.cycle_momentum = cycle_momentum
        self.base_momentum = base_momentum
        self.max_momentum = max_momentum
        self.max_lrs = _per_group("OneCycleLR", "max_lr", max_lr, optimizer)
        self.final_div_factor = final_div_factor
        if last_epoch == -1:
            for group, top in zip(optimizer.param_groups, self.max_lrs, strict=True):
                group["initial_lr"] = top / div_factor
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        """From the initial rates; sets the momenta too."""
        if self.last_epoch > self.total_steps:
            raise ValueError(f"OneCycleLR: expected at most {self.total_steps} steps, got step {self.last_epoch}")
        peak = self.pct_start * self.total_steps - 1
        if self.last_epoch <= peak:
            falling, share = False, self.last_epoch / peak
        else:
            falling, share = True, (self.last_epoch - peak) / (self.total_steps - 1 - peak)
        rates = []
        for group, low, top in zip(self.optimizer.param_groups, self.base_lrs, self.max_lrs, strict=True):
            end = low / self.final_div_factor
            rates.append(self._anneal(top, end, share) if falling else self._anneal(low, top, share))
            if self.cycle_momentum:
                ends = (self.base_momentum, self.max_momentum) if falling else (self.max_momentum, self.base_momentum)
                momentum = self._anneal(*ends, share)
                if "betas" in group:
                    group["betas"] = (momentum, *group["betas"][1:])
                else:
                    group["momentum"] = momentum
        return rates

    def _anneal(self, start: float, end: float, share: float) -> float:
        if self.anneal_strategy == "linear":
            return start + (end - start) * share
        return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


class ReduceLROnPlateau(LRScheduler):
    """lr · factor once a metric has not improved for more than ``patience`` epochs: call ``step(metric)``.

    Better means below best · (1 - threshold) in mode "min" and above best · (1 + threshold) in mode "max";
    with ``threshold_mode="abs"`` below best - threshold, above best + threshold. After a reduction
    ``cooldown`` epochs are not counted. A reduction by no more than ``eps`` is not made, and none goes below
    ``min_lr`` (one, or one per group).

    Raises:
        ValueError: factor ≥ 1; an unknown mode; another number of min_lrs than of groups. TypeError: not an
        Optimizer.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        mode: str = "min",
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        threshold_mode: str = "rel",
        cooldown: int = 0,
        min_lr: float | Sequence[float] = 0,
        eps: float = 1e-8,
    ):
        if factor >= 1.0:
            raise ValueError(f"ReduceLROnPlateau: expected factor < 1, got {factor}")
        if mode not in ("min", "max"):
            raise ValueError(f"ReduceLROnPlateau: expected mode 'min' or 'max', got {mode!r}")
        if threshold_mode not in ("rel", "abs"):
            raise ValueError(f"ReduceLROnPlateau: expected threshold_mode 'rel' or 'abs', got {threshold_mode!r}")
        self.optimizer = _checked(optimizer)
        self.mode = mode
        self.factor = factor
        self.patience = patience
        self.threshold = threshold
        self.threshold_mode = threshold_mode
        self.cooldown = cooldown
        self.min_lrs = _per_group("ReduceLROnPlateau", "min_lr", min_lr, optimizer)
        self.eps = eps
        self.last_epoch = 0
        self.best = math.inf if mode == "min" else -math.inf
        self.cooldown_counter = 0
        self.num_bad_epochs = 0
        self._last_lr = self._present()

    def step(self, metrics: Any) -> None:  # type: ignore[override]
        """Count the epoch as better or not, by a number or 0-d tensor; reduce the rates if it is time."""
        self.last_epoch += 1
        value = float(metrics)
        if self._is_better(value):
            self.best = value
            self.num_bad_epochs = 0
        else:
            self.num_bad_epochs += 1
        if self.cooldown_counter > 0:
            self.cooldown_counter -= 1
            self.num_bad_epochs = 0
        rates = self._present()
        if self.num_bad_epochs > self.patience:
            lower = [max(lr * self.factor, least) for lr, least in zip(rates, self.min_lrs, strict=True)]
            rates = [new if lr - new > self.eps else lr for lr, new in zip(rates, lower, strict=True)]
            self.cooldown_counter = self.cooldown
            self.num_bad_epochs = 0
        self._set(rates)

    def _is_better(self, value: float) -> bool:
        sign = -1 if self.mode == "min" else 1
        if self.threshold_mode == "abs":
            return sign * value > sign * self.best + self.threshold
        return sign * value > sign * self.best * (1 + sign * self.threshold)


def _checked(optimizer: object) -> Optimizer:
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"expected an Optimizer, got {type(optimizer).__name__}")
    return optimizer


def _per_group(schedule: str, name: str, value: float | Sequence[float], optimizer: Optimizer) -> list[float]:
    groups = len(optimizer.param_groups)
    values: list[Any] = list(value) if isinstance(value, (list, tuple)) else [value] * groups
    if len(values) != groups:
        raise ValueError(f"{schedule}: expected {groups} values of {name}, one per group, got {len(values)}")
    return values
