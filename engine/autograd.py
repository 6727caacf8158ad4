"""Gradients: the backward pass over what graph.py recorded, ``grad`` and ``gradcheck``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from heapq import heappop, heappush
from sys import getrefcount
from typing import Any

import numpy as np

from .gradmode import _mode, enable_grad, is_grad_enabled, no_grad, set_grad_enabled
from .graph import ArrayFunction, Edge, Function, Variable, _numbers, _Saved, _stand_in, compiled, once_differentiable
from .storage import DTYPES, is_floating, namespace, on_device_of

__all__ = [
    "Function", "backward", "enable_grad", "grad", "gradcheck", "is_grad_enabled", "no_grad", "once_differentiable",
    "set_grad_enabled",
]  # fmt: skip


def _leading_to(wanted: set[tuple[int, int]], roots: Iterable[Any]) -> set[Any]:
    """The nodes below the roots from which an edge in ``wanted`` can be reached."""
    seen = set()
    stack = list(roots)
    while stack:
        node = stack.pop()
        if node not in seen:
            seen.add(node)
            stack.extend(e[0] for e in node.edges if e is not None and isinstance(e[0], Function))
    useful: set[Any] = set()
    for node in sorted(seen, key=lambda n: n.number):
        if any(e is not None and ((id(e[0]), e[1]) in wanted or e[0] in useful) for e in node.edges):
            useful.add(node)
    return useful


def _add(a: Any, b: Any) -> Any:
    if isinstance(a, Variable) or isinstance(b, Variable):
        return a + b
    with np.errstate(all="ignore"), on_device_of(b):
        total = a + b
    return np.asarray(total) if isinstance(total, np.generic) else total  # NumPy turns 0-d results into scalars


def _walk(roots: Sequence[tuple[Edge, Any]], keep_graph: bool, create_graph: bool, take: _Taker) -> None:
    """Run the graph backwards from ``roots`` (edge, gradient); what arrives anywhere is offered to ``take``.

    The node that was recorded last is run first, so that all that comes to a node has come before it is run.
    """
    pending: dict[Any, list[Any]] = {}  # the gradients of a node's outputs
    latest: list[tuple[int, Any]] = []  # a heap of those nodes
    runs = take.runs([e[0] for e, _ in roots if isinstance(e[0], Function)])

    def deliver(edge: Edge, grad: Any) -> None:
        target, i = edge
        slots = pending.get(target)
        if slots is None:
            slots = pending[target] = [None] * len(target._outputs)
            if runs is None or target in runs:
                heappush(latest, (-target.number, target))
        slots[i] = grad if slots[i] is None else _add(slots[i], grad)

    for edge, grad in roots:
        if isinstance(edge[0], Variable):
            take.leaf(edge[0], grad, False)
        else:
            deliver(edge, grad)
    with np.errstate(all="ignore"), set_grad_enabled(create_graph):
        while latest:
            node = heappop(latest)[1]
            grads = pending.pop(node)
            take.node(node, grads)
            results = node._run_backward(grads, create_graph)
            del grads
            if not keep_graph:
                node._free()
            for i, edge in enumerate(node.edges):
                # Only this variable may hold a gradient that a leaf is to take over, so it leaves the list.
                grad, results[i] = results[i], None
                if edge is None or grad is None:
                    continue
                grad = _fitted(edge, grad, node)
                if isinstance(edge[0], Variable):
                    alone = _is_alone(grad)  # before the call below holds it, too
                    take.leaf(edge[0], grad, alone)
                else:
                    deliver(edge, grad)
            grad = None
    take.rest(pending)


class _Taker:
    """What a backward pass does with gradients: accumulate them into the ``.grad`` of leaves."""

    def __init__(self, create_graph: bool):
        self.create_graph = create_graph

    def runs(self, roots: list[Any]) -> set[Any] | None:
        """The nodes that have to be run; None: all that a gradient comes to."""
        return None

    def leaf(self, leaf: Any, grad: Any, alone: bool) -> None:
        _accumulate(leaf, grad, alone, self.create_graph)

    def node(self, node: Any, grads: list[Any]) -> None:
        for i, reference in (node._retained or {}).items():
            t = reference()
            if t is not None and grads[i] is not None:
                _accumulate(t, grads[i], False, self.create_graph)

    def rest(self, pending: dict[Any, list[Any]]) -> None:
        """Gradients that arrived at nodes which were not run."""


class _Collector(_Taker):
    """For ``grad``: keep the gradients of some tensors, named by their edges, and leave every ``.grad`` alone."""

    def __init__(self, edges: list[Edge]):
        self.found: dict[tuple[int, int], Any] = {(id(e[0]), e[1]): None for e in edges}

    def runs(self, roots: list[Any]) -> set[Any] | None:
        return _leading_to(set(self.found), roots)

    def leaf(self, leaf: Any, grad: Any, alone: bool) -> None:
        key = (id(leaf), 0)
        if key in self.found:
            before = self.found[key]
            self.found[key] = _owned(grad, alone) if before is None else _add(before, grad)

    def node(self, node: Any, grads: list[Any]) -> None:
        for i, g in enumerate(grads):
            if g is not None and (id(node), i) in self.found:
                self.found[id(node), i] = _owned(g, False)

    def rest(self, pending: dict[Any, list[Any]]) -> None:
        for node, grads in pending.items():
            self.node(node, grads)


def _owned(grad: Any, alone: bool) -> Any:
    if alone or isinstance(grad, Variable):
        return grad
    with on_device_of(grad):
        return grad.copy()


def _fitted(edge: Edge, grad: Any, node: Any) -> Any:
    """The gradient in the dtype of what it belongs to; a wrong shape is the Function's mistake."""
    target, i = edge
    if isinstance(target, Variable):
        shape, dt = target._array.shape, target._array.dtype
    else:
        shape, dt = target._outputs[i]
    if type(grad) is np.ndarray and grad.shape == shape and grad.dtype == dt:
        return grad
    if grad.shape != shape:
        raise RuntimeError(
            f"{node.name()}: backward returned a gradient of shape {list(grad.shape)}, expected {list(shape)}"
        )
    if isinstance(grad, Variable):
        return grad if grad._array.dtype == dt else grad.to(dt)
    if isinstance(grad, np.generic):
        return np.asarray(grad, dt)  # NumPy turns 0-d results into scalars
    with on_device_of(grad):
        return grad if grad.dtype == dt else grad.astype(dt)


