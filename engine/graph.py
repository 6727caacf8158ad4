"""The tape: Functions record themselves as they run, and a backward pass walks the record.

A recorded call is an instance of its Function: the ``ctx`` that forward and backward share, and the node of the graph.
The node knows its inputs by ``edges`` (the node that made the input, or the leaf itself), never by the tensors, so a
graph keeps alive only what its derivatives need.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import numpy as np

from .gradmode import _mode, no_grad
from .storage import Array, float32, is_floating, namespace, on_device_of

compiled: Any = None  # the extension, which has the loops of a training step; None where there is none
with contextlib.suppress(ImportError):
    from . import _C

    compiled = _C

Edge = tuple[Any, int]  # (the node that made a tensor, which of its outputs) or (a leaf, 0)


class Variable:
    """What the tape needs to know of a tensor; ``Tensor`` is its only subclass."""

    __slots__ = ("__weakref__", "_array", "_base", "_grad", "_history", "_output", "_seen", "grad_fn", "requires_grad")
    _array: Array
    _base: Any  # the tensor that this one is a view of
    _grad: Any
    _history: list[int]  # shared by all views of one memory: [writes to it, recorded in-place ops on it]
    _output: int  # which output of grad_fn this is
    _seen: int  # _history[1] when grad_fn was last right
    grad_fn: Any
    requires_grad: bool

    if TYPE_CHECKING:  # whatever else a Tensor has

        def __getattr__(self, name: str) -> Any: ...

    @staticmethod
    def _make(array: Array) -> Any:
        """A new tensor over ``array``, of the plain tensor type, without gradient."""
        raise NotImplementedError

    def _edge(self) -> Edge | None:
        """Where a gradient for this tensor goes; None if it needs none."""
        raise NotImplementedError


# --- Functions --------------------------------------------------------------------------------------------------------

_numbers = itertools.count()  # of recorded calls: an input's number is always below its user's
_stand_ins: dict[int, Variable] = {}


def _stand_in(t: Variable) -> Variable:
    """An empty tensor of the library and device of ``t``: what a node keeps in its place, so ``t`` can be freed."""
    x = t._array
    where = -1 if type(x) is np.ndarray else int(x.device.id)
    if where not in _stand_ins:
        with on_device_of(x):
            _stand_ins[where] = t._make(namespace(x).empty(0, x.dtype))
    return _stand_ins[where]


class Function:
    """A differentiable operation, by torch's interface::

        class Cube(Function):
            @staticmethod
            def forward(ctx, x):
                ctx.save_for_backward(x)
                return x * x * x

            @staticmethod
            def backward(ctx, grad):
                (x,) = ctx.saved_tensors
                return 3 * x * x * grad

        y = Cube.apply(x)

    ``forward`` gets tensors and is not recorded; ``backward`` gets a gradient for each output and returns one (or None)
    for each argument of ``forward``. It is written with differentiable operations, so second derivatives work too.
    """

    edges: tuple[Edge | None, ...] = ()
    needs_input_grad: tuple[bool, ...] = ()
    number = -1
    _freed = False
    _like: Any
    _saved: tuple[Any, ...] = ()
    _outputs: tuple[tuple[tuple[int, ...], np.dtype], ...] = ()  # shape and dtype of each
    _retained: dict[int, Any] | None = None  # weak references to the tensors that retain_grad() was called on
    _undifferentiable: tuple[int, ...] = ()
    _dirty: tuple[int, ...] = ()
    _materialize = True
    warns = True  # whether NumPy may, so that the compiled loops have to hush it: 0/0 is a value here, as in torch

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Any:
        """The operation's value."""
        raise NotImplementedError("a Function needs a static forward(ctx, ...)")

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """The gradients of forward's arguments from those of its outputs."""
        raise NotImplementedError("a Function that is differentiated needs a static backward(ctx, ...)")

    def name(self) -> str:
        """How the node is called in a tensor's repr."""
        return f"{type(self).__name__}Backward"

    def save_for_backward(self, *tensors: Any) -> None:
        """Keep input or output tensors for ``backward``; what changes them in place before then is an error."""
        self._saved = tensors

    @property
    def saved_tensors(self) -> tuple[Any, ...]:
        """The tensors given to ``save_for_backward``."""
        self._check_alive()
        return tuple(s.unpack(self) if isinstance(s, _Saved) else s for s in self._saved)

    def mark_non_differentiable(self, *tensors: Variable) -> None:
        """These outputs get no gradient."""
        self._undifferentiable = tuple(map(id, tensors))

    def mark_dirty(self, *tensors: Variable) -> None:
        """These inputs were changed in place by ``forward`` (which returns them)."""
        self._dirty = tuple(map(id, tensors))
        for t in tensors:
            t._history[0] += 1

    def set_materialize_grads(self, value: bool) -> None:
        """Whether outputs that got no gradient hand zeros (the default) or None to ``backward``."""
        self._materialize = value

    @classmethod
    def apply(cls, *args: Any) -> Any:
        """Run ``forward``, and record it if a tensor argument needs a gradient."""
        ctx = cls()
        tensors = [a for a in args if isinstance(a, Variable)]
        recording = _mode.enabled and any(t.requires_grad for t in tensors)
        ctx.needs_input_grad = tuple(isinstance(a, Variable) and a.requires_grad for a in args)
        edges = tuple(a._edge() if isinstance(a, Variable) and recording else None for a in args)
        with no_grad():
            result = cls.forward(ctx, *args)
        outputs = result if isinstance(result, tuple) else (result,)
        if not recording:
            return result
        ctx._like = _stand_in(tensors[0])
        ctx._record(edges)
        made = []
        for i, output in enumerate(outputs):
            if isinstance(output, Variable) and id(output) not in ctx._undifferentiable:
                # An input handed back, unless declared changed, is not the output: it keeps its own history.
                alias = id(output) in map(id, tensors) and id(output) not in ctx._dirty
                made.append(ctx._attach(output._make(output._array) if alias else output, i))
            else:
                made.append(output)
        ctx._outputs = tuple(
            (o.shape, o._array.dtype) if isinstance(o, Variable) else ((), np.dtype("f4")) for o in made
        )
        ctx._saved = tuple(_Saved.of(s, args, outputs, edges) if isinstance(s, Variable) else s for s in ctx._saved)
        return tuple(made) if isinstance(result, tuple) else made[0]

    def _record(self, edges: tuple[Edge | None, ...]) -> None:
        self.edges = edges
        self.number = next(_numbers)

    def _attach(self, output: Any, index: int) -> Any:
        if is_floating(output._array.dtype):
            output.grad_fn, output._output, output.requires_grad = self, index, True
            output._seen = output._history[1]
        return output

    def _check_alive(self) -> None:
        if self._freed:
            raise RuntimeError(
                f"{self.name()}: the saved values were freed when backward ran through this graph before; "
                "pass retain_graph=True to the first backward to run it twice"
            )

    def _free(self) -> None:
        self._saved, self._freed = (), True

    def _run_backward(self, grads: list[Any], create_graph: bool) -> list[Any]:
        """The gradients of the inputs, as tensors if ``create_graph`` or else as arrays, in a list of their own."""
        self._check_alive()
        like = self._like
        handed = []
        for g, (shape, dt) in zip(grads, self._outputs, strict=True):
            if g is None and self._materialize:
                g = namespace(like._array).zeros(shape, dt)
            handed.append(like._make(g) if g is not None and not isinstance(g, Variable) else g)
        result = type(self).backward(self, *handed)
        result = result if isinstance(result, tuple) else (result,)
        while len(result) > len(self.edges) and result[-1] is None:
            result = result[:-1]  # for arguments with a default, left out of the call
        if len(result) != len(self.edges):
            raise RuntimeError(
                f"{self.name()}: backward returned {len(result)} gradients, expected {len(self.edges)}, "
                "one for each argument of forward (None where none is needed)"
            )
        return [g if create_graph or g is None else g._array for g in result]

    def __repr__(self) -> str:
        return f"<{self.name()} object at {id(self):#x}>"


