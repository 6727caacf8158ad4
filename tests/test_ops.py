"""Every operation of a tensor against torch's, in float64: value, gradient, gradcheck, second derivative.

A table line is an operation by torch's name, the tensors it gets and its other arguments. It is run as a function and
as a method, wherever torch has it so.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tilegrad as tg
from tilegrad.autograd import grad, gradcheck

torch = pytest.importorskip("torch")

nan, inf = math.nan, math.inf


# --- what the operations get ------------------------------------------------------------------------------------------


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).normal(size=shape)


def positive(*shape: int, seed: int = 0) -> np.ndarray:
    return np.asarray(0.2 + np.abs(normal(*shape, seed=seed)))


def distinct(*shape: int, seed: int = 0) -> np.ndarray:
    """Values 0.1 and more apart, in a random order: no gradient hangs on a tie."""
    count = math.prod(shape)
    return (np.random.default_rng([seed, *shape]).permutation(count) / 8 - count / 16 + 0.03).reshape(shape)


# A leaf and how it is looked at: what the operation is given.
LAYOUTS: dict[str, tuple[tuple[int, ...], Callable[[Any], Any]]] = {
    "plain": ((3, 4), lambda x: x),
    "0-d": ((), lambda x: x),
    "one": ((1,), lambda x: x),
    "empty": ((0, 3), lambda x: x),
    "transposed": ((3, 4), lambda x: x.T),
    "strided": ((5, 4), lambda x: x[1::2, ::3]),
    "expanded": ((3, 1), lambda x: x.expand(2, 3, 4)),
}

# --- the tables -------------------------------------------------------------------------------------------------------

UNARY = {
    "neg": normal, "abs": normal, "sign": normal, "exp": normal, "expm1": normal, "log": positive, "log2": positive,
    "log10": positive, "log1p": positive, "sqrt": positive, "rsqrt": positive, "square": normal,
    "reciprocal": positive, "sin": normal, "cos": normal, "tan": positive, "tanh": normal, "sigmoid": normal,
    "relu": normal, "floor": normal, "ceil": normal, "round": normal, "sum": normal, "mean": normal, "prod": normal,
    "amax": distinct, "amin": distinct, "max": distinct, "min": distinct, "norm": normal, "clone": normal,
    "flatten": normal, "squeeze": normal,
}  # fmt: skip
NEEDS_AN_ELEMENT = {"amax", "amin", "max", "min"}

x, y, p, d = normal(3, 4), normal(3, 4, seed=1), positive(3, 4), distinct(3, 4)
cube, row, column, matrix = normal(2, 3, 4), normal(4), normal(3, 1), normal(4, 3)
big, vector, number = normal(2, 3, 4, 2), normal(6), normal()
index = np.array([[2, 0, 1, 1], [0, 1, 2, 0]])
mask = normal(3, 4, seed=5) > 0

PAIRS = [(x, y), (x, row), (row, x), (column, row), (cube, column), (x, number), (number, x), (number, normal(seed=1)),
         (normal(0, 4), row), (normal(3, 0), column), (x, x)]  # fmt: skip

CALLS: list[tuple[Any, ...]] = [
    *[(name, a, b) for a, b in PAIRS for name in ("add", "sub", "mul", "maximum", "minimum")],
    *[("div", a, np.abs(b) + 0.3) for a, b in PAIRS],
    *[("pow", np.abs(a) + 0.3, b) for a, b in PAIRS],
    *[(name, a, s) for a in (x, number) for s in (2, -1.5, True) for name in ("add", "mul", "div")],
    *[("sub", x, s) for s in (2, -1.5)],
    *[("pow", x, n) for n in (0, 1, 2, 3, -1, -2, 2.0)],
    *[("pow", p, s) for s in (0.5, -1.5, 0.0)],
    ("pow", 2, x), ("pow", 0.5, x), ("pow", 2.5, number), ("add", x, y, {"alpha": 2}),
    ("sub", x, row, {"alpha": -0.5}), ("add", x, 3, {"alpha": 2}), ("remainder", x, 0.7), ("remainder", x, -2),
    ("div", x, 0.3, {"rounding_mode": "trunc"}),
    *[("clamp", x, *bounds) for bounds in ((-0.5, 0.5), (None, 0.3), (-0.2,), (0.5, -0.5), (0, 1))],
    ("clamp", x, {"min": 0}), ("clamp", x, {"max": 0.1}), ("clip", x, -0.1, 0.1), ("clamp", x, row, row + 0.5),
    ("clamp", x, {"max": column}), ("where", mask, x, y), ("where", mask, x, row), ("where", mask, 1.5, x),
    ("where", mask, x, -2), ("where", mask, number, column),
    *[(name, a, *dims) for name in ("sum", "mean", "var", "std", "amax", "amin", "logsumexp") for a,
        *dims in ((d, 0), (d, -1), (d, 1, True), (d, (0, 1)), (distinct(2, 3, 4), (0, -1)), (distinct(2, 3, 4), [1]),
        (distinct(2, 3, 4), (2, 0), True))],
    *[("norm", x, *arguments) for arguments in ((2, 0), (2, (0, 1)), (1,), (1, 1), (3, 0), (inf, 1), (-inf, 0),
        ("fro",), (2.5, -1, True), (0.5, 0))],
    *[("norm", x, k) for k in ({"dim": 1}, {"p": 1, "dim": 0, "keepdim": True})],
    *[("sum", cube, {"dim": k, "keepdim": True}) for k in (-2, (0, 1), None)],
    ("var", x), ("std", x), ("var", x, {"unbiased": False}), ("std", x, {"dim": 0, "correction": 0}),
    ("var", x, 1, False), ("var", x, 1, False, True),
    ("var", cube, {"dim": (0, 2), "correction": 2, "keepdim": True}), ("std", x, False),
    *[("prod", x, *dims) for dims in ((0,), (-1,), (1, True))],
    ("prod", number, 0), ("prod", cube, {"dim": 1}),
    *[(name, a, dim) for name in ("max", "min", "sort", "logsumexp") for a,
        dim in ((d, 0), (d, -1), (distinct(2, 3, 4), 1))],
    *[(name, d, {"dim": 1, "keepdim": True}) for name in ("max", "min")],
    ("max", x, y), ("min", x, row), ("max", number, 0), ("sort", d, {"descending": True}), ("sort", d, 0, True),
    ("sort", distinct(5)), ("sort", number), ("topk", d, 2), ("topk", d, 2, 0), ("topk", d, 3, {"largest": False}),
    ("topk", d, 1, {"dim": -2}), ("topk", d, 0),
    *[("cumsum", a, dim) for a, dim in ((x, 0), (x, -1), (cube, 1), (number, 0), (normal(0, 3), 0))],
    *[("matmul", a, b) for a, b in ((x, matrix), (row, matrix), (x, row), (row, row), (cube, matrix),
        (cube, normal(2, 4, 3)), (x, normal(2, 4, 3)), (normal(2, 1, 3, 4), normal(3, 4, 2)), (row, normal(2, 4, 3)),
        (cube, row), (normal(0, 4), matrix), (x, normal(4, 0)), (normal(3, 0), normal(0, 4)),
        (normal(2, 0, 4), matrix), (normal(1, 3, 4), normal(5, 4, 2)))],
    ("mm", x, matrix), ("bmm", cube, normal(2, 4, 3)), ("mv", x, row), ("dot", row, row), ("outer", row, vector),
    *[("reshape", a, shape) for a, shape in ((x, (4, 3)), (x, (-1,)), (x, (2, -1, 3)), (number, (1, 1)),
        (normal(1), ()), (normal(0, 3), (3, 0)), (cube, (-1, 4)))],
    ("flatten", cube, 1), ("flatten", cube, 0, 1), ("flatten", big, {"start_dim": 1, "end_dim": 2}),
    ("flatten", number), ("unflatten", vector, 0, (2, 3)), ("unflatten", x, 1, (2, -1)),
    ("unflatten", x, -1, (-1, 2)),
    *[("transpose", a, i, j) for a, i, j in ((x, 0, 1), (cube, 0, 2), (cube, -1, -2), (number, 0, 0), (cube, 1, 1))],
    ("swapaxes", cube, 0, 1), ("movedim", cube, 0, -1), ("t", x), ("t", row), ("permute", cube, (2, 0, 1)),
    ("permute", cube, (-1, 0, 1)),
    *[("squeeze", normal(1, 3, 1, 2), *dims) for dims in ((), (0,), (1,), (-2,), ((0, 2),))],
    *[("unsqueeze", a, dim) for a, dim in ((x, 0), (x, -1), (x, 1), (x, 2), (number, 0), (number, -1))],
    ("broadcast_to", column, (2, 3, 4)), ("flip", cube, (0, 2)), ("flip", x, (-1,)), ("tril", x), ("triu", x, 1),
    ("tril", cube, -1),
    *[(name, a, *rest) for name in ("split", "chunk") for a, *rest in ((vector, 4), (x, 2, 1), (x, 3, -1), (x, 1))],
    ("split", vector, [1, 0, 5]), ("split", x, (1, 3), 1), ("chunk", vector, 4), ("unbind", cube, 1), ("unbind", x),
    ("gather", x, 0, index), ("gather", x, 1, np.array([[3, 3], [0, 1], [2, 2]])),
    ("gather", cube, -1, index[None, :, :3]), ("scatter", x, 0, index, y[:2]), ("scatter", x, 0, index[:1], 2.5),
    ("scatter", x, 1, np.array([[3, 1], [0, 2]]), y[:2, :2]), ("index_select", x, 0, np.array([2, 2, 0])),
    ("index_select", cube, -1, np.array([1])), ("masked_fill", x, mask, 1.5), ("masked_fill", x, mask[0], -2),
    ("masked_fill", cube, mask, number), ("masked_select", x, mask), ("masked_select", cube, mask), ("clone", x),
]  # fmt: skip

METHODS: list[tuple[Any, ...]] = [
    ("view", x, 4, 3), ("view", x, (2, -1)), ("view_as", x, matrix), ("reshape_as", x, matrix), ("reshape", x, 2, 6),
    ("permute", cube, 1, 2, 0),
    *[("expand", a, *shape) for a, *shape in ((column, 3, 4), (row, 2, -1), (number, 2, 2), (column, (5, -1, 2)),
        (row, 0, 4))],
    ("expand_as", column, x), ("repeat", x, 2, 1), ("repeat", row, 2, 3), ("repeat", x, (2, 1, 2)),
    ("repeat", row, 0), ("flip", x, 0, 1), ("contiguous", x), ("double", x), ("type_as", x, y), ("softmax", x, 1),
    ("log_softmax", x, -1),
]  # fmt: skip

EXPRESSIONS: dict[str, tuple[Callable[..., Any], tuple[np.ndarray, ...]]] = {
    "T": (lambda x: x.T, (x,)),
    "mT": (lambda x: x.mT, (cube,)),
    "-x": (operator.neg, (x,)),
    "abs": (operator.abs, (x,)),
    "@": (operator.matmul, (x, matrix)),
    **{f"x{s}y": (f, (x, p)) for s, f in (("+", operator.add), ("-", operator.sub), ("*", operator.mul),
    ("/", operator.truediv))},
    "x+2": (lambda x: x + 2, (x,)),
    "2+x": (lambda x: 2 + x, (x,)),
    "x-2": (lambda x: x - 2.5, (x,)),
    "2-x": (lambda x: 2.5 - x, (x,)),
    "2*x": (lambda x: 2 * x, (x,)),
    "x/2": (lambda x: x / 2, (x,)),
    "2/x": (lambda x: 2 / x, (p,)),
    "x**2": (lambda x: x**2, (x,)),
    "x**y": (operator.pow, (p, x)),
    "2**x": (lambda x: 2**x, (x,)),
    "x%2": (lambda x: x % 2, (x,)),
    "x[1]": (lambda x: x[1], (x,)),
    "x[-1,2]": (lambda x: x[-1, 2], (x,)),
    "x[1:,::2]": (lambda x: x[1:, ::2], (x,)),
    "x[...,0]": (lambda x: x[..., 0], (cube,)),
    "x[None]": (lambda x: x[None, :, None, 1], (x,)),
    "x[[...]]": (lambda x: x[[0, 0, 2]], (x,)),
    "x[i,j]": (lambda x: x[[0, 1, 1], [2, 2, 2]], (x,)),
    "x[:,i]": (lambda x: x[:, [[0, 1], [3, 3]]], (x,)),
    "x[i,:,j]": (lambda x: x[[1, 0], :, [2, 2]], (cube,)),
    "x[1,:,j]": (lambda x: x[1, :, [2, 2]], (cube,)),
    "x[()]": (lambda x: x[()], (x,)),
    "iter": (lambda x: [r * i for i, r in enumerate(x)], (x,)),
    "x[x>0]": (lambda x: x[x > 0], (x,)),
    "x[mask,j]": (lambda x: x[x[:, 0] > -9, 1], (x,)),
    "x[:,mask]": (lambda x: x[:, x[0] > 0], (x,)),
    "0-d mask": (lambda x: x[x > 99], (number,)),
    "several uses": (lambda x: x * x.sum() + x.T.T / x.exp(), (x,)),
    "broadcast chain": (lambda a, b, c: (a * b + c).sin().sum(0) * a, (column, row, cube)),
    "layernorm": (lambda x: (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt(),
        (cube,)),
    "softmax by hand": (lambda x: (x - x.amax(1, True)).exp() / (x - x.amax(1, True)).exp().sum(1, True), (d,)),
}  # fmt: skip
JOINS: dict[str, Callable[..., Any]] = {
    "cat": lambda lib,
    a,
    b: lib.cat([a, b]),
    "cat 1": lambda lib,
    a,
    b: lib.cat((a, b, a), dim=1),
    "cat -1": lambda lib,
    a,
    b: lib.cat([a], -1),
    "cat empty": lambda lib,
    a,
    b: lib.cat([a, a.reshape(-1)[:0], b]),
    "stack": lambda lib,
    a,
    b: lib.stack([a, b]),
    "stack -1": lambda lib,
    a,
    b: lib.stack((a, b), -1),
    "stack 1": lambda lib,
    a,
    b: lib.stack((a, b, b), dim=1),
    "concat": lambda lib,
    a,
    b: lib.concat([a, b], 1),
}  # fmt: skip

# --- one comparison for all of them -----------------------------------------------------------------------------------


def differentiable(outputs: Any) -> list[Any]:
    outputs = outputs if isinstance(outputs, (tuple, list)) else [outputs]
    return [o for o in outputs if o.dtype.is_floating_point]


def close(mine: Any, other: Any) -> None:
    assert tuple(mine.shape) == tuple(other.shape)
    assert str(mine.dtype).partition(".")[2] == str(other.dtype).partition(".")[2]
    double = mine.dtype != tg.float32  # integers' sines and roots are float32
    np.testing.assert_allclose(
        mine.numpy(force=True), other.numpy(force=True), rtol=1e-9 if double else 1e-6, atol=1e-11 if double else 1e-7
    )


def zeros_for_none(grads: Any, inputs: Any, lib: Any) -> list[Any]:
    return [lib.zeros_like(i) if g is None else g for g, i in zip(grads, inputs, strict=True)]


def check(of: Callable[..., Any], arrays: tuple[np.ndarray, ...]) -> None:
    """``of(lib, *tensors)`` in both libraries: values, gradients, second derivatives, and gradcheck of ours."""
    floating = [a.dtype.kind == "f" for a in arrays]
    sides = []
    for lib in (tg, torch):
        leaves = [lib.tensor(a, requires_grad=f) for a, f in zip(arrays, floating, strict=True)]
        made = of(lib, *leaves)
        sides.append(([leaf for leaf, f in zip(leaves, floating, strict=True) if f], made, differentiable(made)))
    (mine, made, outs), (other, expected, wanted) = sides
    for a, b in zip(*(m if isinstance(m, (tuple, list)) else [m] for m in (made, expected)), strict=True):
        close(a, b)
        assert a.requires_grad == b.requires_grad
    outs, wanted = [o for o in outs if o.requires_grad], [o for o in wanted if o.requires_grad]
    if not wanted:
        return
    ours = both_derivatives(tg, grad, mine, outs)
    theirs = both_derivatives(torch, torch.autograd.grad, other, wanted)
    for a, b in zip(ours, theirs, strict=True):
        close(a, b)
    assert gradcheck(lambda *leaves: differentiable(of(tg, *fill(leaves, arrays, floating))), mine)


def fill(leaves: Any, arrays: tuple[np.ndarray, ...], floating: list[bool]) -> list[Any]:
    rest = iter(leaves)
    return [next(rest) if f else tg.tensor(a) for a, f in zip(arrays, floating, strict=True)]


def both_derivatives(lib: Any, grad: Any, leaves: list[Any], outputs: list[Any]) -> list[Any]:
    """The gradients under a random upstream gradient, and the gradients of those weighted sum, upstream included."""
    upstream = [lib.tensor(normal(*o.shape, seed=7), requires_grad=True) for o in outputs]
    once = zeros_for_none(grad(outputs, leaves, upstream, create_graph=True, allow_unused=True), leaves, lib)
    weighted = [(g * lib.tensor(normal(*g.shape, seed=8))).sum() for g in once if g.requires_grad]
    inputs = [*leaves, *upstream]
    twice = grad(weighted, inputs, allow_unused=True) if weighted else [None] * len(inputs)
    return [*once, *zeros_for_none(twice, inputs, lib)]


def names(call: tuple[Any, ...]) -> str:
    told = (f"{list(a.shape)}" if isinstance(a, np.ndarray) else str(a) for a in call[1:])
    return f"{call[0]}({', '.join(told)})"


def applied(call: tuple[Any, ...], as_method: bool) -> tuple[Callable[..., Any], tuple[np.ndarray, ...]]:
    """A table line as ``of(lib, *tensors)`` and its arrays."""
    name, *given = call
    kwargs = given.pop() if isinstance(given[-1], dict) else {}
    arrays = [*given, *kwargs.values()]
    arrays = [a for a in arrays if isinstance(a, np.ndarray)]

    def of(lib: Any, *tensors: Any) -> Any:
        rest = iter(tensors)
        args = [next(rest) if isinstance(a, np.ndarray) else a for a in given]
        named = {k: next(rest) if isinstance(v, np.ndarray) else v for k, v in kwargs.items()}
        if not as_method:
            return getattr(lib, name)(*args, **named)
        if name == "where":
            args[:2] = args[1::-1]
        return getattr(args[0], name)(*args[1:], **named)

    return of, tuple(arrays)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", UNARY)
def test_functions_of_one_tensor(name: str, layout: str):
    shape, seen = LAYOUTS[layout]
    if 0 in shape and name in NEEDS_AN_ELEMENT:
        with pytest.raises(ValueError, match="at least one element"):
            getattr(tg, name)(tg.zeros(shape))
        return
    for as_method in (False, True):
        of, arrays = applied((name, UNARY[name](*shape)), as_method)
        check(lambda lib, leaf, of=of: of(lib, seen(leaf)), arrays)


@pytest.mark.parametrize("call", CALLS, ids=names)
def test_functions(call: tuple[Any, ...]):
    check(*applied(call, as_method=False))


def is_method(call: tuple[Any, ...]) -> bool:
    """Whether the line reads as a method of its first tensor (``where``: of its second)."""
    first = call[1] if call[0] != "where" else call[2] if len(call) > 2 else None
    return hasattr(torch.Tensor, call[0]) and isinstance(first, np.ndarray)


@pytest.mark.parametrize("call", [*filter(is_method, CALLS), *METHODS], ids=names)
def test_methods(call: tuple[Any, ...]):
    check(*applied(call, as_method=True))


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_expressions(expression: str):
    of, arrays = EXPRESSIONS[expression]
    check(lambda lib, *tensors: of(*tensors), arrays)


@pytest.mark.parametrize("join", JOINS)
def test_joins(join: str):
    check(JOINS[join], (x, y))


# --- without derivative -----------------------------------------------------------------------------------------------

whole = np.array([[3, -2, 0, 7], [1, 1, -5, 2], [4, 0, 2, 9]])
counts, small = np.array([1, 3, 3, 0, 6]), np.array([3, -2, 7], np.int32)
truth = np.array([[True, False, True, True], [False] * 4, [True] * 4])
EVERY = (x, whole, truth)

VALUES: list[tuple[Any, ...]] = [
    *[(name, a, *dims) for name in ("argmax", "argmin") for a,
        *dims in ((x,), (x, 0), (x, -1), (x, 1, True), (number,), (number, 0), (whole,))],
    *[("argmax", x, k) for k in ({"dim": 1}, {"dim": 0, "keepdim": True}, {"keepdim": True})],
    *[(name, a, *dims) for name in ("all", "any") for a in EVERY for dims in ((), (0,), (-1, True))],
    *[(name, a, *dims) for name in ("sum", "prod") for a in (whole, truth, small) for dims in ((), (-1,), (0, True))],
    *[(name, a, 0) for name in ("cumsum", "argsort", "sort") for a in EVERY],
    ("argsort", x, {"dim": 1, "descending": True}), ("sort", np.array([3, 1, 3, 2, 1]), {"stable": True}),
    ("sort", np.array([3, 1, 3, 2, 1]), {"stable": True, "descending": True}),
    *[(name, a) for name in ("neg", "abs", "sign", "floor", "ceil", "round", "relu", "square", "exp", "sqrt",
        "sigmoid", "tanh", "log1p", "reciprocal") for a in (whole, small)],
    *[(name, truth) for name in ("exp", "sign", "logical_not", "sin")],
    *[(name, a) for name in ("isnan", "isinf", "isfinite",
        "logical_not") for a in (np.array([nan, 0.0, inf, -inf, 2.0]), whole)],
    *[(name, a, b) for name in ("logical_and", "logical_or", "logical_xor") for a,
        b in ((truth, x > 0), (whole, x), (truth, row > 0))],
    *[(name, a, b) for name in ("eq", "ne", "lt", "le", "gt", "ge") for a,
        b in ((x, y), (whole, 2), (x, row), (truth, True), (x, 0.5), (whole, 1.5), (whole, x))],
    *[(name, a, b) for name in ("floor_divide", "remainder") for a,
        b in ((whole, 3), (whole, -3), (x, 0.3), (x, p), (small, 2), (whole, 2.5), (7, whole[:, :2] * 2 + 1))],
    *[("div", a, b, {"rounding_mode": m}) for a, b in ((whole, 2), (x, p), (whole, 2.5),
        (small, -2)) for m in ("floor", "trunc")],
    *[(name, a, b) for name in ("add", "sub", "mul", "maximum", "minimum", "div") for a,
        b in ((whole, whole + 1), (small, small * 2))],
    ("add", truth, truth), ("mul", truth, truth), ("add", truth, 2), ("pow", whole, 2), ("pow", 2, counts),
    ("pow", whole, counts[:4]),
    *[(name, a) for name in ("max", "min", "amax", "amin") for a in (whole, truth)],
    ("max", whole, 1), ("min", whole, 0, True), ("topk", counts[1:] * 2 + np.arange(4), 2), ("norm", x, 0, 1),
    ("clamp", whole, 0, 5), ("clamp", whole, {"min": 0.5}), ("where", truth, whole, 0), ("where", truth, 1, 2.5),
    ("where", truth, small[:1], x), ("bincount", counts), ("bincount", counts, {"minlength": 9}),
    ("bincount", counts, np.arange(5.0)), ("bincount", counts[:0]), ("nonzero", x > 0), ("nonzero", whole),
    ("nonzero", np.array(3)), ("isclose", x, x + 1e-9), ("masked_fill", whole, truth, 3), ("matmul", whole, whole.T),
    ("mm", small[None], small[:, None]), ("tril", whole), ("triu", truth), ("equal", whole, whole),
    ("allclose", x, x + 1), ("round", x, {"decimals": 1}), ("where", truth), ("nonzero", whole, {"as_tuple": True}),
]  # fmt: skip


@pytest.mark.parametrize("call", VALUES, ids=names)
def test_values_without_gradient(call: tuple[Any, ...]):
    for as_method in (False, True):
        if as_method and not is_method(call):
            continue
        of, arrays = applied(call, as_method)
        mine, other = of(tg, *map(tg.tensor, arrays)), of(torch, *map(torch.tensor, arrays))
        for a, b in zip(*(m if isinstance(m, tuple) else [m] for m in (mine, other)), strict=True):
            close(a, b) if isinstance(b, torch.Tensor) else assert_same(a, b)


def assert_same(a: Any, b: Any) -> None:
    assert type(a) is type(b)
    assert a == b


@pytest.mark.parametrize(
    ("arguments", "expected"), [(([0, 2, 1],), 3), (([[0, 1], [4, 0]], 6), 6), ((np.zeros((0, 2), int), 3), 3)]
)
def test_one_hot(arguments: Any, expected: int):
    data, *rest = arguments
    data = np.asarray(data)
    mine, other = (lib.nn.functional.one_hot(lib.tensor(data), *rest) for lib in (tg, torch))
    assert mine.shape[-1] == expected
    close(mine, other)


# --- special values ---------------------------------------------------------------------------------------------------

odd = np.array([nan, inf, -inf, 0.0, -0.0, 1.0, -1.0, 1e300, 1e-300])
ties = np.array([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0], [-0.0, 0.0, -1.0]])
nans = np.array([[1.0, nan, 3.0], [nan, 2.0, nan], [0.0, 1.0, 2.0]])
walls = np.array([[-inf, -inf, -inf], [-inf, 0.0, 1.0], [inf, 0.0, inf], [nan, 0.0, 0.0]])
zero = np.zeros((2, 3))
grid, turned = (np.repeat(odd, 9), np.tile(odd, 9))
holes = np.array([[2.0, 0.0, 3.0], [0.0, 0.0, 5.0], [1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])

SPECIAL: list[tuple[Any, ...]] = [
    # Left out, as torch has no rule there: amax beside NaN (its gradient is NaN in all of the row, where
    # that of max goes to the NaN), and products of NaN and two zeros (gradient 0).
    *[(name, odd) for name in UNARY if name not in ("tan", "sin", "cos", "prod", "amax", "amin")],
    *[(name, grid, turned) for name in ("add", "sub", "mul", "div", "maximum", "minimum", "pow")],
    *[("pow", odd, n) for n in (0, 1, 2, 3, -1, 0.0, 2.5)],
    ("pow", np.abs(odd), 0.5),
    *[("pow", s, odd) for s in (0, 1, 2.5, 0.0)],
    *[(name, a, dim) for name in ("max", "min", "sort") for a in (ties, nans, walls) for dim in (0, 1)],
    *[(name, a, *dims) for name in ("amax", "amin") for a in (ties, walls[:3], zero) for dims in ((), (0,), (1,))],
    ("prod", ties), ("prod", zero),
    *[(name, a) for name in ("max", "min", "argmax", "argmin", "sum", "mean", "var", "std", "norm") for a in (ties,
        nans, walls, zero)],
    *[("logsumexp", a, dim) for a in (ties, walls, nans, walls * 1e3) for dim in (0, 1, (0, 1))],
    ("softmax", walls, 1), ("log_softmax", walls, 1),
    *[("norm", a, *rest) for a in (zero, holes, walls) for rest in ((2, 1), (1, 1), (inf, 1), (3, 0), (-inf, 1))],
    ("norm", holes, 2),
    *[("prod", a, *dims) for a in (holes, nans) for dims in ((), (0,), (1,))],
    ("cumsum", nans, 0), ("clamp", odd, -0.5, 0.5), ("clamp", odd, 0.0, 0.0),
    *[(name, np.array([2.0])) for name in ("var", "std")],
    ("std", ties, 1), ("var", np.ones((3, 1)), 1), ("std", zero, {"dim": 1, "unbiased": False}),
    ("clamp", ties, 2.0, 3.0), ("clamp", ties, 2.0), ("clamp", ties, None, 2.0), ("maximum", ties, ties),
    ("minimum", ties, 2.0 * ties), ("where", nans > 1, nans, ties), ("masked_fill", nans, np.isnan(nans), 0.0),
    ("topk", nans, 2), ("var", zero[:0], 0), ("mean", zero[:0], 0), ("sum", zero[:0], 0), ("prod", zero[:0]),
    ("logsumexp", zero[:0], 0), ("norm", zero[:0]), ("div", 1.0, odd), ("sub", 0.0, odd), ("mul", odd, 0.0),
    ("add", odd, inf), ("round", np.array([0.5, 1.5, 2.5, -0.5])), ("remainder", odd, 2.0),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*degrees of freedom is <= 0")
@pytest.mark.parametrize("call", SPECIAL, ids=names)
def test_special_values(call: tuple[Any, ...]):
    of, arrays = applied(call, as_method=call[0].endswith("softmax"))
    results = []
    for lib in (tg, torch):
        leaves = [lib.tensor(a, requires_grad=a.dtype == float) for a in arrays]
        made = of(lib, *leaves)
        made = made if isinstance(made, tuple) else (made,)
        if made[0].requires_grad:
            (made[0] * lib.tensor(normal(*made[0].shape, seed=7))).sum().backward()
        results.append([*made, *(leaf.grad for leaf in leaves if leaf.grad is not None)])
    for a, b in zip(*results, strict=True):
        close(a, b)
