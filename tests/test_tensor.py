"""Tensors without gradients: creation, dtypes, repr, indexing, in-place operations, other libraries' memory, errors.

What torch defines is compared with torch: the same expression is evaluated in both libraries.
"""

from __future__ import annotations

import copy
import math
import operator
import pickle
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import tilegrad as tg

torch = pytest.importorskip("torch")

nan, inf = math.nan, math.inf
DTYPES = ("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64")


def dtype_name(t: Any) -> str:
    return str(t.dtype).rpartition(".")[2]


def same(mine: Any, other: Any) -> None:
    """Equal in value, shape and dtype; tuples part by part, and anything that is not a tensor by ==."""
    if isinstance(other, (tuple, list)) and not isinstance(other, torch.Size):
        for a, b in zip(mine, other, strict=True):
            same(a, b)
    elif isinstance(other, torch.Tensor):
        assert dtype_name(mine) == dtype_name(other)
        assert tuple(mine.shape) == tuple(other.shape)
        assert mine.requires_grad == other.requires_grad
        np.testing.assert_array_equal(as_float(mine), as_float(other))
    else:
        assert type(mine).__name__ == type(other).__name__
        assert mine == other or (mine != mine and other != other)


def as_float(t: Any) -> np.ndarray:
    return t.detach().double().numpy()


def both(of: Callable[[Any], Any]) -> None:
    same(of(tg), of(torch))


# --- creation ---------------------------------------------------------------------------------------------------------

CREATED: dict[str, Callable[[Any], Any]] = {
    "tensor": lambda lib: [lib.tensor(v) for v in (1, 2.5, True, [], [1, 2], [1.0, 2], [[True], [False]], (1, (2)),
        [[1, 2.5], [3, 4]], 10**12, -1, [[]], [1, True], inf, nan)],
    "tensor of numpy": lambda lib: [lib.tensor(np.array([1, 2],
        d)) for d in DTYPES if d != "bfloat16"] + [lib.tensor(np.float64(3)), lib.tensor(np.int32(3))],
    "tensor of tensors": lambda lib: [lib.tensor([lib.tensor(1.5), lib.tensor(2.0)]), lib.tensor([lib.tensor(1), 2])],
    "tensor dtype": lambda lib: [lib.tensor(v, dtype=getattr(lib, d)) for v in (0, [1, 0], 1.0) for d in DTYPES],
    "tensor requires_grad": lambda lib: lib.tensor([1.0], requires_grad=True),
    "zeros": lambda lib: [lib.zeros(2, 3), lib.zeros((2, 3)), lib.zeros([2]), lib.zeros(()), lib.zeros(0),
        lib.zeros(2, dtype=lib.int64), lib.zeros(lib.Size([2]))],
    "ones": lambda lib: [lib.ones(3, requires_grad=True), lib.ones(1, 0), lib.ones(2, dtype=lib.bool),
        lib.ones(2, 2, dtype=lib.float64)],
    "full": lambda lib: [lib.full((2, 3), v) for v in (1, 2.5, True)] + [lib.full((2,), 7, dtype=lib.float16),
        lib.full([], 3)],
    "empty": lambda lib: [lib.empty(2, 3).shape, dtype_name(lib.empty(2)), dtype_name(lib.empty((1,), dtype=lib.int8))],
    "arange": lambda lib: [lib.arange(*a) for a in ((5,), (2, 5), (5, 2, -1), (0, 1, 0.25), (5.0,), (1, 10, 3), (0,),
        (-3, 3), (2.5, 5))],
    "arange dtype": lambda lib: [lib.arange(4, dtype=lib.float32), lib.arange(0, 2, 0.5, dtype=lib.float64),
        lib.arange(end=3), lib.arange(start=1, end=3)],
    "linspace": lambda lib: [lib.linspace(0, 1, 5), lib.linspace(-2, 2, steps=9), lib.linspace(3, 3, 1),
        lib.linspace(0, 1, 0), lib.linspace(0, 8, 5, dtype=lib.int64)],
    "eye": lambda lib: [lib.eye(3), lib.eye(2, 3), lib.eye(0), lib.eye(2, dtype=lib.int64)],
    "like": lambda lib: [f(lib.tensor([[1, 2]], dtype=lib.int32), **k) for f in (lib.zeros_like,
        lib.ones_like) for k in ({}, {"dtype": lib.float32})] + [lib.full_like(lib.ones(2), 3),
        lib.full_like(lib.ones(2, dtype=lib.int64), 3), lib.empty_like(lib.ones(2, 3)).shape,
        lib.zeros_like(lib.ones(2), requires_grad=True)],
    "new": lambda lib: [lib.ones(2, dtype=lib.int16).new_zeros(3), lib.ones(2, dtype=lib.float64).new_ones((2, 2)),
        lib.ones(2).new_full((2,), 7.0)],
    "as_tensor": lambda lib: [lib.as_tensor([1, 2]), lib.as_tensor(np.arange(3.0)),
        lib.as_tensor(np.arange(3.0), dtype=lib.float32), lib.as_tensor(2.5)],
    "from_numpy": lambda lib: [lib.from_numpy(np.arange(6, dtype=d).reshape(2, 3)[:, ::2]) for d in ("uint8", "int16",
        "int64", "float16", "float32", "float64")],
    "Tensor": lambda lib: [lib.Tensor([1, 2]), lib.Tensor(2, 3).shape, lib.Tensor([[1.5]])],
    "random shapes": lambda lib: [(r.shape, dtype_name(r), r.requires_grad) for r in (lib.rand(2, 3), lib.randn((4,)),
        lib.rand(()), lib.randn(2, dtype=lib.float64, requires_grad=True), lib.randint(5, (2, 3)),
        lib.randint(2, 5, (2,)), lib.randint(0, 2, (3,), dtype=lib.int32), lib.randperm(7),
        lib.rand_like(lib.ones(2, 2)), lib.randn_like(lib.ones(3, dtype=lib.float16)), lib.normal(0.0, 1.0, (2, 2)),
        lib.bernoulli(lib.full((3,), 0.5)), lib.multinomial(lib.ones(4), 2), lib.empty(3).uniform_(),
        lib.empty(2).normal_())],
}  # fmt: skip


