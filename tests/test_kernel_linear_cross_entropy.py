"""The Triton kernels of linear + cross-entropy: what they compute, what they cost in FLOPs, bytes and memory."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import truth
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from kinds import DTYPES, as_torch, values
from sanitizer import Sanitizer
from test_contract import linear_cross_entropy_case, worst

import tilegrad as tg
from tilegrad import backends
from tilegrad.backends import LossOptions
from tilegrad.kernels.launch import DType, View

kernel = importlib.import_module("tilegrad.kernels.linear_cross_entropy")  # the package has the function by that name

MIB = 1 << 20


@pytest.fixture
def small_workspace(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Chunks as small as the kernels allow, and so few bytes that everything takes several of them."""

    def shrink(to: int, rows: int = 16) -> None:
        monkeypatch.setattr(kernel, "WORKSPACE", to)
        monkeypatch.setattr(kernel, "ROWS", rows)
        monkeypatch.setattr(kernel, "FEWEST_ROWS", rows)

    return shrink


class Problem:
    """Arrays of a call, and the call on the kernels."""

    def __init__(self, n: int, k: int, c: int, dtype: str = "float32", losses: int = 1, seed: int = 0):
        rng = np.random.default_rng(seed)
        self.dtype = DTYPES[dtype]
        self.x = rng.standard_normal((n, k)).astype(self.dtype)
        self.weight = (2 / math.sqrt(k) * rng.standard_normal((c, losses, k))).astype(self.dtype)
        self.bias = None
        self.target = rng.integers(0, c, (n, losses))

    def run(
        self, needs: tuple[bool, bool, bool, bool] = (True, True, False, False), o: LossOptions | None = None,
        stats: bool = False, seed: int = 0,
    ) -> tuple[backends.LossResult, Sanitizer]:  # fmt: skip
        o = o or LossOptions()
        with Sanitizer(seed=seed) as san, tg.backend("triton"):
            made = backends.linear_cross_entropy(self.x, self.weight, self.bias, self.target, None, o, needs, stats)
        return made, san

    def expected(self, **options: Any) -> list[np.ndarray]:
        """Loss and the gradients of input and weight, in float64."""
        x, w = (as_torch(a).double().requires_grad_() for a in (self.x, self.weight))
        if self.target.shape[1] == 1:
            loss = truth.linear_cross_entropy(x, w[:, 0], torch.from_numpy(self.target[:, 0]), **options)
        else:
            loss = truth.linear_cross_entropy(x, w, torch.from_numpy(self.target), **options)
        loss.sum().backward()
        return [values(t) for t in (loss, x.grad, w.grad)]


def furthest(ours: np.ndarray, truths: np.ndarray) -> float:
    return float(np.abs(values(ours) - truths).max() / np.abs(truths).max())


# --- what it computes -------------------------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None, derandomize=True, phases=[Phase.generate])
@given(data=st.data())
def test_any_shape_layout_and_option(data: st.DataObject) -> None:
    positions = data.draw(st.sampled_from([(), (), (2,), (3,)]))
    case = {
        "shape": (
            data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40)), data.draw(st.integers(1, 150)), positions,
        ),
        "dtype": data.draw(st.sampled_from(list(DTYPES))),
        "layout": data.draw(st.sampled_from(["contiguous", "transposed", "sliced", "expanded"])),
        "kind": data.draw(st.sampled_from(["Tensor", "torch"])),
        "reduction": data.draw(st.sampled_from(["mean", "sum", "none"])),
        "target": data.draw(st.sampled_from(["indices", "probabilities"])),
        "ignore_index": data.draw(st.sampled_from([-100, 1])),
        "label_smoothing": data.draw(st.sampled_from([0.0, 0.1])),
        "z_loss": data.draw(st.sampled_from([0.0, 0.01])),
        "softcap": data.draw(st.sampled_from([None, 5.0])),
        "weighted": data.draw(st.booleans()),
        "bias": data.draw(st.booleans()),
    }  # fmt: skip
    with Sanitizer(seed=data.draw(st.integers(0, 3))), tg.backend("triton"):
        assert worst(linear_cross_entropy_case(case, data.draw(st.integers(0, 99)))) <= 2


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("losses", [1, 2])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_cut_does_not_show(dtype: str, losses: int, reduction: str, small_workspace: Callable[..., None]) -> None:
    problem = Problem(200, 24, 100, dtype, losses)
    problem.target[[3, 40, 141]] = -100
    whole, _ = problem.run(o=LossOptions(reduction))
    expected = problem.expected(reduction=reduction)
    errors = [furthest(a, e) for a, e in zip((whole.loss, *whole.grads[:2]), expected, strict=True)]
    gathered = []
    for size in (36_000, 24_000) if losses == 1 else (60_000, 40_000):
        small_workspace(size, rows=64)
        cut, san = problem.run(o=LossOptions(reduction))
        gathered.append(sum(launch.name == "gather_kernel" for launch in san.launches))
        for what, a, e, error in zip(["loss", "dX", "dW"], (cut.loss, *cut.grads[:2]), expected, errors, strict=True):
            # Sums over chunks that were kept in 16 bits would be worse by far.
            assert furthest(a, e) <= 1.1 * error + 1e-6, (size, what)
    assert 1 < gathered[0] <= gathered[1]


