"""Triton's interpreter, without its environment variable.

Within ``interpreted(builder, run)`` a launch of a ``@triton.jit`` kernel becomes a ``Call`` and goes to ``run``, and
every jitted function that a kernel calls, ours or Triton's own, is interpreted. Outside, the same kernels compile as
ever.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import functools
import inspect
import math
import textwrap
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import triton
import triton.language as tl
from triton.backends.nvidia.compiler import CUDAOptions
from triton.language.extra import libdevice
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter
from triton.runtime.interpreter import TensorHandle
from triton.runtime.jit import JITFunction
from triton.tools.tensor_descriptor import TensorDescriptor

from .arithmetic import LIBDEVICE, Builder, reduced

# --- kernels as Python functions --------------------------------------------------------------------------------------


class _BooleanOperators(ast.NodeTransformer):
    """``a and b`` → ``_logical("logical_and", lambda: a, lambda: b)``: of blocks Python would give b."""

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.AST:
        self.generic_visit(node)
        nothing = ast.arguments(posonlyargs=[], args=[], kwonlyargs=[], kw_defaults=[], defaults=[])
        method = ast.Constant("logical_and" if isinstance(node.op, ast.And) else "logical_or")
        operands = [ast.Lambda(args=nothing, body=value) for value in node.values]
        return ast.Call(func=ast.Name(id="_logical", ctx=ast.Load()), args=[method, *operands], keywords=[])


def _logical(method: str, *operands: Callable[[], Any]) -> Any:
    result = operands[0]()
    for operand in operands[1:]:
        if isinstance(result, tl.tensor):
            result = getattr(result, method)(_semantic.to_tensor(operand()))
        elif bool(result) == (method == "logical_and"):
            result = operand()
    return result


def as_python(kernel: JITFunction) -> Callable[..., None]:
    """The function that interprets a kernel, its line numbers those of the source."""
    fn = kernel.fn
    if fn not in _rewritten:
        tree = ast.parse(textwrap.dedent(inspect.getsource(fn)))
        tree.body[0].decorator_list = []
        tree = interpreter.ASTTransformer().visit(_BooleanOperators().visit(tree))
        ast.fix_missing_locations(tree)
        ast.increment_lineno(tree, fn.__code__.co_firstlineno - 1)
        # In a namespace of its own: Triton's rewriter leaves dozens of names behind in the kernel's module.
        names = fn.__globals__ | inspect.getclosurevars(fn).nonlocals
        names |= {"interpreter_semantic": _semantic, "_logical": _logical, INTERPRETED: True}
        exec(compile(tree, fn.__code__.co_filename, "exec"), names)
        _rewritten[fn] = names[fn.__name__]
    return _rewritten[fn]


INTERPRETED = "__interpreted__"  # a global of every function that is
_rewritten: dict[Callable[..., None], Callable[..., None]] = {}
_semantic = TritonSemantic(Builder())  # turns numbers into tensors: it touches no memory


# --- a launch ---------------------------------------------------------------------------------------------------------


@dataclass
class Call:
    """A launch as it was asked for."""

    kernel: JITFunction
    grid: tuple[int, int, int]
    arguments: dict[str, Any]
    constants: dict[str, Any]  # the constexprs
    options: dict[str, Any]  # num_warps and the like

    @classmethod
    def of(cls, kernel: JITFunction, args: tuple[Any, ...], grid: Any, named: dict[str, Any]) -> Call:
        parameters = {p.name: p.is_constexpr for p in kernel.params}
        options = {k: v for k, v in named.items() if k not in parameters}
        for name in options:  # as on a GPU, where Triton's interpreter ignores what it does not know
            if name not in CUDAOptions.__dataclass_fields__:
                raise KeyError(f"{name} is neither an argument of {kernel.fn.__name__} nor an option")
        given = kernel.signature.bind(*args, **{k: v for k, v in named.items() if k in parameters})
        given.apply_defaults()
        grid = grid(given.arguments) if callable(grid) else grid
        return cls(
            kernel,
            (*map(int, grid), 1, 1)[:3],
            {k: v for k, v in given.arguments.items() if not parameters[k]},
            {k: v for k, v in given.arguments.items() if parameters[k]},
            options,
        )

    @property
    def programs(self) -> int:
        return math.prod(self.grid)

    @property
    def threads(self) -> int:
        """Of a program."""
        return 32 * self.options.get("num_warps", CUDAOptions.num_warps)

    def arrays(self) -> Iterator[Any]:
        """All arrays among the arguments, within tuples and descriptors too."""
        waiting = [*self.arguments.values()]
        while waiting:
            x = waiting.pop()
            if isinstance(x, tuple):
                waiting += x
            elif isinstance(x, TensorDescriptor):
                yield x.base
            elif hasattr(x, "dtype"):
                yield x

    def interpret(
        self, builder: Builder, address_of: Callable[[Any], int], order: Iterable[int], begin: Callable[[int], None]
    ) -> None:
        """Run the programs in an order, each announced to ``begin`` by its number in the grid."""
        function = as_python(self.kernel)
        arguments = {k: _argument(x, address_of) for k, x in self.arguments.items()} | self.constants
        builder.set_grid_dim(*self.grid)
        for program in order:
            builder.set_grid_idx(*map(int, np.unravel_index(program, self.grid)))
            begin(int(program))
            function(**arguments)


def _argument(x: Any, address_of: Callable[[Any], int]) -> Any:
    """What a parameter of a kernel is when it is launched with ``x`` on a GPU."""
    if x is None:
        return None
    if isinstance(x, tuple):
        return interpreter._tuple_create(x, (_argument(part, address_of) for part in x))
    if isinstance(x, bool):  # Triton 3.6 fails
        return tl.tensor(TensorHandle(np.array([x]), tl.int1), tl.int1)
    if isinstance(x, int):
        return interpreter._implicit_cvt(x)
    if isinstance(x, float):  # Triton's interpreter computes on in Python's double precision
        return tl.tensor(TensorHandle(np.array([x], np.float32), tl.float32), tl.float32)
    if isinstance(x, TensorDescriptor):
        base = SimpleNamespace(dtype=x.base.dtype, data_ptr=lambda: address_of(x.base))
        return interpreter._implicit_cvt(dataclasses.replace(x, base=base))
    if hasattr(x, "dtype"):
        return interpreter._implicit_cvt(SimpleNamespace(dtype=x.dtype, data_ptr=lambda: address_of(x)))
    raise TypeError(f"a kernel cannot be given {type(x).__name__}")


# --- the scope --------------------------------------------------------------------------------------------------------

_np_dtype_of = interpreter._get_np_dtype
_np_dtypes: dict[str, np.dtype] = {}


def _np_dtype(dtype: tl.dtype) -> np.dtype:
    """Triton's own makes a table of all types whenever it is asked, which was an eighth of a launch's time."""
    dtype = dtype.scalar
    if dtype.name not in _np_dtypes:
        _np_dtypes[dtype.name] = _np_dtype_of(dtype)
    return _np_dtypes[dtype.name]


class _StillCompiled(interpreter.InterpretedFunction):
    """What ``triton.jit`` makes of a kernel whose module is first imported inside: the same as outside."""

    def __new__(cls, fn: Callable[..., None], **options: Any) -> JITFunction:
        return JITFunction(fn, **options)


@contextlib.contextmanager
def interpreted(builder: Builder, run: Callable[[Call], None]) -> Iterator[None]:
    """Interpret with ``builder``, and have ``run`` do the launches."""

    def launch(kernel: JITFunction, *args: Any, grid: Any, warmup: bool, **named: Any) -> None:
        if not warmup:
            with np.errstate(all="ignore"):
                run(Call.of(kernel, args, grid, named))

    def bound(function: JITFunction, x: Any, _: type | None = None) -> Any:
        return functools.partial(function, x) if isinstance(x, tl.tensor) else function  # x.sum()

    with contextlib.ExitStack() as stack:
        stack.enter_context(triton.knobs.runtime.scope())
        triton.knobs.runtime.interpret = True
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(interpreter, "InterpretedFunction", _StillCompiled)
        patch.setattr(interpreter, "_get_np_dtype", _np_dtype)
        patch.setattr(interpreter, "interpreter_builder", builder)
        patch.setattr(interpreter, "interpreter_semantic", TritonSemantic(builder))
        patch.setattr(interpreter.ReduceOps, "apply_impl", reduced)
        patch.setattr(JITFunction, "run", launch)
        patch.setattr(JITFunction, "__call__", lambda function, *args, **kw: as_python(function)(*args, **kw))
        patch.setattr(JITFunction, "__get__", bound, raising=False)
        for name, function in LIBDEVICE.items():
            patch.setattr(libdevice, name, function)
        stack.callback(interpreter._patch_lang(SimpleNamespace(__globals__={"tl": tl, "core": tl.core})).restore)
        patch = stack.enter_context(pytest.MonkeyPatch.context())  # on top of Triton's own
        patch.setattr(tl.tensor, "__index__", lambda x: x.handle.data.item())  # range(tensor): 3.6 with NumPy 2.4
        yield