@pytest.mark.parametrize("name", CREATED)
def test_creation(name: str):
    both(CREATED[name])


def test_random_numbers_follow_the_seed():
    def draw() -> list[Any]:
        return [
            tg.rand(3),
            tg.randn(3),
            tg.randint(0, 9, (3,)),
            tg.randperm(9),
            tg.normal(0.0, 1.0, (3,)),
            tg.bernoulli(tg.full((9,), 0.5)),
        ]

    tg.manual_seed(7)
    first = draw()
    again = draw()
    tg.manual_seed(7)
    for a, b, c in zip(first, draw(), again, strict=True):
        assert a.tolist() == b.tolist()
        assert a.tolist() != c.tolist()
    g = tg.Generator().manual_seed(3)
    a = tg.rand(4, generator=g)
    assert a.tolist() == tg.rand(4, generator=tg.Generator().manual_seed(3)).tolist()
    assert tg.initial_seed() == 7
    state = tg.default_generator.get_state()
    expected = tg.randn(3).tolist()
    tg.manual_seed(8)
    tg.default_generator.set_state(state)
    assert tg.randn(3).tolist() == expected


def test_random_numbers_are_distributed_as_asked():
    tg.manual_seed(0)
    u, n, i = tg.rand(50_000), tg.randn(50_000), tg.randint(-2, 3, (50_000,))
    assert 0 <= u.min().item() < 0.001
    assert 0.999 < u.max().item() < 1
    assert u.mean().item() == pytest.approx(0.5, abs=0.01)
    assert n.mean().item() == pytest.approx(0, abs=0.02)
    assert n.std().item() == pytest.approx(1, abs=0.02)
    assert sorted(set(i.tolist())) == [-2, -1, 0, 1, 2]
    assert sorted(tg.randperm(100).tolist()) == list(range(100))
    assert tg.normal(5.0, 0.1, (1000,)).mean().item() == pytest.approx(5, abs=0.02)
    drawn = tg.multinomial(tg.tensor([[0.0, 1.0, 3.0], [1.0, 0.0, 0.0]]), 10_000, replacement=True)
    assert drawn[0].bincount(minlength=3)[1].item() == pytest.approx(2500, abs=150)
    assert drawn[1].sum().item() == 0
    assert sorted(tg.multinomial(tg.ones(4), 4).tolist()) == [0, 1, 2, 3]


def test_default_dtype():
    try:
        tg.set_default_dtype(tg.float64)
        assert tg.tensor(1.5).dtype == tg.zeros(2).dtype == tg.rand(1).dtype == (tg.tensor([1]) / 2).dtype == tg.float64
        assert repr(tg.ones(1)) == "tensor([1.])"
        assert tg.tensor([1]).dtype == tg.int64
    finally:
        tg.set_default_dtype(tg.float32)
    with pytest.raises(TypeError, match="floating"):
        tg.set_default_dtype(tg.int32)


# --- dtypes -----------------------------------------------------------------------------------------------------------

OPERATORS = {"+": operator.add, "*": operator.mul, "/": operator.truediv, "<": operator.lt, "==": operator.eq}


@pytest.mark.parametrize("a", DTYPES)
@pytest.mark.parametrize("b", DTYPES)
def test_promotion_of_tensors(a: str, b: str):
    for shapes in (((2,), (2,)), ((), (2,)), ((2,), ()), ((), ()), ((1,), ())):
        for name, op in OPERATORS.items():
            made = [
                op(*(lib.ones(s, dtype=getattr(lib, d)) for s, d in zip(shapes, (a, b), strict=True)))
                for lib in (tg, torch)
            ]
            assert dtype_name(made[0]) == dtype_name(made[1]), (name, shapes)
            np.testing.assert_array_equal(as_float(made[0]), as_float(made[1]))
        for f in ("maximum", "minimum", "where", "cat", "pow"):
            made = []
            for lib in (tg, torch):
                x, y = (lib.ones(s, dtype=getattr(lib, d)) for s, d in zip(shapes, (a, b), strict=True))
                if f == "cat":
                    made.append(lib.cat([x.reshape(-1), y.reshape(-1)]))
                elif f == "where":
                    made.append(lib.where(x == x, x, y))
                elif f == "pow" and {a, b} == {"bool"}:
                    continue  # torch has none
                else:
                    made.append(getattr(lib, f)(x, y))
            if made:
                assert dtype_name(made[0]) == dtype_name(made[1]), (f, shapes)


def rsub(a: Any, b: Any) -> Any:
    return b - a


def rtruediv(a: Any, b: Any) -> Any:
    return b / a


def rpow(a: Any, b: Any) -> Any:
    return b**a


@pytest.mark.parametrize("d", DTYPES)
@pytest.mark.parametrize("scalar", [True, 2, 2.5])
def test_promotion_with_python_numbers(d: str, scalar: Any):
    for shape in ((2,), ()):
        for op in (*OPERATORS.values(), rtruediv, operator.gt):
            both(lambda lib: op(lib.ones(shape, dtype=getattr(lib, d)), scalar))
        if d != "bool" and scalar is not True:
            for op in (operator.sub, operator.pow, operator.mod, operator.floordiv, rsub, rpow):
                both(lambda lib: op(lib.ones(shape, dtype=getattr(lib, d)) * 3, scalar))
        both(lambda lib: lib.where(lib.ones(shape, dtype=lib.bool), lib.ones(shape, dtype=getattr(lib, d)), scalar))
        if d != "bool":
            both(lambda lib: lib.ones(shape, dtype=getattr(lib, d)).clamp(max=scalar))