class _Saved(NamedTuple):
    """An input or output kept for backward: its array, and the write counter that it must still have then."""

    array: Array
    history: list[int]
    version: int
    edge: Edge | None  # of an input
    output: int | None = None  # an output's number: with the node itself it would be a cycle

    @classmethod
    def of(cls, t: Variable, args: Sequence[Any], outputs: Sequence[Any], edges: Sequence[Edge | None]) -> _Saved:
        kept = t._array, t._history, t._history[0]
        for a, edge in zip(args, edges, strict=True):
            if a is t:
                return cls(*kept, edge)
        for i, o in enumerate(outputs):
            if o is t:
                return cls(*kept, None, i)
        return cls(*kept, None)

    def check(self, node: Function) -> None:
        if self.history[0] != self.version:
            raise RuntimeError(
                f"{node.name()}: a tensor of shape {list(self.array.shape)} needed for the gradient was modified by an "
                f"in-place operation: it is at version {self.history[0]}, expected version {self.version}"
            )

    def unpack(self, node: Function) -> Any:
        """The tensor again, in its place in the graph."""
        self.check(node)
        if self.edge is not None and isinstance(self.edge[0], Variable):
            return self.edge[0]
        t = node._like._make(self.array)
        t._history = self.history
        edge = self.edge if self.output is None else (node, self.output)
        if edge is not None:
            (t.grad_fn, t._output), t.requires_grad, t._seen = edge, True, self.history[1]
        return t


