"""The compiled loops of the tape: they leak nothing and survive errors; the Python they stand in for still works."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tilegrad as tg
import tilegrad.nn.functional as F
from tilegrad import nn
from tilegrad.graph import ArrayFunction, compiled

TESTS = Path(__file__).parent


def model() -> nn.Sequential:
    tg.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 5))


def batch() -> tuple[tg.Tensor, tg.Tensor]:
    rng = np.random.default_rng(0)
    return tg.from_numpy(rng.standard_normal((4, 8)).astype(np.float32)), tg.from_numpy(rng.integers(0, 5, 4))


class Fails(ArrayFunction):
    """The identity, without warnings as kernels are; its derivative is an error."""

    warns = False

    @staticmethod
    def forward(ctx: Any, x: Any, where: str) -> Any:
        if where == "forward":
            raise ZeroDivisionError(where)
        ctx.save(x)
        return x + 1

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        raise ZeroDivisionError("backward")


def leaked_by(run: Any) -> float:
    """How many blocks of memory a run leaves behind; the interpreter's own lists of free objects come and go."""
    for _ in range(20):
        run()
    gc.collect()
    before = sys.getallocatedblocks()
    for _ in range(300):
        run()
    gc.collect()
    return (sys.getallocatedblocks() - before) / 300


def test_training_steps_leak_nothing() -> None:
    net, (x, t) = model(), batch()
    optimizers = [tg.optim.SGD(net.parameters(), lr=0.01, momentum=0.9), tg.optim.AdamW(net.parameters())]

    def step() -> None:
        for optimizer in optimizers:
            optimizer.zero_grad()
            h = net(x)
            h.retain_grad()
            loss = F.cross_entropy(h, t) + (h * h).sum()
            loss.backward(retain_graph=True)
            loss.backward()
            optimizer.step()
        with tg.no_grad():
            net(x)

    assert leaked_by(step) < 0.5


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_errors_leak_nothing_and_leave_recording_as_it_was(where: str) -> None:
    net, (x, t) = model(), batch()

    def step() -> None:
        with pytest.raises(ZeroDivisionError, match=where):
            F.cross_entropy(Fails.apply(net(x), where).exp(), t).backward()
        assert tg.is_grad_enabled()
        net.zero_grad()

    assert leaked_by(step) < 0.5
    F.cross_entropy(net(x), t).backward()
    assert net[0].weight.grad is not None


def test_what_a_backward_needs_is_checked() -> None:
    w = tg.ones(3, 4, requires_grad=True)
    x = tg.ones(2, 4)
    y = F.linear(x, w)
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an in-place operation"):
        y.sum().backward()
    y = F.linear(x, w).sum()
    y.backward()
    with pytest.raises(RuntimeError, match="freed"):
        y.backward()


def test_views_of_what_was_written_to_know_it() -> None:
    w = tg.ones(3, 4, requires_grad=True)
    base = w * 1
    view = base[:, :2]
    base.mul_(3.0)
    F.linear(tg.ones(1, 2), view).sum().backward()
    np.testing.assert_array_equal(w.grad.numpy(), [[3, 3, 0, 0]] * 3)


def test_a_gradient_that_somebody_holds_is_copied() -> None:
    held: list[np.ndarray] = []

    class Holds(ArrayFunction):
        warns = False

        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            return x + 1

        @staticmethod
        def backward(ctx: Any, grad: Any) -> Any:
            held.append(grad * 2)
            return held[-1]

    x = tg.ones(3, requires_grad=True)
    upstream = tg.ones(3)
    Holds.apply(x).backward(upstream)
    assert not np.shares_memory(x.grad.numpy(), held[0])
    y = tg.ones(3, requires_grad=True)
    (y + 0).backward(upstream)
    assert not np.shares_memory(y.grad.numpy(), upstream.numpy())


# --- plain calls ------------------------------------------------------------------------------------------------------


def step_of(loss: Any, x: np.ndarray) -> list[np.ndarray]:
    """The loss, and the gradients of one backward pass, of two together, and of one with another upstream gradient."""
    logits = tg.tensor(x, requires_grad=True)
    out = loss(logits)
    once = out.sum() if out.ndim else out
    once.backward(retain_graph=True)
    first = logits.grad.numpy().copy()
    (3 * once).backward()
    other = tg.tensor(x, requires_grad=True)
    (-2 * loss(other).sum()).backward()
    np.testing.assert_allclose(other.grad.numpy(), -2 * first, rtol=1e-2, atol=1e-3)
    assert out.grad_fn.name() in ("CrossEntropyBackward0", "SoftmaxBackward0", "LogSoftmaxBackward0")
    return [out.detach().numpy(), first, logits.grad.numpy(), other.grad.numpy()]