# Results by the dtypes that torch has them for.
ANY: list[Callable[[Any, Any], Any]] = [
    lambda lib,
    x: [x.sum(), x.sum(0), x.prod(), x.cumsum(0), x.sum(dtype=lib.float64), x.mean(dtype=lib.float32),
    x.cumsum(1, dtype=lib.float32)],
    lambda lib,
    x: [x.exp(), x.sqrt(), x.sigmoid(), x.sin(), x.log(), x.tanh(), x.sign(), x > 0, x == x, x.clone(), x[0]],
    lambda lib,
    x: [x.max(), x.amax(0), *x.sort(), x.float(), x.long(), x.half(), x.bool(), x.to(lib.int16), x.double().to(x),
    x.type_as(lib.ones(1, dtype=lib.int8))],
]  # fmt: skip
BUT_FOR: dict[str, tuple[str, Callable[[Any, Any], Any]]] = {
    "argmax": ("bool", lambda lib, x: [x.argmax(), x.argmin(0), x.abs(), x.topk(1, 0).values]),
    "any": ("uint8", lambda lib, x: [x.any(), x.all(0)]),
    "neg": ("bool float16 bfloat16", lambda lib, x: [-x, x.floor(), x @ x.T, x**2]),
    "mean": ("bool uint8 int8 int16 int32 int64", lambda lib,
        x: [x.mean(), x.var(), x.std(0), x.norm(), x.logsumexp(1), x.softmax(0), x.round(), x @ x.T, x.prod(1)]),
}  # fmt: skip


@pytest.mark.parametrize("d", DTYPES)
def test_dtypes_of_results(d: str):
    wanted = [*ANY, *(of for without, of in BUT_FOR.values() if d not in without.split())]

    def results(lib: Any) -> list[Any]:
        x = lib.ones(2, 3, dtype=getattr(lib, d))
        made = [m for of in wanted for m in of(lib, x)]
        exact = [as_float(m).tolist() for m in made if dtype_name(m) in ("int64", "bool", "float64")]
        return [dtype_name(m) for m in made] + exact

    assert results(tg) == results(torch)


HALF_OPS = (
    "exp", "log", "sqrt", "tanh", "sigmoid", "sin", "cos", "log1p", "expm1", "reciprocal", "abs", "neg", "relu",
    "sum", "mean", "std", "norm", "prod", "square",
)  # fmt: skip