def test_sums_over_chunks_are_wide(small_workspace: Callable[..., None]) -> None:
    # 1 + 2⁻⁹ + 2⁻⁹ + … stays 1 where bfloat16 is added up.
    problem = Problem(160, 8, 4, "bfloat16")
    problem.x[:] = 1
    problem.weight[:] = 0
    problem.target[:] = 0
    problem.target[16:, 0] = np.arange(144) % 4
    small_workspace(5_500)
    cut, san = problem.run(o=LossOptions("sum"))
    assert sum(launch.name == "gather_kernel" for launch in san.launches) >= 10
    _, _, expected = problem.expected(reduction="sum")
    assert furthest(cut.grads[1], expected) <= 2.0**-9


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_gradient_next_to_zero_is_precise(dtype: str) -> None:
    """p − 1 of a target that is almost certain: p rounded to 16 bits would be 1, or 1 − 2⁻⁹."""
    problem = Problem(3, 1, 40, dtype)
    problem.x[:] = 1
    problem.weight[:] = 0
    problem.weight[4] = 10
    problem.target[:] = 4
    made, _ = problem.run(o=LossOptions("sum"))
    exact = -39 * math.exp(-10) / (1 + 39 * math.exp(-10))
    np.testing.assert_allclose(values(made.grads[0]), 10 * exact, rtol=2**-8)
    np.testing.assert_allclose(values(made.grads[1])[4], 3 * exact, rtol=2**-8)


# --- what it costs ----------------------------------------------------------------------------------------------------


def nowhere(dtype: str, *shape: int) -> View:
    """An array without memory."""
    return View(4096, DType(dtype), shape, tuple(math.prod(shape[i + 1 :]) for i in range(len(shape))), None)


def listed(x: View, weight: View, **outputs: View) -> dict[str, tuple[tuple[int, ...], str]]:
    """The workspace of a call."""
    target = nowhere("int64", x.shape[0], 1)
    with Sanitizer():
        return kernel.linear_cross_entropy_workspace(x, weight, None, target, None, LossOptions(), loss=x, **outputs)


N, K, C = 256, 256, 512  # multiples of the tiles: no FLOP is spent on padding


def flops(san: Sanitizer) -> float:
    return sum(launch.flops for launch in san.launches) / (N * K * C)


def test_flops_are_six_with_gradients_in_one_pass() -> None:
    problem = Problem(N, K, C, "bfloat16")
    assert flops(problem.run()[1]) == 6
    assert flops(problem.run((False,) * 4)[1]) == 2


def test_a_frozen_weight_or_input_costs_nothing() -> None:
    problem = Problem(N, K, C, "bfloat16")
    for needs in ((True, False, False, False), (False, True, False, False)):
        made, san = problem.run(needs)
        assert flops(san) == 4
        assert [g is not None for g in made.grads] == list(needs)
    x, w = nowhere("bfloat16", 50_000, 512), nowhere("bfloat16", 50_000, 1, 512)
    assert "grad_weight" in listed(x, w, grad_weight=w, grad_input=x)
    assert "grad_weight" not in listed(x, w, grad_input=x)
    assert "logits" not in listed(x, w)


def test_ignored_rows_are_dropped_before_the_products() -> None:
    problem = Problem(N, K, C, "bfloat16")
    problem.target[: N // 2] = -100
    problem.x[: N // 2] = np.nan
    made, san = problem.run()
    assert flops(san) == 3
    assert (made.grads[0][: N // 2] == 0).all()
    assert np.isfinite(values(made.grads[1])).all()
    # Their statistics need their logits; the gradients still do not.
    _, san = problem.run(stats=True)
    assert flops(san) == 4


def test_the_logits_are_never_stored_for_the_loss_alone() -> None:
    n, k, c = 2048, 64, 100_000
    buffers = listed(nowhere("bfloat16", n, k), nowhere("bfloat16", c, 1, k))
    assert sum(math.prod(shape) for shape, _ in buffers.values()) < n * c / 10


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize(
    ("n", "k", "c"),
    [
        (8192, 4096, 128256),
        (65536, 8192, 262144),
        (16384, 768, 50257),
        (1024, 64, 1000),
        (4096, 5120, 152064),
        (1, 8, 9),
    ],
)
def test_workspace_is_within_the_limit(dtype: str, n: int, k: int, c: int) -> None:
    x, w = nowhere(dtype, n, k), nowhere(dtype, c, 1, k)
    buffers = listed(x, w, grad_input=x, grad_weight=w)
    total = sum(math.prod(shape) * DType(kind).itemsize for shape, kind in buffers.values())
    assert total <= kernel.WORKSPACE == 256 * MIB
    if n * c * 2 > 256 * MIB:
        assert math.prod(buffers["logits"][0]) < n * c / 2


def test_workspace_and_bytes_follow_the_formula(small_workspace: Callable[..., None]) -> None:
    problem = Problem(N, K, C, "bfloat16")
    small_workspace(700_000)
    _, san = problem.run()
    p = kernel.plan(N, C, 1, K, 2, 128, gradients=True, grad_weight=True)
    assert not p.block
    # Logits: written, read and written by the gradient, read by two products.
    logits = 2 * N * C
    moved = {name: sum(x.read + x.written for x in san.launches if x.name == name) for name in names(san)}
    tile = 64  # classes, of which a maximum of 4 bytes is kept a row
    assert moved["gradient_kernel"] == pytest.approx(2 * logits + 4 * N * C / tile, rel=0.05)
    assert moved["gather_kernel"] == pytest.approx(4 * N * K, rel=0.1)


def names(san: Sanitizer) -> set[str]:
    return {launch.name for launch in san.launches}