def _holders(grad: Any) -> tuple[int, int]:
    """How many references there are to an array, and to the one that it is a view of, seen from here."""
    base = grad.base
    return getrefcount(grad), 0 if base is None else getrefcount(base)


def _is_alone(grad: Any) -> bool:
    """Whether a gradient's memory belongs to nobody but the caller's variable, so that a leaf may take it over without
    a copy. As in torch it is the references that tell. A view has to be a view of all of its memory."""
    if isinstance(grad, Variable):
        return False
    base = grad.base
    if base is None:
        return _holders(grad) <= _OF_ALONE
    if type(base) is not type(grad) or base.size != grad.size or not grad.flags.c_contiguous:
        return False
    del base
    of_grad, of_base = _holders(grad)
    return of_grad <= _OF_ALONE_VIEW[0] and of_base <= _OF_ALONE_VIEW[1]


def _counted(make: Callable[[], Any]) -> tuple[int, int]:
    """What ``_is_alone`` counts of an array that only its caller's variable holds."""
    made = make()

    def of(grad: Any) -> tuple[int, int]:
        return _holders(grad)

    return of(made)


_OF_ALONE, _OF_ALONE_VIEW = _counted(lambda: np.empty(1)), _counted(lambda: np.empty(2).reshape(1, 2))


