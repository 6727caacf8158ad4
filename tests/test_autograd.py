"""The tape: accumulation, modes, freeing, in-place operations and views, custom Functions, long chains, threads.

Programs are written once and run in torch and here.
"""

from __future__ import annotations

import gc
import sys
import threading
import weakref
from typing import Any

import numpy as np
import pytest

import tilegrad as tg
from tilegrad.autograd import Function, gradcheck

torch = pytest.importorskip("torch")

BOTH = [pytest.param(tg, id="tilegrad"), pytest.param(torch, id="torch")]  # what holds here holds there


def close(mine: Any, other: Any) -> None:
    assert (mine is None) == (other is None)
    if mine is not None:
        assert tuple(mine.shape) == tuple(other.shape)
        np.testing.assert_allclose(mine.numpy(force=True), other.numpy(force=True), rtol=1e-10, atol=1e-12)


# --- accumulation and graphs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lib", BOTH)
def test_gradients_accumulate(lib: Any):
    x = lib.tensor([1.0, 2.0, 3.0], requires_grad=True)
    for times in (1, 2, 3):
        (x * x).sum().backward()
        assert x.grad.tolist() == [2.0 * times, 4.0 * times, 6.0 * times]
    x.grad = None
    (x + x + x * x).sum().backward()
    assert x.grad.tolist() == [4.0, 6.0, 8.0]
    x.grad.zero_()
    x.sum().backward()
    assert x.grad.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("lib", BOTH)
def test_a_diamond_is_walked_once_per_edge(lib: Any):
    x = lib.tensor(2.0, requires_grad=True)
    y = x * x  # 4
    for _ in range(20):
        y = y + y * 0.5  # two paths each time: 2²⁰ of them, if every path were walked
    y.backward()
    assert x.grad.item() == pytest.approx(4 * 1.5**20)


@pytest.mark.parametrize("lib", BOTH)
def test_only_what_needs_a_gradient_gets_one(lib: Any):
    x, w, target = lib.ones(3, requires_grad=True), lib.ones(3), lib.ones(3)
    ((x * w - target) ** 2).sum().backward()
    assert w.grad is None
    assert target.grad is None
    assert not (w * target).requires_grad
    assert (w * target).grad_fn is None
    assert (x * w).requires_grad
    assert not (x > w).requires_grad
    assert x.is_leaf
    assert not (x * w).is_leaf
    assert x.detach().grad_fn is None
    (x.detach() * x).sum().backward()
    assert x.grad.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("lib", BOTH)
def test_backward_with_a_gradient(lib: Any):
    x = lib.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    y = x * x
    y.backward(lib.tensor([[1.0, 0.0], [0.5, 2.0]]))
    assert x.grad.tolist() == [[2.0, 0.0], [3.0, 16.0]]
    with pytest.raises(RuntimeError, match="scalar outputs"):
        (x * x).backward()
    with pytest.raises(RuntimeError, match=r"[Ss]hape|size"):
        (x * x).backward(lib.ones(2))
    with pytest.raises(RuntimeError, match="does not require grad"):
        lib.ones(()).backward()
    z = x.sum() * lib.ones(1)
    z.backward()  # one element is a scalar


def test_gradients_never_share_memory():  # torch's may
    a, b = tg.ones(3, requires_grad=True), tg.ones(3, requires_grad=True)
    upstream = tg.ones(3)
    for y in (a + b, a.reshape(3) + b.reshape(3), (a + b).clone(), a - -b):
        a.grad = b.grad = None
        y.backward(upstream)
        a.grad.mul_(5.0)
        assert b.grad.tolist() == [1.0, 1.0, 1.0]
        assert upstream.tolist() == [1.0, 1.0, 1.0]
        y = a * 1
        kept = a.grad
        y.backward(upstream)  # accumulates into the same tensor
        assert a.grad is kept
        assert upstream.tolist() == [1.0, 1.0, 1.0]
    a.grad = None
    a.backward(upstream)
    a.grad.zero_()
    assert upstream.tolist() == [1.0, 1.0, 1.0]
    a.grad = None
    a.expand(2, 3).sum().backward()
    a.grad[0] = 7.0  # memory of its own, not a repeated element
    assert a.grad.tolist() == [7.0, 2.0, 2.0]
    a.grad = None
    (a * b).sum().backward()
    a.grad.zero_()
    assert b.tolist() == [1.0, 1.0, 1.0]