@pytest.mark.parametrize("d", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", HALF_OPS)
def test_half_precision_rounds_once(d: str, name: str):
    """Against the float64 result of the same inputs: half a unit in the last place, and for gradients (where what the
    forward rounded is used again) torch's error."""
    data = tg.tensor(np.abs(np.random.default_rng(0).normal(size=(40, 50))) + 0.1).to(getattr(tg, d))
    data = data[:2, :3] if name == "prod" else data
    made = []
    for x in (data.clone(), data.double(), torch.tensor(data.double().numpy()).to(getattr(torch, d))):
        x.requires_grad_()
        y = getattr(x, name)()
        y.sum().backward()
        made.append((as_float(y), as_float(x.grad)))
    (mine, my_grad), (truth, true_grad), (_, other_grad) = made
    ulp = 2.0**-10 if d == "float16" else 2.0**-7
    np.testing.assert_allclose(mine, truth, rtol=0.501 * ulp, atol=1e-7)
    assert np.abs(my_grad - true_grad).max() <= max(
        1.01 * np.abs(other_grad - true_grad).max(), ulp / 2 * np.abs(true_grad).max()
    )


def test_sums_of_halves_do_not_overflow_or_stall():
    x = tg.full((100_000,), 1.0, dtype=tg.float16)
    assert x.mean().item() == 1.0
    assert x.sum().item() == inf  # beyond 65504, and only then
    assert tg.ones(5000, dtype=tg.bfloat16).sum().item() == 4992.0  # 5000 rounded once; added up in bfloat16: 256
    assert tg.full((4,), 300.0, dtype=tg.float16).std().item() == 0.0
    squares_overflow = tg.tensor([0.0, 600.0], dtype=tg.float16)
    assert squares_overflow.std().item() == pytest.approx(424.3, abs=0.2)


def test_dtype_objects():
    assert str(tg.float32) == repr(tg.float32) == "tilegrad.float32"
    assert tg.float is tg.float32
    assert (tg.half, tg.double, tg.long, tg.int, tg.short) == (tg.float16, tg.float64, tg.int64, tg.int32, tg.int16)
    assert tg.ones(1).dtype == np.float32
    assert tg.ones(1).dtype != tg.float64
    assert tg.ones(1).dtype in (tg.float32, tg.float64)
    assert tg.float32 is not None
    assert tg.float32 != "nothing"
    assert {tg.float32: 1}[tg.ones(1).dtype] == 1
    assert np.zeros(2, tg.bfloat16).dtype == ml_dtypes.bfloat16
    assert pickle.loads(pickle.dumps(tg.bfloat16)) is tg.bfloat16
    assert copy.deepcopy(tg.bool) is tg.bool
    assert tg.float16.itemsize == 2
    assert tg.float64.is_floating_point
    assert not tg.int8.is_floating_point
    for d in ("float64", np.float64, float, tg.float64, torch.float64):
        assert tg.zeros(1, dtype=d).dtype == (tg.float32 if d is float else tg.float64)
    for d in (np.complex64, "complex64", object, "float8", 7):
        with pytest.raises(TypeError, match="unsupported dtype"):
            tg.zeros(1, dtype=d)


# --- repr -------------------------------------------------------------------------------------------------------------

SHOWN: dict[str, Callable[[Any], Any]] = {
    "scalars": lambda lib: [lib.tensor(v) for v in (3, 2.5, True, 1e-5, 123456789.0, -0.0, nan, -inf, 1.0, 0.1, 1e20)],
    "ints": lambda lib: [lib.arange(5), lib.tensor([-100, 5, 12345]), lib.arange(3, dtype=lib.int32),
        lib.arange(24).reshape(2, 3, 4), lib.tensor([7], dtype=lib.uint8)],
    "bools": lambda lib: [lib.tensor([True, False]), lib.ones(2, 2, dtype=lib.bool), lib.tensor([[False]])],
    "empty": lambda lib: [lib.zeros(0), lib.zeros(0, 3), lib.zeros(2, 0, dtype=lib.int64),
        lib.tensor([], dtype=lib.int64), lib.zeros(0, dtype=lib.float64), lib.zeros(0, requires_grad=True)],
    "floats": lambda lib: [lib.tensor(v) for v in ([1.0, 2.0], [0.5, 1.25, -3.0], [1e-5, 1.0], [1e10, 1.0],
        [1.0, 1e5], [0.0001, 0.001], [0.00001, 0.0], [1e-10], [1234.5678, 0.1], [1000000.0, 2.0], [99999999.0],
        [123456789.0, 1.0], [1e8, 1e-8], [0.0, 0.0], [1 / 3, 2 / 3], [-1e-7, 1e7], [1e4, 0.5], [10000.0, 0.1234],
        [1001.0, 1.0], [3e38], [1e-45])],
    "special": lambda lib: [lib.tensor(v) for v in ([nan, 1.0], [inf, -inf], [nan], [inf, 1.5], [nan, 1e10],
        [-inf, 0.25, nan], [nan, inf, 12345.0])],
    "nested": lambda lib: [lib.tensor([[1.0, 2.0], [3.0, 4.5]]), lib.zeros(2, 2, 2), lib.ones(1, 1, 1, 2),
        lib.arange(16.0).reshape(2, 2, 2, 2), lib.tensor([[-1.0, 10.0]])],
    "dtypes": lambda lib: [lib.tensor([1.5, 2], dtype=getattr(lib, d)) for d in ("float16", "bfloat16", "float64",
        "int8", "int16")] + [lib.tensor(1.5, dtype=lib.float64), lib.zeros(2, dtype=lib.half)],
    "halves": lambda lib: [lib.tensor([0.1, 1000.0, 1e-3], dtype=d) for d in (lib.float16,
        lib.bfloat16)] + [lib.tensor([65504.0, 1e-4], dtype=lib.float16)],
    "long lines": lambda lib: [lib.arange(40), lib.arange(30.0) / 7, lib.arange(60).reshape(2, 30),
        lib.arange(100.0).reshape(4, 25) * 1.5, lib.arange(30) > 3],
    "summarised": lambda lib: [lib.arange(2000), lib.zeros(1001), lib.arange(10000).reshape(100, 100),
        lib.arange(3000.0).reshape(2, 1500), lib.ones(20, 20, 20), lib.arange(1000), lib.arange(1e6),
        lib.zeros(50, 2, 30), lib.arange(2002).reshape(1001, 2), lib.cat([lib.ones(600), lib.full((600,), 1e6)])],
    "grad": lambda lib: [lib.ones(2, requires_grad=True), lib.tensor(1.5, requires_grad=True),
        lib.ones(2, 2, dtype=lib.float64, requires_grad=True), lib.ones(3, requires_grad=True).detach()],
    "grad_fn": lambda lib: [f(lib.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)) for f in (lambda x: x + 1,
        lambda x: x * x, lambda x: x / 2, lambda x: -x, lambda x: x**2, lambda x: x.exp(), lambda x: x.sum(),
        lambda x: x.sum(0), lambda x: x.mean(), lambda x: x.mean(1), lambda x: x.amax(1), lambda x: x.relu(),
        lambda x: x.sigmoid(), lambda x: x.tanh(), lambda x: x @ x, lambda x: x.T, lambda x: x.log(),
        lambda x: x.view(4), lambda x: x.reshape(-1), lambda x: x[0], lambda x: x[0, 1], lambda x: x[:, 1],
        lambda x: x[[0, 1]], lambda x: x.unsqueeze(0), lambda x: x.clone(), lambda x: x.double(),
        lambda x: lib.cat([x, x]), lambda x: x.std(), lambda x: x.var(), lambda x: x.abs(), lambda x: x.sqrt(),
        lambda x: lib.where(x > 0, x, 0.0), lambda x: x.clamp(0, 1), lambda x: x.permute(1, 0),
        lambda x: x.transpose(0, 1), lambda x: x.norm(), lambda x: x.expand(2, 2, 2), lambda x: x.cumsum(0),
        lambda x: x.flatten(), lambda x: x.logsumexp(0), lambda x: lib.maximum(x, x),
        lambda x: x.gather(1, lib.tensor([[0], [1]])))],
    "every width": lambda lib: [lib.arange(n, dtype=d) for n in range(1, 40) for d in (lib.float64, lib.int32)],
    "wide suffix": lambda lib: [lib.arange(8, dtype=lib.float64).requires_grad_() * 1.1,
        lib.arange(7, dtype=lib.float64) * 1.25, (lib.arange(9.0) * 1111.25).requires_grad_(),
        lib.arange(12, dtype=lib.int32) * 1000],
}  # fmt: skip


@pytest.mark.parametrize("name", SHOWN)
def test_repr(name: str):
    for mine, other in zip(SHOWN[name](tg), SHOWN[name](torch), strict=True):
        expected = repr(other).replace("torch.", "tilegrad.")
        assert repr(mine) == expected
        assert str(mine) == expected
        assert f"{mine}" == f"{other}".replace("torch.", "tilegrad.")


def test_other_words():
    assert repr(tg.ones(2, 3).shape) == "tilegrad.Size([2, 3])"
    assert str(tg.ones(1).device) == "cpu"
    assert repr(tg.device("cuda", 1)) == "device(type='cuda', index=1)"
    assert f"{tg.tensor(2.5):.2f} {tg.tensor(3)} {tg.tensor(3):4d} {tg.ones(1)}" == "2.50 3    3 tensor([1.])"
    assert tg.ones(2).shape == (2,)
    assert tg.ones(2, 3).size() == tg.Size([2, 3])
    assert tg.ones(2, 3).size(-1) == 3
    assert tg.ones(2, 3).shape.numel() == 6
    assert repr(tg.ones(2, 3, 4).shape[1:]) == "tilegrad.Size([3, 4])"
    assert repr(tg.Size([2]) + (5,)) == "tilegrad.Size([2, 5])"  # noqa: RUF005
    mine, other = (lib.tensor([[1.0, 2.0], [4.0, 3.0]]) for lib in (tg, torch))
    for a, b in ((mine.max(0), other.max(0)), (mine.min(1, True), other.min(1, True)), (mine.sort(), other.sort())):
        assert str(a) == str(b).replace("torch.", "tilegrad.")


