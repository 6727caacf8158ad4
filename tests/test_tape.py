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