def _accumulate(leaf: Any, grad: Any, alone: bool, create_graph: bool) -> None:
    if create_graph:
        grad = grad if isinstance(grad, Variable) else leaf._make(grad)
        leaf._grad = grad if leaf._grad is None else leaf._grad + grad
    elif leaf._grad is None:
        leaf._grad = leaf._make(_owned(grad._array if isinstance(grad, Variable) else grad, alone))
    elif leaf._grad.requires_grad:
        leaf._grad = leaf._grad.detach() + leaf._make(grad)
    else:
        with np.errstate(all="ignore"), on_device_of(grad):
            leaf._grad._array += grad
        leaf._grad._history[0] += 1


def _root(t: Any, grad: Any, create_graph: bool, caller: str) -> tuple[Edge, Any]:
    """Check one root of a backward pass, and pair its edge with its upstream gradient."""
    if not isinstance(t, Variable):
        raise TypeError(f"{caller}: expected a Tensor, got {type(t).__name__}")
    edge = t._edge()
    if edge is None:
        raise RuntimeError(f"{caller}: the tensor does not require grad and has no grad_fn")
    x = t._array
    if grad is None:
        if x.size != 1:
            raise RuntimeError(
                f"{caller}: grad can be implicitly created only for scalar outputs, got shape {list(x.shape)}"
            )
        with on_device_of(x):
            ones = namespace(x).empty(x.shape, x.dtype)
            ones.fill(1)
        return edge, t._make(ones) if create_graph else ones
    if not isinstance(grad, Variable):
        raise TypeError(f"{caller}: expected the upstream gradient as a Tensor, got {type(grad).__name__}")
    if grad._array.shape != x.shape:
        raise RuntimeError(
            f"{caller}: the upstream gradient has shape {list(grad._array.shape)}, expected {list(x.shape)}"
        )
    if grad._array.dtype != x.dtype:
        grad = t._make(grad._array.astype(x.dtype)) if not create_graph else grad.to(x.dtype)
    return edge, grad if create_graph else grad._array


def _listed(x: Any) -> list[Any]:
    return list(x) if isinstance(x, (tuple, list)) else [x]


def backward(
    tensors: Any, grad_tensors: Any = None, retain_graph: bool | None = None, create_graph: bool = False
) -> None:
    """Accumulate into the ``.grad`` of every leaf the gradient of the sum of ``tensors`` weighted by ``grad_tensors``.

    Raises:
        RuntimeError: a root that needs no gradient; a non-scalar one without an upstream gradient, or one of another
            shape; a graph that was freed; a saved tensor that was changed in place.
    """
    plain = compiled is not None and grad_tensors is None and not create_graph
    if plain and compiled.backward(tensors, bool(retain_graph)):
        return
    outputs = _listed(tensors)
    upstream = [None] * len(outputs) if grad_tensors is None else _listed(grad_tensors)
    roots = [_root(t, g, create_graph, "backward") for t, g in zip(outputs, upstream, strict=True)]
    keep = create_graph if retain_graph is None else bool(retain_graph)
    if compiled is None or create_graph:
        _walk(roots, keep, create_graph, _Taker(create_graph))
    else:
        compiled.walk(roots, keep)


def _enter_quiet() -> Any:
    quiet = np.errstate(all="ignore")
    quiet.__enter__()
    return quiet


def begin_compiled(tensor_type: type) -> None:
    """Tell the compiled loops what they are to work on."""
    if compiled is not None:
        compiled.begin_tape({
            "Variable": Variable, "Tensor": tensor_type, "ArrayFunction": ArrayFunction, "Saved": _Saved,
            "ndarray": np.ndarray, "asarray": np.asarray, "mode": _mode, "numbers": _numbers, "stand_in": _stand_in,
            "floats": frozenset(d.dtype for d in DTYPES if d.is_floating_point),
            "accumulate": _accumulate, "add": _add, "fitted": _fitted, "retain": _Taker(False).node,
            "enter_quiet": _enter_quiet, "leave_quiet": lambda quiet: quiet.__exit__(None, None, None),
        })  # fmt: skip