# --- other libraries --------------------------------------------------------------------------------------------------


def test_numpy_shares_memory():
    a = np.arange(6.0).reshape(2, 3)
    t = tg.from_numpy(a)
    a[0, 0] = 9
    assert t[0, 0].item() == 9
    t[1] = -1
    assert a[1].tolist() == [-1] * 3
    assert t.numpy() is a or np.shares_memory(t.numpy(), a)
    assert np.shares_memory(np.asarray(t), a)
    assert np.shares_memory(tg.as_tensor(a).numpy(), a)
    assert not np.shares_memory(tg.tensor(a).numpy(), a)
    assert np.shares_memory(t.T.numpy(), a)
    assert np.shares_memory(t.detach().requires_grad_().detach().numpy(), a)
    assert np.array(t, dtype=np.float32).dtype == np.float32
    assert np.array(t).base is None
    assert t.sum(axis=0, keepdims=True).tolist() == a.sum(axis=0, keepdims=True).tolist()
    assert np.asarray(tg.ones(2, dtype=tg.bfloat16)).dtype == ml_dtypes.bfloat16
    for array in (np.arange(4)[::-1], np.zeros((2, 0)), np.array(3.0), np.arange(8).reshape(2, 4).T):
        t = tg.from_numpy(array)
        assert t.tolist() == array.tolist()
        assert (t + 1).tolist() == (array + 1).tolist()
    needs = tg.ones(2, requires_grad=True)
    for f in (lambda: needs.numpy(), lambda: np.asarray(needs)):
        with pytest.raises(RuntimeError, match=r"requires grad.*detach"):
            f()
    assert needs.numpy(force=True).tolist() == [1, 1]


def test_mixed_with_numpy_operands():
    a, t = np.arange(3.0), tg.ones(3, dtype=tg.float64)
    for value in (t * np.float64(2), np.float64(2) * t, t + np.int64(1), np.float32(1) + t):
        assert isinstance(value, tg.Tensor)
        assert value.tolist() == [2.0] * 3
        assert value.dtype == tg.float64
    for f in (lambda: t + a, lambda: a + t, lambda: t @ a, lambda: a @ t):
        with pytest.raises(TypeError, match="ndarray"):
            f()
    assert (tg.ones(2) * np.float64(2)).dtype == tg.float32


@pytest.mark.parametrize("d", DTYPES)
def test_dlpack_with_torch(d: str):
    theirs = torch.arange(6).reshape(2, 3).to(getattr(torch, d))
    mine = tg.from_dlpack(theirs)
    same(mine, theirs)
    theirs[0, 0] = 5
    mine[1, 1] = 7
    same(mine, theirs)
    same(tg.from_dlpack(theirs.T), theirs.T)
    assert mine.__dlpack_device__() == (1, 0)
    back = torch.from_dlpack(mine)
    assert back.data_ptr() == theirs.data_ptr()
    same(mine.T, torch.from_dlpack(mine.T))
    same(mine[1:, ::2], torch.from_dlpack(mine[1:, ::2]))
    assert torch.utils.dlpack.from_dlpack(mine.__dlpack__()).data_ptr() == theirs.data_ptr()  # the older protocol


def test_dlpack_with_numpy():
    a = np.arange(4.0)
    t = tg.from_dlpack(a)
    assert np.shares_memory(t.numpy(), a)
    assert np.shares_memory(np.from_dlpack(tg.ones(2)), np.empty(0)) is False
    x = tg.arange(3)
    assert np.shares_memory(np.from_dlpack(x), x.numpy())
    with pytest.raises(BufferError, match="detach"):
        np.from_dlpack(tg.ones(2, requires_grad=True))
    assert tg.from_dlpack(torch.ones(2, requires_grad=True).detach()).tolist() == [1, 1]
    torch.from_dlpack(x)[0] = 8
    assert x[0].item() == 8
    for thing in (3, [1, 2], None):
        with pytest.raises(TypeError, match="from_dlpack"):
            tg.from_dlpack(thing)


TO_PYTHON: dict[str, Callable[[Any], Any]] = {
    "item": lambda lib: [lib.tensor(v).item() for v in (3, 2.5, True)] + [lib.ones(1, 1).item(),
        lib.tensor(0.1, dtype=lib.float16).item(), lib.tensor(1.5, dtype=lib.bfloat16).item()],
    "tolist": lambda lib: [lib.arange(4).reshape(2, 2).tolist(), lib.tensor(2.5).tolist(), lib.zeros(0).tolist(),
        lib.ones(2, dtype=lib.bfloat16).tolist(), lib.ones(2, dtype=lib.bool).tolist()],
    "conversion": lambda lib: [float(lib.tensor(2)), int(lib.tensor(2.9)), bool(lib.tensor([0.0])),
        len(lib.ones(3, 2)), [1, 2, 3][lib.tensor(1)], list(range(5))[lib.tensor(1) : lib.tensor(3)]],
    "protocols": lambda lib: [[r.tolist() for r in lib.arange(4).reshape(2, 2)], 3 in lib.arange(4),
        9 in lib.arange(4), round(float(lib.tensor(2.6))), math.sqrt(lib.tensor(4.0))],
    "bits": lambda lib: [t.tolist() for m, n in ((lib.tensor([True, False, True]), lib.tensor([True, True, False])),
        (lib.tensor([5, -3]), lib.tensor([6, 2]))) for t in (~m, m & n, m | n, m ^ n, n & m[0])],
    "layout": lambda lib: [lib.ones(2, 3).numel(), lib.ones(2, 3).dim(), lib.ones(2, 3).ndim, lib.ones(2, 3).stride(),
        lib.ones(2, 3).T.is_contiguous(), lib.ones(3).element_size(), lib.ones(2, 3).nbytes],
    "questions": lambda lib: [lib.is_tensor(lib.ones(1)), lib.numel(lib.ones(2, 2)), lib.ones(1).is_floating_point(),
        lib.ones(1).is_cuda, lib.ones(2).equal(lib.ones(2)), lib.equal(lib.ones(2), lib.ones(3))],
}  # fmt: skip