# --- modes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lib", BOTH)
def test_grad_modes(lib: Any):
    x = lib.ones(2, requires_grad=True)

    @lib.no_grad()
    def inferred(x: Any) -> Any:
        """Doubled."""
        return x * 2

    @lib.no_grad
    def bare(x: Any) -> Any:
        return x * 2

    @lib.enable_grad()
    def recorded(x: Any) -> Any:
        return x * 2

    @lib.set_grad_enabled(False)
    def switched(x: Any) -> Any:
        return x * 2

    assert not inferred(x).requires_grad
    assert inferred.__name__ == "inferred"
    assert inferred.__doc__ == "Doubled."
    assert not bare(x).requires_grad
    assert not switched(x).requires_grad
    assert lib.is_grad_enabled()
    with lib.no_grad():
        assert not (x * 2).requires_grad
        assert recorded(x).requires_grad
        with lib.enable_grad():
            assert (x * 2).requires_grad
            with lib.set_grad_enabled(False):
                assert not lib.is_grad_enabled()
            assert lib.is_grad_enabled()
        assert not lib.is_grad_enabled()
        x += 1  # a leaf may be updated here
    with pytest.raises(ZeroDivisionError), lib.no_grad():
        raise ZeroDivisionError
    assert lib.is_grad_enabled()
    lib.set_grad_enabled(False)
    assert not lib.is_grad_enabled()
    lib.set_grad_enabled(True)
    with lib.inference_mode():
        assert not (x * 2).requires_grad
    block = lib.no_grad()
    for _ in range(2):
        with block:
            assert not lib.is_grad_enabled()
    assert lib.is_grad_enabled()


@pytest.mark.parametrize("lib", BOTH)
def test_grad_mode_is_per_thread(lib: Any):
    seen = []
    x = lib.ones(2, requires_grad=True)
    with lib.no_grad():
        thread = threading.Thread(target=lambda: seen.append((x * 2).requires_grad))
        thread.start()
        thread.join()
    assert seen == [True]


def test_threads_have_graphs_of_their_own():
    def work(i: int) -> None:
        x = tg.tensor(np.full(50, float(i)), requires_grad=True)
        for _ in range(30):
            y = x
            for _ in range(10):
                y = y * 1.01 + i
            y.sum().backward()
        found[i] = x.grad.numpy()

    found: dict[int, np.ndarray] = {}
    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for i in range(4):
        np.testing.assert_allclose(found[i], 30 * 1.01**10)


# --- retain_graph, grad() ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lib", BOTH)
def test_the_graph_is_freed_unless_retained(lib: Any):
    x = lib.tensor([1.0, 2.0], requires_grad=True)
    y = (x * x).sum()
    y.backward(retain_graph=True)
    y.backward()
    assert x.grad.tolist() == [4.0, 8.0]
    with pytest.raises(RuntimeError, match="retain_graph=True"):
        y.backward()
    shared = x * x
    shared.sum().backward()
    with pytest.raises(RuntimeError, match="retain_graph=True"):
        (shared * 2).sum().backward()


@pytest.mark.parametrize("lib", BOTH)
def test_grad(lib: Any):
    x, w = lib.tensor([1.0, 2.0], requires_grad=True), lib.tensor([3.0, 4.0], requires_grad=True)
    unused = lib.ones(1, requires_grad=True)
    y, z = x * w, w.sum() * 2
    gx, gw = lib.autograd.grad([y, z], (x, w), [lib.tensor([1.0, 10.0]), None], retain_graph=True)
    assert gx.tolist() == [3.0, 40.0]
    assert gw.tolist() == [3.0, 22.0]
    assert x.grad is None
    assert w.grad is None
    (gy,) = lib.autograd.grad((y * y).sum(), y, retain_graph=True)  # with respect to an intermediate
    assert gy.tolist() == [6.0, 16.0]
    (itself,) = lib.autograd.grad(z, z, retain_graph=True)
    assert itself.item() == 1.0
    with pytest.raises(RuntimeError, match=r"not.*used"):
        lib.autograd.grad(z, [x, w], retain_graph=True)
    gx, gw = lib.autograd.grad(z, [x, w], retain_graph=True, allow_unused=True)
    assert gx is None
    assert gw.tolist() == [2.0, 2.0]
    gx, gu = lib.autograd.grad(y.sum(), [x, unused], retain_graph=True, materialize_grads=True)
    assert gu.tolist() == [0.0]
    twice = lib.autograd.grad(y.sum(), [x, x], retain_graph=True)
    assert [g.tolist() for g in twice] == [[3.0, 4.0], [3.0, 4.0]]
    with pytest.raises(RuntimeError, match="require grad"):
        lib.autograd.grad(z, lib.ones(1))
    lib.autograd.backward([y.sum(), z], [None, lib.tensor(3.0)])
    assert w.grad.tolist() == [7.0, 8.0]
    z = (x * w).sum()
    z.backward(inputs=[x])
    assert w.grad.tolist() == [7.0, 8.0]


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True")
@pytest.mark.parametrize("lib", BOTH)
def test_create_graph(lib: Any):
    x = lib.tensor([1.0, 2.0, 3.0], requires_grad=True)
    y = (x**3).sum()
    for expected in ([3.0, 12.0, 27.0], [6.0, 12.0, 18.0], [6.0, 6.0, 6.0], [0.0, 0.0, 0.0]):
        (g,) = lib.autograd.grad(y, x, create_graph=True)
        assert g.tolist() == expected
        y = g.sum()
    x = lib.tensor([1.0, 2.0], requires_grad=True)
    loss = (x * x).sum()
    loss.backward(create_graph=True)
    assert x.grad.requires_grad
    g, x.grad = x.grad, None
    (g**2).sum().backward()
    assert x.grad.tolist() == [8.0, 16.0]