def grad(
    outputs: Any,
    inputs: Any,
    grad_outputs: Any = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    allow_unused: bool | None = None,
    *,
    materialize_grads: bool = False,
) -> tuple[Any, ...]:
    """The gradients of ``outputs``, weighted by ``grad_outputs``, with respect to ``inputs``; ``.grad`` is untouched.

    Raises:
        RuntimeError: as ``backward``, and for an input that the outputs do not depend on unless ``allow_unused``.
    """
    out, wrt = _listed(outputs), _listed(inputs)
    upstream = [None] * len(out) if grad_outputs is None else _listed(grad_outputs)
    roots = [_root(t, g, create_graph, "grad") for t, g in zip(out, upstream, strict=True)]
    edges = [t._edge() for t in wrt]
    if None in edges:
        raise RuntimeError("grad: one of the inputs does not require grad")
    collector = _Collector(edges)
    _walk(roots, create_graph if retain_graph is None else retain_graph, create_graph, collector)
    results = []
    for t, (target, i) in zip(wrt, edges, strict=True):
        g = collector.found[id(target), i]
        if g is None and materialize_grads:
            g = namespace(t._array).zeros_like(t._array)
        if g is None and not allow_unused:
            raise RuntimeError(
                "grad: one of the inputs was not used in the graph; allow_unused=True returns None for it"
            )
        results.append(g if g is None or isinstance(g, Variable) else t._make(g))
    return tuple(results)


def gradcheck(
    func: Callable[..., Any],
    inputs: Any,
    eps: float = 1e-6,
    atol: float = 1e-5,
    rtol: float = 1e-3,
    raise_exception: bool = True,
) -> bool:
    """Compare the gradients of ``func`` with central differences, for every float64 input that requires grad.

    The upstream gradient is random, so that a backward that drops or misplaces it is seen.

    Raises:
        ValueError: no input requires grad, or one that does is not float64.
        RuntimeError: the two differ by more than ``atol + rtol·|numerical|`` (or returns False, as asked).
    """
    args = tuple(_listed(inputs))
    checked = [a for a in args if isinstance(a, Variable) and a.requires_grad]
    if not checked:
        raise ValueError("gradcheck: none of the inputs requires grad")
    for a in checked:
        if a._array.dtype != np.float64:
            raise ValueError(f"gradcheck: expected inputs of dtype float64, got {a._array.dtype}")
    outputs = [o for o in _listed(func(*args)) if isinstance(o, Variable) and o.requires_grad]
    draw = np.random.default_rng(0)
    weights = []
    for o in outputs:
        xp = namespace(o._array)
        weights.append(xp.asarray(draw.standard_normal(o._array.shape)).astype(o._array.dtype))
    analytic = grad(outputs, checked, [o._make(w) for o, w in zip(outputs, weights, strict=True)], allow_unused=True)

    def value() -> float:
        with no_grad():
            now = [o for o in _listed(func(*args)) if isinstance(o, Variable) and is_floating(o._array.dtype)]
        return sum(float((o._array * w).sum()) for o, w in zip(now, weights, strict=True))

    for which, (a, g) in enumerate(zip(checked, analytic, strict=True)):
        for at in np.ndindex(a._array.shape):
            kept = a._array[at].copy()
            a._array[at] = kept + eps
            above = value()
            a._array[at] = kept - eps
            below = value()
            a._array[at] = kept
            numerical = (above - below) / (2 * eps)
            got = 0.0 if g is None else float(g._array[at])
            if not abs(got - numerical) <= atol + rtol * abs(numerical):
                if raise_exception:
                    raise RuntimeError(
                        f"gradcheck: input {which} at {at}: backward gives {got}, central differences {numerical}"
                    )
                return False
    return True