@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (33, 17), (40, 32), (9, 70), (3, 7, 4), (2, 5, 3, 2)])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_plain_calls_do_what_checked_ones_do(shape: Any, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(len(shape))
    x = (3 * rng.standard_normal(shape)).astype(dtype)
    target = tg.from_numpy(np.where(rng.random(shape[:1] + shape[2:]) < 0.2, -100, rng.integers(0, shape[1])))
    target[(0,) * target.ndim] = 0
    calls = [
        lambda a: F.softmax(a, 1), lambda a: F.log_softmax(a, -1), lambda a: F.cross_entropy(a, target),
        lambda a: F.cross_entropy(a, target.to(tg.int32), reduction="sum"),
    ]  # fmt: skip
    made = [step_of(call, x) for call in calls]
    monkeypatch.setattr("tilegrad.fused.compiled", None)
    for call, got in zip(calls, made, strict=True):
        for a, b in zip(got, step_of(call, x), strict=True):
            np.testing.assert_array_equal(a, b)


def test_what_is_not_plain_is_checked() -> None:
    x = tg.randn(4, 3, requires_grad=True)
    t = tg.tensor([0, 1, 2, 0])
    for error, match, bad in (
        (IndexError, "got 3", lambda: F.cross_entropy(x, tg.tensor([0, 1, 3, 0]))),
        (IndexError, "got -1", lambda: F.cross_entropy(x, tg.tensor([0, 1, -1, 0]))),
        (ValueError, "expected a target of shape", lambda: F.cross_entropy(x, t[:3])),
        (TypeError, "integer dtype", lambda: F.cross_entropy(x, t > 0)),
        (TypeError, "floating", lambda: F.cross_entropy(tg.tensor([[1, 2]]), tg.tensor([0]))),
        (ValueError, "at least one class", lambda: F.cross_entropy(tg.zeros(2, 0), t[:2])),
        (TypeError, "one kind", lambda: F.cross_entropy(x, t.numpy())),
        (IndexError, "out of range", lambda: F.softmax(x, 2)),
        (TypeError, "int", lambda: F.softmax(x, 1.0)),
        (TypeError, "floating", lambda: F.softmax(tg.tensor([1, 2]), 0)),
        (RuntimeError, "scalar", lambda: F.softmax(x, 1).backward()),
        (RuntimeError, "does not require grad", lambda: F.cross_entropy(x.detach(), t).backward()),
    ):
        with pytest.raises(error, match=match):
            bad()
    assert x.grad is None


def test_a_plain_call_obeys_the_backend_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    for name in ("softmax", "cross_entropy"):
        of_reference = getattr(tg.reference, name)
        monkeypatch.setattr(tg.reference, name, lambda *a, f=of_reference, n=name, **o: (seen.append(n), f(*a, **o)))
    x, t = tg.randn(4, 3), tg.tensor([0, 1, 2, 0])
    with tg.backend("reference"):
        F.softmax(x, 1)
        F.cross_entropy(x, t)
    assert seen == ["softmax", "cross_entropy"]


def test_a_plain_loss_is_differentiated_by_another_backend_too() -> None:
    x = tg.randn(4, 3, requires_grad=True)
    loss = F.cross_entropy(x, tg.tensor([0, 1, 2, 0]))
    with tg.backend("reference"):
        loss.backward(retain_graph=True)
        first = x.grad.numpy().copy()
        loss.backward()
    np.testing.assert_allclose(x.grad.numpy(), 2 * first, rtol=1e-6)


# --- a Linear and its activation --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "activation", [nn.ReLU(), nn.GELU(), nn.GELU("tanh"), nn.LeakyReLU(), nn.Softplus(), nn.Mish()]
)
def test_sequential_fuses_a_linear_and_its_activation(activation: nn.Module) -> None:
    tg.manual_seed(1)
    linear, x = nn.Linear(7, 6), tg.randn(5, 7)
    fused, apart = nn.Sequential(linear, activation)(x), activation(linear(x))
    np.testing.assert_allclose(fused.detach().numpy(), apart.detach().numpy(), rtol=1e-6, atol=1e-7)
    assert len(fused.grad_fn.edges) == 4  # input, weight, bias, and the activation's name
    upstream = tg.randn(5, 6)
    of_fused = tg.autograd.grad(fused, linear.weight, upstream)[0]
    of_apart = tg.autograd.grad(apart, linear.weight, upstream)[0]
    np.testing.assert_allclose(of_fused.numpy(), of_apart.numpy(), rtol=1e-6, atol=1e-6)


def test_sequential_does_not_fuse_what_something_else_looks_at() -> None:
    class Halved(nn.ReLU):
        def forward(self, input: tg.Tensor) -> tg.Tensor:
            return super().forward(input) / 2

    tg.manual_seed(1)
    x, seen = tg.randn(5, 7), []
    linear, relu = nn.Linear(7, 6), nn.ReLU()
    plain = linear(x)
    handle = linear.register_forward_hook(lambda module, args, output: seen.append(output))
    nn.Sequential(linear, relu)(x)
    np.testing.assert_array_equal(seen[0].detach().numpy(), plain.detach().numpy())
    handle.remove()
    handle = relu.register_forward_hook(lambda module, args, output: output + 100)
    assert (nn.Sequential(linear, relu)(x) >= 100).all()
    handle.remove()
    for other, expected in ((Halved(), plain.relu() / 2), (nn.LeakyReLU(0.5), F.leaky_relu(plain, 0.5))):
        np.testing.assert_array_equal(nn.Sequential(linear, other)(x).detach().numpy(), expected.detach().numpy())
    np.testing.assert_array_equal(nn.Sequential(linear)(x).detach().numpy(), plain.detach().numpy())


def test_a_weight_that_is_no_parameter_any_more_is_used() -> None:
    linear, x = nn.Linear(3, 2), tg.ones(1, 3)
    bias = linear.bias
    del linear.weight
    linear.weight = tg.zeros(2, 3)
    for result in (linear(x), nn.Sequential(linear, nn.Identity())(x)):
        np.testing.assert_array_equal(result.detach().numpy(), bias.detach().numpy()[None])


# --- without the extension --------------------------------------------------------------------------------------------


def test_the_engine_works_without_the_extension() -> None:
    files = ["autograd", "in_place", "optim", "nn", "tape"]
    program = (
        "import sys; sys.modules['tilegrad._C'] = None; import pytest; from tilegrad import graph\n"
        "assert graph.compiled is None\n"
        f"sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', *{[str(TESTS / f'test_{f}.py') for f in files]}]))"
    )
    if compiled is None:
        return  # it is this test that runs
    done = subprocess.run([sys.executable, "-c", program], env=os.environ, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