@pytest.mark.parametrize("name", TO_PYTHON)
def test_out_to_python(name: str):
    both(TO_PYTHON[name])


def test_tensors_are_compared_by_identity_where_they_are_keys():
    t = tg.ones(2)
    assert hash(t) == hash(t)
    assert t in {t}
    assert {t: 1}[t] == 1
    assert (t == None) is False  # noqa: E711
    assert (t != None) is True  # noqa: E711


def test_copies():
    x = tg.tensor([1.0, 2.0], requires_grad=True)
    (x * x).sum().backward()
    twin = copy.deepcopy(x)
    assert twin.tolist() == [1, 2]
    assert twin.requires_grad
    assert twin.grad.tolist() == [2, 4]
    with tg.no_grad():
        twin.zero_()
    twin.grad.zero_()
    assert x.tolist() == [1, 2]
    assert x.grad.tolist() == [2, 4]
    with pytest.raises(RuntimeError, match="leaves"):
        copy.deepcopy(x * 2)
    loaded = pickle.loads(pickle.dumps(tg.ones(2, dtype=tg.bfloat16, requires_grad=True)))
    assert loaded.requires_grad
    assert loaded.dtype == tg.bfloat16
    assert copy.copy(x).tolist() == [1, 2]


def test_to():
    x = tg.ones(2)
    assert x.to(tg.float32) is x
    assert x.to("cpu") is x
    assert x.to(tg.device("cpu"), tg.float64).dtype == tg.float64
    assert x.to(device="cpu", dtype=tg.int32).dtype == tg.int32
    assert x.to(tg.ones(1, dtype=tg.float16)).dtype == tg.float16
    assert x.to(tg.float32, copy=True) is not x
    assert x.to(tg.float64, non_blocking=True).dtype == tg.float64
    assert x.cpu() is x
    assert x.contiguous() is x
    assert x.float() is x
    assert x.type(tg.int64).dtype == tg.int64
    with pytest.raises(ValueError, match='expected device "cpu", "cuda" or "cuda:N"'):
        x.to("tpu")
    if not tg.cuda.is_available():
        for f in (lambda: x.to("cuda"), lambda: x.cuda(), lambda: tg.zeros(2, device="cuda:1")):
            with pytest.raises(RuntimeError, match="CuPy"):
                f()


# --- indexing ---------------------------------------------------------------------------------------------------------

KEYS: dict[str, Any] = {
    "int": 1,
    "negative": -1,
    "ints": (1, 2),
    "slice": slice(1, None),
    "step": slice(None, None, 2),
    "negative slice": slice(-2, None),
    "empty slice": slice(2, 1),
    "over the end": slice(1, 99),
    "slices": (slice(0, 2), slice(1, 3)),
    "mixed": (1, slice(None), 0),
    "...": ...,
    "... int": (..., 1),
    "int ...": (0, ...),
    "all": slice(None),
    "()": (),
    "None": None,
    "None slice": (slice(None), None, 1),
    "Nones": (None, ..., None),
    "list": [0, 2],
    "negative list": [-1, 0],
    "lists": ([0, 2], [1, 3]),
    "broadcast lists": ([[0], [2]], [1, 3]),
    "slice list": (slice(None), [3, 1]),
    "list slice": ([2, 0], slice(1, 3)),
    "int list": (1, [0, 2]),
    "list int": ([0, 2], 1),
    "int slice list": (1, slice(None), [0, 1]),
    "list slice list": ([0, 1], slice(None), [1, 0]),
    "... list": (..., [0, 1]),
    "None list": (None, [0, 2]),
    "list None list": ([0, 1], None, [1, 1]),
    "empty list": [],
    "numpy": np.array([2, 0]),
    "numpy int": np.int64(1),
    "range": range(2),
    "bool list": [True, False, True],
    "True": True,
    "False": False,
    "True int": (True, 1),
}  # fmt: skip
TENSOR_KEYS: dict[str, Callable[[Any, Any], Any]] = {
    "tensor": lambda lib,
    x: lib.tensor([2, 0, 1]),
    "0-d tensor": lambda lib,
    x: lib.tensor(1),
    "int32 tensor": lambda lib,
    x: lib.tensor([1], dtype=lib.int32),
    "mask": lambda lib,
    x: x > 10,
    "row mask": lambda lib,
    x: lib.tensor([True, False, True]),
    "mask and int": lambda lib,
    x: (lib.tensor([True, False, True]), 1),
    "mask of columns": lambda lib,
    x: (slice(None), x[0, :, 0] > 4),
    "mask slice": lambda lib,
    x: (x[:, :, 0] > 8, slice(0, 1)),
    "no hit": lambda lib,
    x: x > 99,
    "2-d": lambda lib,
    x: lib.tensor([[0, 1], [2, 2]]),
    "pair": lambda lib,
    x: (lib.tensor([0, 1]), lib.tensor([2, 0])),
    "0-d between": lambda lib,
    x: (lib.tensor(1), slice(None), lib.tensor([0, 1])),
    "empty": lambda lib,
    x: lib.tensor([], dtype=lib.int64),
    "slice of tensors": lambda lib,
    x: slice(lib.tensor(0), lib.tensor(2)),
    "0-d mask": lambda lib,
    x: lib.tensor(True),
    "uint8 free": lambda lib,
    x: lib.tensor([0, 1], dtype=lib.int8).long(),
}  # fmt: skip
EVERY_KEY = {**{k: (lambda lib, x, v=v: v) for k, v in KEYS.items()}, **TENSOR_KEYS}


@pytest.mark.parametrize("name", EVERY_KEY)
def test_indexing(name: str):
    of = EVERY_KEY[name]
    if name != "mask of columns":
        both(lambda lib: (x := lib.arange(24.0).reshape(3, 4, 2), x[of(lib, x)])[1])

    def written(lib: Any, value: Any) -> Any:
        x = lib.arange(24.0).reshape(3, 4, 2)
        x[of(lib, x)] = value(lib, x[of(lib, x)])
        return x

    for value in (lambda lib, part: 99, lambda lib, part: part * -2, lambda lib, part: lib.tensor(2.5)):
        both(lambda lib: written(lib, value))