def test_the_hessian_of_a_small_network():
    draw = np.random.default_rng(0)
    arrays = [draw.normal(size=s) for s in ((4, 3), (3, 5), (5,), (5, 2), (2,))]

    def hessian(lib: Any) -> np.ndarray:
        x, *weights = [lib.tensor(a, requires_grad=i > 0) for i, a in enumerate(arrays)]
        w1, b1, w2, b2 = weights
        hidden = (x @ w1 + b1).tanh()
        loss = ((hidden @ w2 + b2).sigmoid() ** 2).mean() + hidden.exp().sum().log() * (w1 * w1).sum().sqrt()
        grads = lib.autograd.grad(loss, weights, create_graph=True)
        flat = lib.cat([g.reshape(-1) for g in grads])
        rows = []
        for g in flat:
            row = lib.autograd.grad(g, weights, retain_graph=True, allow_unused=True)
            rows.append(
                np.concatenate(
                    [
                        np.zeros(w.numel()) if r is None else r.numpy().reshape(-1)
                        for r, w in zip(row, weights, strict=True)
                    ]
                )
            )
        return np.stack(rows)

    ours, theirs = hessian(tg), hessian(torch)
    np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(ours, ours.T, rtol=1e-9, atol=1e-12)
    assert np.abs(ours).max() > 0.1


# --- leaves and intermediates -----------------------------------------------------------------------------------------