class ArrayFunction(Function):
    """A Function on plain arrays: how the library's own operations are written, with next to no overhead.

    ``forward(ctx, *args)`` gets the arrays of tensor arguments and returns an array (or a tuple of them);
    ``backward(ctx, grad)`` gets arrays, or tensors when the derivative is itself to be differentiated, and is written
    over ``namespace(grad)`` so that one text serves both. Applied to arrays only, it just runs ``forward``.
    """

    keeps_half = True  # a float32 result of 16-bit inputs is rounded to their dtype, once, at the end
    torch_name = ""  # of the node, where it is not that of the class
    differentiable = 1  # so many of the outputs, the first ones; the others have no gradient
    hands_over = False  # kept[0] is its first input's gradient for an upstream gradient of 1, or None once it is taken
    _kept: tuple[Any, ...] = ()

    def save(self, *arrays: Any) -> None:
        """Keep inputs and outputs of this call for ``saved``; nobody may write to them before ``backward``."""
        self._saved = arrays

    def keep(self, *arrays: Any) -> None:
        """Keep arrays made inside ``forward`` for ``kept``. What is computed from them has no derivative again."""
        self._kept = arrays

    @property
    def saved(self) -> tuple[Any, ...]:
        """What ``save`` was given: arrays, or tensors when the derivative is being recorded."""
        if _mode.enabled:
            return tuple([s.unpack(self) if type(s) is _Saved else s for s in self._saved])
        return tuple([s.array if type(s) is _Saved else s for s in self._saved])

    @property
    def kept(self) -> tuple[Any, ...]:
        """What ``keep`` was given."""
        return self._kept

    def _free(self) -> None:
        self._saved = self._kept = ()
        self._freed = True

    def name(self) -> str:
        """How the node is called in a tensor's repr: as torch would."""
        return self.torch_name or f"{type(self).__name__}Backward0"

    @classmethod
    def _apply(cls, *args: Any) -> Any:
        """Run ``forward`` on the arrays; wrap and record the result if there are tensors among the arguments."""
        ctx = cls()
        like: Any = None
        arrays: list[Any] = []
        edges: list[Edge | None] = []
        recording = False
        for a in args:
            edge = None
            if isinstance(a, Variable):
                like = a
                if a._base is not None and a._seen != a._history[1]:
                    a._edge()  # takes over what was recorded on its base
                if a.requires_grad:
                    edge = (a, 0) if a.grad_fn is None else (a.grad_fn, a._output)
                    recording = True
                a = a._array
            arrays.append(a)
            edges.append(edge)
        if like is None:
            return cls.forward(ctx, *arrays)
        recording = recording and _mode.enabled
        if recording:
            ctx._record(tuple(edges))
            ctx.needs_input_grad = tuple([e is not None for e in edges])
        with np.errstate(all="ignore") if type(like._array) is np.ndarray else on_device_of(like._array):
            made = cls.forward(ctx, *arrays)
            result = ctx._rounded(made, arrays) if cls.keeps_half else made
        if isinstance(result, tuple):
            outputs = [ctx._wrap(r, args, arrays, like) for r in result]
            if recording:
                ctx._remember(args, arrays, made, outputs, like)
            return tuple(outputs)
        out = ctx._wrap(result, args, arrays, like)
        if recording:
            ctx._remember(args, arrays, (made,), (out,), like)
        return out

    # The compiled one does the same, and calls this one for whatever is not the plainest case.
    apply: Any = _apply if compiled is None else classmethod(compiled.apply)

    def _rounded(self, result: Any, arrays: list[Any]) -> Any:
        """float32 results in the one 16-bit dtype of the inputs."""
        if isinstance(result, tuple):
            return tuple([self._rounded(r, arrays) for r in result])
        if result.dtype == float32.dtype:
            halves = {x.dtype for x in arrays if getattr(x, "itemsize", 0) == 2}
            if len(halves) == 1 and is_floating(half := halves.pop()):
                return result.astype(half)
        return result

    def _wrap(self, result: Any, args: tuple[Any, ...], arrays: list[Any], like: Any) -> Any:
        """The result as a tensor; one that shares an input's memory becomes a view of it, with its write counter."""
        out = like._make(np.asarray(result) if isinstance(result, np.generic) else result)
        base = result.base
        for a, x in zip(args, arrays, strict=True):
            if isinstance(a, Variable) and (x is result or (base is not None and (x is base or x.base is base))):
                out._base = a if a._base is None else a._base
                out._history, out._seen = a._history, a._history[1]
                break
        return out

    def _remember(
        self, args: tuple[Any, ...], arrays: list[Any], results: tuple[Any, ...], outputs: Sequence[Any], like: Any
    ) -> None:
        """Record the outputs, and what was saved with the write counters of the tensors that it belongs to."""
        self._like = _stand_in(like)
        self._outputs = tuple([(o._array.shape, o._array.dtype) for o in outputs])
        for i, o in enumerate(outputs[: self.differentiable]):
            self._attach(o, i)
        self._saved = tuple([self._guarded(s, args, arrays, results, outputs) for s in self._saved])

    def _guarded(
        self, s: Any, args: tuple[Any, ...], arrays: list[Any], results: tuple[Any, ...], outputs: Sequence[Any]
    ) -> Any:
        for a, x, edge in zip(args, arrays, self.edges, strict=True):
            if x is s and isinstance(a, Variable):
                return _Saved(s, a._history, a._history[0], edge)
        return None if s is None else self._saved_output(s, results, outputs)

    def _saved_output(self, s: Any, results: tuple[Any, ...], outputs: Sequence[Any]) -> Any:
        for i, (r, o) in enumerate(zip(results, outputs, strict=True)):
            if r is s:
                return _Saved(o._array, o._history, o._history[0], None, i)
        if not hasattr(s, "dtype"):
            return s
        raise TypeError(f"{self.name()}: save() takes inputs and outputs; keep() is for what forward made beside them")

    def _run_backward(self, grads: list[Any], create_graph: bool) -> list[Any]:
        self._check_alive()
        for s in self._saved:
            if isinstance(s, _Saved):
                s.check(self)
        for i in range(type(self).differentiable):
            if grads[i] is None:
                grads[i] = self._zeros(i, create_graph)
        with on_device_of(self._like._array):
            result = type(self).backward(self, *grads)
        return [*result] if isinstance(result, tuple) else [result]

    def _zeros(self, i: int, as_tensor: bool) -> Any:
        zeros = namespace(self._like._array).zeros(*self._outputs[i])
        return self._like._make(zeros) if as_tensor else zeros


