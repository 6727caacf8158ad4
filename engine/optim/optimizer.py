"""What all optimisers share: parameter groups, state, the step over them, saving and loading.

An optimiser adds its options' checks and one update rule, a pure function over arrays. The rule sees one
parameter at a time and writes it in place; what is recorded for gradients, half precision and devices is
settled here, around it.
"""

from __future__ import annotations

import copy
import numbers
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from .. import backends
from ..autograd import enable_grad
from ..storage import Array, namespace, on_device_of, wide, wide_dtype
from ..tensor import Tensor

Params = Iterable[Tensor] | Iterable[dict[str, Any]]


class Optimizer:
    """Base class of the optimisers.

    Args:
        params: tensors, or dicts with the key "params" and options that differ from the defaults.
        defaults: the options of groups that do not set their own.

    Raises:
        TypeError: ``params`` is not an iterable of Tensors or dicts. ValueError: it is empty, names a
            parameter twice or one that is not a leaf, or an option is out of its range.
    """

    def __init__(self, params: Params, defaults: dict[str, Any]):
        if isinstance(params, (Tensor, Mapping, str)) or not isinstance(params, Iterable):
            raise TypeError(
                f"{self._name}: expected an iterable of Tensors or dicts as params, got {_typename(params)}"
            )
        groups: list[Any] = list(params)
        if not groups:
            raise ValueError(f"{self._name}: expected at least one parameter, got an empty list")
        self.defaults = defaults
        self.param_groups: list[dict[str, Any]] = []
        self.state: defaultdict[Tensor, dict[str, Any]] = defaultdict(dict)
        for group in groups if isinstance(groups[0], dict) else [{"params": groups}]:
            self.add_param_group(group)

    @property
    def _name(self) -> str:
        return type(self).__name__

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Optimise ``param_group["params"]`` too, with the options that it names and defaults for the others.

        Raises:
            TypeError, ValueError: as the constructor.
        """
        if not isinstance(param_group, dict) or "params" not in param_group:
            raise TypeError(f"{self._name}: expected a dict with the key 'params', got {_typename(param_group)}")
        params = param_group["params"]
        if isinstance(params, set):
            raise TypeError(f"{self._name}: expected params in an order that lasts, got a set; use a list")
        params = [params] if isinstance(params, Tensor) else list(params)
        for p in params:
            if not isinstance(p, Tensor):
                raise TypeError(f"{self._name}: expected Tensors as parameters, got {_typename(p)}")
            if p.grad_fn is not None:
                raise ValueError(f"{self._name}: expected leaf tensors as parameters, got the result of {p.grad_fn!r}")
        if len({id(p) for p in params}) < len(params):
            warnings.warn(
                f"{self._name}: a parameter group names a parameter twice; it will be updated twice",
                stacklevel=3,
            )
        taken = {id(p) for group in self.param_groups for p in group["params"]}
        if any(id(p) in taken for p in params):
            raise ValueError(f"{self._name}: some parameters appear in more than one parameter group")
        group = {**self.defaults, **param_group, "params": params}
        self._check(group)
        self.param_groups.append(group)

    def _check(self, options: dict[str, Any]) -> None:
        """Raise ValueError for an option out of its range; the subclass says which those are."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients of all parameters, or fill them with zeros."""
        for group in self.param_groups:
            for p in group["params"]:
                if p._grad is not None:
                    p._grad = None if set_to_none else p._grad.detach().zero_()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient; ``closure`` computes them anew and returns the loss."""
        loss = None
        if closure is not None:
            with enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p._grad is not None]
            if self._update_together(params, group):
                continue
            with np.errstate(all="ignore"):  # a diverging run gives inf and NaN, as in torch, not warnings
                for p in params:
                    self._step(p, p._grad._array, group)
        return loss

    def _update_together(self, params: list[Tensor], options: dict[str, Any]) -> bool:
        """Update all of them in one call, if there is a kernel for that; otherwise change nothing."""
        return False

    def _run_together(
        self, rule: str, params: list[Tensor], names: tuple[str, ...], steps: list[int], options: tuple[Any, ...]
    ) -> bool:
        """The kernel ``rule`` on the parameters and the state of these names (up to three)."""
        rows, made = [], []
        for p, step in zip(params, steps, strict=True):
            x = p._array
            if type(x) is not np.ndarray or x.itemsize == 2:
                return False
            arrays: list[Array | None] = [None, None, None]
            for i, name in enumerate(names):
                state = self.state[p]
                if name not in state:
                    made.append((state, name, p._make(np.zeros(x.shape, x.dtype))))
                    arrays[i] = made[-1][2]._array
                else:
                    arrays[i] = state[name]._array
            rows.append((x, p._grad._array, *arrays, step))
        if not backends.update_together(rule, rows, *options):
            return False
        for state, name, tensor in made:
            state[name] = tensor
        for p in params:
            p._history[0] += 1
        return True

    def _step(self, p: Tensor, grad: Array, options: dict[str, Any]) -> None:
        array = p._array
        work = wide(array)  # 16-bit parameters are updated in float32 and rounded once
        with on_device_of(array):
            self._update(p, work, wide(grad), options)
            if work is not array:
                array[...] = work
        p._bump()

    def _update(self, p: Tensor, param: Array, grad: Array, options: dict[str, Any]) -> None:
        """Write ``param``, the array of ``p`` in at least float32, and the state of ``p``; never ``grad``."""
        raise NotImplementedError(f"{self._name} defines no update rule")

    def _buffer(self, p: Tensor, name: str, like: Array, value: float = 0.0) -> Array:
        """The array of the state ``name`` of ``p``; made in shape and dtype of ``like`` if there is none."""
        state = self.state[p]
        if name not in state:
            state[name] = p._make(namespace(like).full_like(like, value))
        return state[name]._array

    # --- saving and loading ---------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """``{"state": {index: …}, "param_groups": […]}``, parameters given by their index over all groups.

        The state's tensors are the optimiser's own, not copies.
        """
        index: dict[int, int] = {}
        groups = []
        for group in self.param_groups:
            ids = [index.setdefault(id(p), len(index)) for p in group["params"]]
            groups.append({**group, "params": ids})
        return {"state": {index[id(p)]: dict(s) for p, s in self.state.items()}, "param_groups": groups}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over (copies of) the state and the options of ``state_dict``, on the parameters' devices.

        Raises:
            ValueError: other numbers of groups or of parameters, or a state of another shape than its
                parameter; nothing has been changed then.
        """
        saved = state_dict["param_groups"]
        sizes, own = [len(g["params"]) for g in saved], [len(g["params"]) for g in self.param_groups]
        if sizes != own:
            raise ValueError(
                f"{self._name}.load_state_dict: expected parameter groups of sizes {own}, got sizes {sizes}"
            )
        params = {
            i: p
            for group, ours in zip(saved, self.param_groups, strict=True)
            for i, p in zip(group["params"], ours["params"], strict=True)
        }
        state: defaultdict[Tensor, dict[str, Any]] = defaultdict(dict)
        for i, entries in state_dict["state"].items():
            p = params[i]
            state[p] = {name: self._loaded(p, name, value) for name, value in entries.items()}
        options = [{k: copy.deepcopy(v) for k, v in group.items() if k != "params"} for group in saved]
        groups = [{**ours, **new} for ours, new in zip(self.param_groups, options, strict=True)]
        for group in groups:
            self._check(group)
        self.state, self.param_groups = state, groups

    def _loaded(self, p: Tensor, name: str, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return copy.deepcopy(value)
        if value.shape != p.shape:
            raise ValueError(
                f"{self._name}.load_state_dict: expected state {name!r} of shape {list(p.shape)}, "
                f"got {list(value.shape)}"
            )
        return value.detach().to(p.device).to(wide_dtype(p._array.dtype)).clone()

    def __repr__(self) -> str:
        lines = []
        for i, group in enumerate(self.param_groups):
            lines += [""] * (i > 0) + [f"Parameter Group {i}"]
            lines += [f"    {key}: {group[key]}" for key in sorted(group) if key != "params"]
        return f"{self._name} (\n" + "\n".join(lines) + "\n)"


def descent(param: Array, grad: Array, weight_decay: float, maximize: bool) -> Array:
    """±grad + weight_decay · param: ``grad`` itself where that changes nothing, else a new array."""
    xp = namespace(param)
    if maximize:
        grad = xp.negative(grad, out=xp.empty_like(grad))
    if weight_decay:
        decay = xp.multiply(param, weight_decay, out=xp.empty_like(param))
        grad = xp.add(decay, grad, out=decay)
    return grad


def check_at_least_zero(optimizer: str, options: dict[str, Any], *names: str) -> None:
    """ValueError unless each of these options is a number ≥ 0."""
    for name in names:
        value: Any = options[name]
        if not (isinstance(value, numbers.Real) and float(value) >= 0):  # NaN is not either
            raise ValueError(f"{optimizer}: expected {name} >= 0, got {value!r}")


def _typename(value: object) -> str:
    return type(value).__name__