def test_a_gradient_that_is_reshaped_on_its_way_becomes_the_leafs_own():
    made = []

    class Doubled(Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            return x * 2

        @staticmethod
        def backward(ctx: Any, grad: Any) -> Any:
            doubled = grad * 2
            made.append(doubled.data_ptr())  # not the tensor: what somebody holds is copied
            return doubled

    x = tg.ones(2, 6, requires_grad=True)
    Doubled.apply(x.reshape(3, 4).reshape(12)).backward(tg.arange(12.0))
    assert x.grad.data_ptr() == made[0]
    np.testing.assert_array_equal(x.grad.numpy(), 2 * np.arange(12.0).reshape(2, 6))


def test_a_gradient_that_is_reshaped_for_several_stays_one_for_each():
    x, y = tg.ones(2, 6, requires_grad=True), tg.ones(2, 6, requires_grad=True)
    z = x.reshape(12) + y.reshape(12)
    upstream = tg.arange(12.0)
    (z * 1).backward(upstream)
    x.grad.add_(1)
    y.grad.add_(2)
    np.testing.assert_array_equal(x.grad.numpy(), np.arange(12.0).reshape(2, 6) + 1)
    np.testing.assert_array_equal(y.grad.numpy(), np.arange(12.0).reshape(2, 6) + 2)
    np.testing.assert_array_equal(upstream.numpy(), np.arange(12.0))


@pytest.mark.parametrize("lib", BOTH)
def test_retain_grad(lib: Any):
    x = lib.tensor([1.0, 2.0], requires_grad=True)
    y = x * 3
    z = y * y
    y.retain_grad()
    z.retain_grad()
    x.retain_grad()  # a leaf: nothing to do
    z.sum().backward()
    assert z.grad.tolist() == [1.0, 1.0]
    assert y.grad.tolist() == [6.0, 12.0]
    assert x.grad.tolist() == [18.0, 36.0]
    with pytest.raises(RuntimeError):
        lib.ones(2).retain_grad()


@pytest.mark.parametrize("lib", BOTH)
def test_requires_grad(lib: Any):
    x = lib.ones(2)
    assert x.requires_grad_() is x
    y = x * 2
    with pytest.raises(RuntimeError):
        y.requires_grad_(False)
    assert y.detach_() is y
    assert y.is_leaf
    assert not y.requires_grad
    with pytest.raises(RuntimeError, match=r"[Ff]loat"):
        lib.ones(2, dtype=lib.int64).requires_grad_()
    x.requires_grad = False
    assert not (x * 2).requires_grad


# --- Functions of one's own -------------------------------------------------------------------------------------------


def functions(lib: Any) -> Any:
    """The same text for both libraries: Functions as torch's tutorials write them."""

    class Cube(lib.autograd.Function):
        @staticmethod
        def forward(ctx, x, scale=1.0):
            ctx.save_for_backward(x)
            ctx.scale = scale
            return x**3 * scale

        @staticmethod
        def backward(ctx, grad):
            (x,) = ctx.saved_tensors
            return 3 * x**2 * grad * ctx.scale, None

    class SinCos(lib.autograd.Function):
        @staticmethod
        def forward(ctx, x, unused):
            s, c = x.sin(), x.cos()
            ctx.save_for_backward(s, c)
            order = x.argsort()
            ctx.mark_non_differentiable(order)
            return s, c, order

        @staticmethod
        def backward(ctx, grad_s, grad_c, _):
            s, c = ctx.saved_tensors
            assert ctx.needs_input_grad == (True, False)
            return grad_s * c - grad_c * s, None

    class Exp(lib.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            y = x.exp()
            ctx.save_for_backward(y)
            return y

        @staticmethod
        def backward(ctx, grad):
            (y,) = ctx.saved_tensors
            return grad * y

    class Twice(lib.autograd.Function):  # in place
        @staticmethod
        def forward(ctx, x):
            x.mul_(2)
            ctx.mark_dirty(x)
            return x

        @staticmethod
        def backward(ctx, grad):
            return grad * 2

    class Wrong(lib.autograd.Function):
        @staticmethod
        def forward(ctx, x, of_gradients):
            ctx.of_gradients = of_gradients
            return x * 1

        @staticmethod
        def backward(ctx, grad):
            return ctx.of_gradients(grad)

    class Lazy(lib.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.set_materialize_grads(False)
            return x * 2, x * 3

        @staticmethod
        def backward(ctx, a, b):
            assert b is None
            return a * 2

    return Cube, SinCos, Exp, Twice, Wrong, Lazy


@pytest.mark.parametrize("lib", BOTH)
def test_custom_functions(lib: Any):
    cube, sincos, exp, twice, wrong, lazy = functions(lib)
    x = lib.tensor([0.5, -1.0, 2.0], dtype=lib.float64, requires_grad=True)
    cube.apply(x, 2.0).sum().backward()
    assert x.grad.tolist() == [1.5, 6.0, 24.0]
    assert "CubeBackward object" in repr(cube.apply(x).grad_fn)
    with lib.no_grad():
        assert not cube.apply(x).requires_grad
    assert cube.apply(lib.ones(2)).grad_fn is None

    s, c, order = sincos.apply(x, lib.ones(2))
    assert order.tolist() == [1, 0, 2]
    assert s.requires_grad
    assert not order.requires_grad
    (g,) = lib.autograd.grad(c.sum(), x, retain_graph=True)  # the other output's gradient is zeros
    np.testing.assert_allclose(g.numpy(), -np.sin(x.numpy(force=True)))
    (g,) = lib.autograd.grad([s.sum(), c.sum()], x)
    np.testing.assert_allclose(g.numpy(), (x.cos() - x.sin()).numpy(force=True))

    second = (
        (exp.apply, x.exp()),
        (lambda t: cube.apply(t, 0.5), 3 * x),
        (lambda t: sincos.apply(t, None)[0], -x.sin()),
    )
    for f, expected in second:  # their backward is recorded
        (g,) = lib.autograd.grad(f(x).sum(), x, create_graph=True)
        (gg,) = lib.autograd.grad(g.sum(), x)
        np.testing.assert_allclose(gg.numpy(), expected.numpy(force=True))

    y = x * 1
    assert twice.apply(y) is y
    x.grad = None
    (y * 3).sum().backward()
    assert x.grad.tolist() == [6.0, 6.0, 6.0]
    a, _ = lazy.apply(x)
    a.sum().backward()
    assert x.grad.tolist() == [8.0, 8.0, 8.0]

    for of_gradients, message in (
        (lambda g: (g, None, g), "number of gradients|returned 3 gradients, expected 2"),
        (lambda g: (g[:1].reshape(1, 1, 1).expand(1, 2, 1), None), "shape"),
    ):
        with pytest.raises(RuntimeError, match=message):
            wrong.apply(x, of_gradients).sum().backward()
    saved = x * 1
    y = cube.apply(saved)
    saved.zero_()
    with pytest.raises(RuntimeError, match=r"in-?place"):
        y.sum().backward()


def test_a_function_is_checked_by_gradcheck():
    class Off(Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        def backward(ctx: Any, grad: Any) -> Any:
            (x,) = ctx.saved_tensors
            return 2.01 * x * grad

    class Dropped(Off):
        @staticmethod
        def backward(ctx: Any, grad: Any) -> Any:  # drops the upstream gradient
            (x,) = ctx.saved_tensors
            return 2 * x

    x = tg.randn(3, dtype=tg.float64, requires_grad=True)
    for f in (Off.apply, Dropped.apply):
        with pytest.raises(RuntimeError, match=r"gradcheck: input 0 at .* backward gives"):
            gradcheck(f, (x,))
        assert not gradcheck(f, x, raise_exception=False)
    assert gradcheck(functions(tg)[0].apply, (x,))
    assert gradcheck(lambda a, b: (a @ b, a.sum()), (x.detach().requires_grad_(), tg.ones(3, 2, dtype=tg.float64)))
    with pytest.raises(ValueError, match="float64"):
        gradcheck(Off.apply, tg.ones(2, requires_grad=True))
    with pytest.raises(ValueError, match="requires grad"):
        gradcheck(Off.apply, tg.ones(2))


# --- long chains, memory ----------------------------------------------------------------------------------------------


def test_a_chain_of_100000_operations():
    limit = sys.getrecursionlimit()
    gc.collect()
    gc.disable()
    sys.setrecursionlimit(200)
    try:
        x = tg.ones(2, requires_grad=True)
        y = x
        for _ in range(50_000):
            y = (y + 1e-5) * 1.0
        middle = weakref.ref(y)
        node = weakref.ref(y.grad_fn)
        y = y.sum()
        y.backward()
        assert x.grad.tolist() == [1.0, 1.0]
        del y  # by counting references alone, and without recursion
        assert middle() is None
        assert node() is None
        y = x
        for _ in range(100_000):
            y = y * 1.0
        node = weakref.ref(y.grad_fn)
        del y  # a graph that no backward has freed
        assert node() is None
    finally:
        sys.setrecursionlimit(limit)
        gc.enable()


def test_wide_and_deep_graphs_are_walked_without_recursion():
    x = tg.ones((), requires_grad=True)
    parts = [x * i for i in range(2000)]
    y = parts[0]
    for p in parts[1:]:
        y = tg.maximum(y, p) + p * 0
    y.backward()
    assert x.grad.item() == 1999.0
    (g,) = tg.autograd.grad(sum((x * x for _ in range(500)), x), x, create_graph=True)
    g.backward()


@pytest.mark.parametrize("retain", [False, True])
def test_graphs_leave_nothing_behind(retain: bool):
    """Every tensor and node is freed when the last name is gone: there are no cycles for the collector to find."""
    gc.collect()
    gc.disable()
    try:
        x = tg.randn(4, 4, requires_grad=True)
        refs = []
        y = x @ x
        y[0] = y[1] * 2
        v = y[1:]
        v *= 3
        for op in (
            lambda t: t.exp(), lambda t: t.softmax(0), lambda t: t.max(0).values, lambda t: t.std(), lambda t: t.norm(),
            lambda t: t.logsumexp(1), lambda t: t.prod(), lambda t: t[[0, 1]], lambda t: tg.cat([t, t]),
            lambda t: t.sigmoid() ** 2,
            functions(tg)[0].apply, functions(tg)[2].apply, lambda t: tg.nn.functional.cross_entropy(t, tg.arange(4)),
            lambda t: tg.nn.functional.linear(t, x, activation="gelu"), lambda t: tg.nn.functional.log_softmax(t, 1),
        ):  # fmt: skip
            z = op(y)
            refs += [weakref.ref(z), weakref.ref(z.grad_fn)]
            z.sum().backward(retain_graph=True)
            (g,) = tg.autograd.grad(z.sum(), x, retain_graph=True)
            refs.append(weakref.ref(g))
            del z, g
        refs += [weakref.ref(y), weakref.ref(y.grad_fn), weakref.ref(v), weakref.ref(v.grad_fn)]
        y.sum().backward(retain_graph=retain)
        del y, v, op
        assert [r for r in refs if r() is not None] == []
    finally:
        gc.enable()


def test_backward_frees_what_was_saved():
    x = tg.randn(8, requires_grad=True)
    a = x * 2
    kept = weakref.ref(a)
    y = (a * a).sum()
    del a
    assert kept() is None  # the tensor is gone, its array is saved
    y.backward()
    assert y.grad_fn._saved == ()