class _TwiceForbidden(ArrayFunction):
    """The identity whose derivative is an error: it stands behind gradients that have no derivative of their own."""

    @staticmethod
    def forward(ctx: Any, grad: Array, name: str, *inputs: Array) -> Array:
        ctx.of = name
        return grad

    @staticmethod
    def backward(ctx: Any, grad: Array) -> NoReturn:
        raise RuntimeError(f"{ctx.of} cannot be differentiated twice")


def once_differentiable(backward: Callable[..., Any]) -> Callable[..., Any]:
    """For a ``backward`` that works on arrays only: its results, differentiated again, are a clear error."""

    @functools.wraps(backward)
    def wrapped(ctx: Any, *grads: Any) -> Any:
        if not (_mode.enabled and any(isinstance(g, Variable) for g in grads)):
            return backward(ctx, *grads)
        with no_grad():
            result = backward(ctx, *[g._array if isinstance(g, Variable) else g for g in grads])
        result = result if isinstance(result, tuple) else (result,)
        # Hangs on the inputs too: a gradient penalty must not silently lose the part that goes through them.
        sources = []
        for edge in ctx.edges:
            if edge is not None:
                t = ctx._like._make(np.zeros(()))
                t.requires_grad = True
                if isinstance(edge[0], Variable):
                    t = edge[0]
                else:
                    t.grad_fn, t._output, t._seen = edge[0], edge[1], 0
                sources.append(t)
        make = ctx._like._make
        return tuple(None if r is None else _TwiceForbidden.apply(make(r), ctx.name(), *sources) for r in result)

    return wrapped