def test_indexing_shares_or_copies():
    x = tg.arange(12.0).reshape(3, 4)
    for key in (1, slice(1, 3), (..., 0), (None, 1), (slice(None), slice(0, 2))):
        assert np.shares_memory(x[key].numpy(), x.numpy())
    for key in ([0, 1], x > 3, tg.tensor([1, 1])):
        assert not np.shares_memory(x[key].numpy(), x.numpy())
    for view in (
        x.T, x.view(2, 6), x.reshape(12), x.flatten(), x.unsqueeze(0), x[None].squeeze(), x.permute(1, 0),
        x.split(1)[1],
        x.chunk(2)[0], x.detach(), x.unbind()[0], x.movedim(0, 1), x.t(), x[1:], x[:, None],
    ):  # fmt: skip
        assert np.shares_memory(view.numpy(), x.numpy())
        before = x._version
        view[..., 0].mul_(1)
        assert x._version == view._version == before + 1
    for made in (x.clone(), x.contiguous() + 0, x.T.reshape(12), x.repeat(1, 1), x.flip(0), tg.cat([x])):
        assert not np.shares_memory(made.numpy(), x.numpy())


# --- errors -----------------------------------------------------------------------------------------------------------

t23, t4, i3 = tg.ones(2, 3), tg.ones(4), tg.arange(3)
ERRORS: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: t23 + t4, ValueError, r"add: shapes \[2, 3\] and \[4\] cannot be broadcast"),
    (lambda: tg.maximum(t23, t4), ValueError, "maximum"), (lambda: t23 < t4, ValueError, "less"),
    (lambda: t23 + "a", TypeError, "add: expected a Tensor or a number beside a Tensor, got str"),
    (lambda: t23 * [1, 2, 3], TypeError, "list"), (lambda: t23 + None, TypeError, "NoneType"),
    (lambda: 2j * t4, TypeError, "complex"), (lambda: t23 @ t23, ValueError, r"matmul: shapes \[2, 3\] and \[2, 3\]"),
    (lambda: t23 @ t4, ValueError, "matmul"), (lambda: t23 @ i3, TypeError, r"matmul: .*float32 and tilegrad.int64"),
    (lambda: tg.ones(()) @ t4, ValueError, "matmul"), (lambda: t23 @ 3, TypeError, "matmul"),
    (lambda: tg.ones(2, 2, 3) @ tg.ones(3, 3, 2), ValueError, "batch"), (lambda: t23.mm(t4), ValueError, "mm"),
    (lambda: t23.dot(t4), ValueError, "dot"), (lambda: t23.bmm(t23), ValueError, "bmm"),
    (lambda: t23.reshape(4, 2), ValueError, r"reshape: cannot give 6 elements of shape \[2, 3\] the shape \[4, 2\]"),
    (lambda: t23.view(-1, -1), ValueError, "view|reshape"), (lambda: t23.reshape(-1, 4), ValueError, "reshape"),
    (lambda: t23.T.view(6), ValueError, "view: .* use reshape"), (lambda: t23.reshape("a"), TypeError, "shape"),
    (lambda: t23.sum(2), IndexError, "sum: dim 2 is out of range for a tensor of 2 dimensions"),
    (lambda: t23.sum((0, 0)), ValueError, "twice"), (lambda: t23.argmax(5), IndexError, "argmax"),
    (lambda: t23.transpose(0, 2), IndexError, "transpose"), (lambda: t23.permute(0), ValueError, "permute"),
    (lambda: t23.permute(0, 0), ValueError, "permute"), (lambda: t23.unsqueeze(4), IndexError, "unsqueeze"),
    (lambda: t23.expand(2, 4), ValueError, r"expand: shape \[2, 3\] cannot be expanded to \[2, 4\]"),
    (lambda: t23.expand(3), ValueError, "expand"), (lambda: t23.repeat(2), ValueError, "repeat"),
    (lambda: t23.flatten(1, 0), ValueError, "flatten"), (lambda: tg.cat([]), ValueError, "cat"),
    (lambda: tg.cat([t23, t4]), ValueError, r"cat: .*\[2, 3\] and \[4\]"),
    (lambda: tg.cat([t23, tg.ones(3, 2)]), ValueError, "cat"), (lambda: tg.stack([t23, t4]), ValueError, "stack"),
    (lambda: tg.stack([]), ValueError, "stack"), (lambda: t23.split([1, 3]), ValueError, "split"),
    (lambda: t23.split(0), ValueError, "split"), (lambda: t23.chunk(0), ValueError, "chunk"),
    (lambda: t4.mT, ValueError, "mT"), (lambda: tg.ones(1, 1, 1).t(), ValueError, "t:"),
    (lambda: t23[2], IndexError, "index 2|out of"),
    (lambda: t23[0, 0, 0], IndexError, "too many indices: got 3 for a tensor of 2"),
    (lambda: t23[[0, 5]], IndexError, "5"), (lambda: t23[0.5], IndexError, None),
    (lambda: t23[t23], IndexError, "float32"), (lambda: t23["a"], IndexError, None),
    (lambda: t23[::-1], ValueError, "step"),
    (lambda: t23[tg.ones(3, dtype=tg.bool)], IndexError, r"mask of shape \[3\] was used on \[2\]"),
    (lambda: t23[..., ...], IndexError, None), (lambda: tg.tensor(1)[0], IndexError, "0 dimensions"),
    (lambda: t23.__setitem__(0, t4), ValueError, None), (lambda: t23.__setitem__(5, 1), IndexError, None),
    (lambda: t23.copy_(t4), ValueError, None),
    (lambda: t4.add_(tg.ones(2, 4)), ValueError, r"\[2, 4\] does not fit \[4\]"),
    (lambda: i3.div_(2), TypeError, "int64"),
    (lambda: i3.mean(), TypeError, "mean: expected a floating dtype, got tilegrad.int64"),
    (lambda: i3.var(), TypeError, "var"), (lambda: i3.norm(), TypeError, "norm"),
    (lambda: t4.norm("nuc"), ValueError, "norm"), (lambda: i3 ** -1, ValueError, "negative"),
    (lambda: (t4 > 0) - (t4 > 0), TypeError, "sub: .*bool"), (lambda: -(t4 > 0), TypeError, "neg: .*bool"),
    (lambda: ~t4, TypeError, "float32"), (lambda: t4 & t4, TypeError, "float32"),
    (lambda: tg.where(t4, t4, t4), TypeError, "where: .*bool"), (lambda: t4.clamp(), ValueError, "clamp"),
    (lambda: tg.zeros(0).max(), ValueError, "max"), (lambda: tg.zeros(0).argmax(), ValueError, "argmax"),
    (lambda: tg.zeros(2, 0).argmin(1), ValueError, "argmin: expected at least one element"),
    (lambda: tg.zeros(2, 0).amax(1), ValueError, "amax"),
    (lambda: t4.div(2, rounding_mode="up"), ValueError, "rounding_mode"),
    (lambda: t4.topk(5), ValueError, "topk: expected k between 0 and 4, got 5"),
    (lambda: t23.gather(1, tg.tensor([[3]])), IndexError, None),
    (lambda: t23.gather(1, tg.tensor([[-1]])), IndexError, "negative"),
    (lambda: t23.gather(1, i3), ValueError, "gather"), (lambda: t23.gather(1, t23), TypeError, "gather"),
    (lambda: t4.index_select(0, tg.tensor([4])), IndexError, None),
    (lambda: t4.index_select(0, tg.tensor([-1])), IndexError, "negative"),
    (lambda: t4.scatter(0, tg.tensor([-1]), 1.0), IndexError, "negative"),
    (lambda: t4.scatter(0, tg.tensor([0, 1]), tg.ones(1)), ValueError, "scatter"),
    (lambda: t4.bincount(), ValueError, "bincount"), (lambda: tg.tensor([-1]).bincount(), ValueError, "bincount"),
    (lambda: tg.one_hot(t4), TypeError, "one_hot"), (lambda: tg.one_hot(i3, 2), IndexError, "one_hot"),
    (lambda: bool(t4), RuntimeError, r"one element, got shape \[4\]"), (lambda: t4.item(), RuntimeError, "item"),
    (lambda: float(t23), RuntimeError, "float"), (lambda: len(tg.tensor(1)), TypeError, "0-d"),
    (lambda: list(tg.tensor(1)), TypeError, "0-d"), (lambda: [1][tg.tensor(0.5)], TypeError, "index"),
    (lambda: tg.tensor([[1, 2], [3]]), ValueError, "tensor: .*equal lengths"),
    (lambda: tg.tensor("a"), TypeError, "dtype"), (lambda: tg.tensor(None), TypeError, None),
    (lambda: tg.tensor(1j), TypeError, "complex"),
    (lambda: tg.tensor([1], requires_grad=True), RuntimeError, "floating"), (lambda: tg.tensor({}), TypeError, None),
    (lambda: tg.zeros(-1), ValueError, "negative"), (lambda: tg.zeros(2.5), TypeError, "shape"),
    (lambda: tg.zeros("a"), TypeError, "shape"), (lambda: tg.arange(0, 1, 0), ValueError, "step"),
    (lambda: tg.arange(0, 5, -1), ValueError, "step"), (lambda: tg.linspace(0, 1, -1), ValueError, None),
    (lambda: tg.from_numpy([1]), TypeError, "list"),
    (lambda: tg.from_numpy(np.zeros(2, complex)), TypeError, "complex"),
    (lambda: tg.from_numpy(np.array(["a"])), TypeError, "dtype"),
    (lambda: tg.randint(3, 3, (2,)), ValueError, "low < high"),
    (lambda: tg.manual_seed("a"), TypeError, "manual_seed"),
    (lambda: tg.multinomial(tg.ones(2), 3), ValueError, "multinomial"),
    (lambda: tg.device("gpu"), ValueError, "device"), (lambda: tg.device("cuda:x"), ValueError, "device"),
    (lambda: tg.zeros(1, dtype="float33"), TypeError, "float33"), (lambda: t4.to(3.5), TypeError, None),
    (lambda: t4.sort(3), IndexError, "sort"), (lambda: t4.cumsum(1), IndexError, "cumsum"),
    (lambda: tg.ones(2, 2).softmax(2), IndexError, "softmax"),
]  # fmt: skip


@pytest.mark.parametrize("case", range(len(ERRORS)))
def test_errors_say_what_came_and_what_was_expected(case: int):
    f, kind, message = ERRORS[case]
    with pytest.raises(kind, match=message) as caught:
        f()
    assert type(caught.value) is kind  # and not a subclass


@pytest.mark.parametrize(
    "function",
    [
        lambda m: m.unique(m.tensor([[3, 1, 2], [1, 1, 3]])),
        lambda m: m.unique(m.tensor([[3, 1, 2], [1, 1, 3]]), return_inverse=True, return_counts=True),
        lambda m: m.unique(m.tensor([2.5, -1.0, 2.5]), return_counts=True),
        lambda m: m.meshgrid(m.arange(3), m.arange(2), indexing="ij"),
        lambda m: m.meshgrid(m.arange(3), m.arange(2), m.arange(4), indexing="xy"),
        lambda m: m.vstack([m.ones(2), m.zeros(3, 2)]),
        lambda m: m.hstack([m.ones(2), m.zeros(3)]),
        lambda m: m.hstack([m.ones(2, 1), m.zeros(2, 3)]),
        lambda m: m.FloatTensor([1, 2]),
        lambda m: m.LongTensor([[1, 2]]),
        lambda m: m.BoolTensor([0, 1]),
    ],
)
def test_other_ways_to_make_and_join(function: Callable[[Any], Any]):
    same(function(tg), function(torch))
