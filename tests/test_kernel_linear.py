"""The Triton kernels of linear + bias + activation, and the matrix product that they share: what they compute, and what
they cost in launches, bytes and FLOPs."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
import truth
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from kinds import DTYPES, LAYOUTS, as_torch, laid_out, values
from sanitizer import ORDERS, Sanitizer

import tilegrad as tg
from tilegrad import backends, kernels
from tilegrad.activations import ACTIVATIONS as REFERENCE
from tilegrad.kernels.activation import ACTIVATIONS
from tilegrad.kernels.launch import view
from tilegrad.kernels.matmul import matmul, matrix

module = importlib.import_module("tilegrad.kernels.linear")  # the package has the function by that name

EPS = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
GATED = ("swiglu", "geglu")


class Problem:
    """A call, forward and backward, on arrays of given layouts."""

    def __init__(
        self, lead: tuple[int, ...], k: int, m: int, activation: str | None = None, dtype: str = "float32",
        bias: bool = True, layouts: tuple[str, str, str] = ("contiguous",) * 3, seed: int = 0,
    ):  # fmt: skip
        rng = np.random.default_rng(seed)
        rows = 2 * m if activation in GATED else m
        self.dtype, self.activation = dtype, activation
        of_x, of_weight, of_grad = layouts

        def drawn(shape: tuple[int, ...], layout: str, scale: float = 1.0) -> np.ndarray:
            return laid_out((scale * rng.standard_normal(shape)).astype(DTYPES[dtype]), layout)

        self.x = drawn((*lead, k), of_x)
        self.weight = drawn((rows, k), of_weight, 1 / math.sqrt(max(1, k)))
        self.bias = drawn((rows,), of_weight) if bias else None
        self.grad = drawn((*lead, m), of_grad)

    def forward(self, save: bool = True, seed: int = 0) -> tuple[Any, Any, Sanitizer]:
        with Sanitizer(seed) as san, tg.backend("triton"):
            out, saved = backends.linear(self.x, self.weight, self.bias, self.activation, save)
        return out, saved, san

    def backward(self, saved: Any, needs: tuple[bool, bool, bool], seed: int = 0) -> tuple[tuple[Any, ...], Sanitizer]:
        with Sanitizer(seed) as san, tg.backend("triton"):
            made = backends.linear_backward(self.grad, self.x, self.weight, saved, self.activation, needs)
        return made, san

    def expected(self, wide: bool) -> list[np.ndarray]:
        """Output and gradients by torch, in float64 or in the dtype itself."""
        arrays = [a for a in (self.x, self.weight, self.bias) if a is not None]
        leaves = [as_torch(np.array(a, order="C")) for a in arrays]
        leaves = [(t.double() if wide else t).requires_grad_() for t in leaves]
        out = truth.linear(leaves[0], leaves[1], leaves[2] if len(leaves) > 2 else None, self.activation)
        out.backward(as_torch(np.array(self.grad, order="C")).to(out.dtype))
        return [values(out), *(values(t.grad) for t in leaves)]

    def masses(self) -> list[float]:
        """The largest sum of magnitudes behind any element of each of these. No order of adding up in float32 is safe
        from an error of a few units in its last place."""
        x, w, g = (
            np.abs(values(a)).reshape(math.prod(a.shape[:-1]), a.shape[-1]) for a in (self.x, self.weight, self.grad)
        )
        b = 0 if self.bias is None else np.abs(values(self.bias))
        z = x @ w.T + b
        steep = 1.2  # no derivative is above it
        d = steep * g
        if self.activation in GATED or self.activation == "relu2":
            d = np.concatenate([d, d], -1) * z.max(initial=0) if self.activation in GATED else 2 * g * z
            z = z * z.max(initial=0)
        return [float(a.max(initial=0)) for a in (steep * z, d @ w, d.T @ x, d.sum(0))]


def check(problem: Problem, seed: int) -> list[float]:
    """Run and compare; error ÷ torch's error for all results whose error is more than the last bit's."""
    out, saved, _ = problem.forward(seed=seed)
    made, _ = problem.backward(saved, (True, True, problem.bias is not None), seed)
    eps, ratios = EPS[problem.dtype], []
    wide = eps if problem.dtype == "float64" else EPS["float32"]
    results = [values(a) for a in (out, *made) if a is not None]
    everything = (results, problem.expected(False), problem.expected(True), problem.masses())
    for ours, torchs, truths, mass in zip(*everything, strict=False):
        assert ours.shape == truths.shape
        if truths.size:
            error, theirs = (float(np.abs(a - truths).max()) for a in (ours, torchs))
            floor = eps / 2 * float(np.abs(truths).max()) + wide * mass
            assert error <= 2 * max(theirs, floor), (error, theirs, floor)
            ratios.append(max(error, floor, 1e-300) / max(theirs, floor, 1e-300))
    return ratios


# --- what it computes -------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None, derandomize=True, phases=[Phase.generate])
@given(data=st.data())
def test_any_shape_layout_and_activation(data: st.DataObject) -> None:
    size = st.one_of(st.integers(0, 40), st.sampled_from([1, 8, 64, 65, 72]))
    lead = tuple(data.draw(st.lists(st.one_of(st.integers(0, 9), st.sampled_from([1, 33, 64])), max_size=3)))
    if math.prod(lead) > 300:
        lead = lead[:1]
    problem = Problem(
        lead, data.draw(size), data.draw(size), data.draw(st.sampled_from(list(truth.ACTIVATIONS))),
        data.draw(st.sampled_from(list(DTYPES))), data.draw(st.booleans()),
        (
            data.draw(st.sampled_from(LAYOUTS)),
            data.draw(st.sampled_from([x for x in LAYOUTS if x != "expanded"])),
            data.draw(st.sampled_from(LAYOUTS)),
        ),
        data.draw(st.integers(0, 99)),
    )  # fmt: skip
    check(problem, data.draw(st.sampled_from(list(ORDERS.values()))))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_errors_are_not_above_torchs_on_the_geometric_mean(dtype: str) -> None:
    ratios = []
    for i, activation in enumerate(truth.ACTIVATIONS):
        ratios += check(Problem((33,), 72, 40, activation, dtype, seed=i), 2)
    assert math.exp(np.log(ratios).mean()) <= 1


@pytest.mark.parametrize("activation", [None, "gelu", "swiglu"])
def test_several_tiles_along_every_axis(activation: str | None) -> None:
    # A bias that was added once for each step along k, or an epilogue that mixed up its columns, would show.
    problem = Problem((200,), 136, 264, activation, "float16")
    problem.bias[...] = np.arange(len(problem.bias)) % 50
    check(problem, 2)


def test_tf32_is_used_only_on_request() -> None:
    problem = Problem((40,), 64, 48)
    z, w, b = (values(a) for a in (problem.x, problem.weight, problem.bias))
    errors = {}
    for tf32 in (False, True):
        out = np.empty((40, 48), np.float32)
        with Sanitizer():
            kernels.linear(problem.x, problem.weight, problem.bias, None, out=out, pre=None, tf32=tf32)
        errors[tf32] = np.abs(out - (z @ w.T + b)).max()
    assert errors[False] < 1e-5 < 1e-4 < errors[True] < 1e-2


@pytest.mark.parametrize("activation", truth.ACTIVATIONS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_bad_row_stays_alone(activation: str | None, bad: float) -> None:
    problem = Problem((6,), 1, 8, activation)
    problem.weight[...] = 1
    problem.x[2] = bad
    out, saved, _ = problem.forward()
    (dx, *_), _ = problem.backward(saved, (True, False, False))
    z, expected = torch.from_numpy(problem.x).double().requires_grad_(), []
    y = truth.linear(z, torch.from_numpy(problem.weight).double(), torch.from_numpy(problem.bias).double(), activation)
    y.backward(torch.from_numpy(problem.grad).double())
    expected = [values(y), values(z.grad)]
    for ours, truths in zip((out, dx), expected, strict=True):
        assert np.isfinite(np.delete(ours, 2, 0)).all()
        assert not (np.isnan(ours[2]) & ~np.isnan(truths[2])).any()  # mish(∞) has a slope, of which torch makes ∞ · 0
        assert np.isnan(ours[2]).all() or not math.isnan(bad) or ours is dx


def test_a_scalar_upstream_that_was_expanded() -> None:
    problem = Problem((20, 3), 16, 24, "gelu")
    problem.grad = np.broadcast_to(np.float32(0.7), problem.grad.shape)
    check(problem, 0)


@pytest.mark.parametrize("activation", [None, "relu", "geglu"])
def test_views_that_no_matrix_describes(activation: str | None) -> None:
    problem = Problem((4, 5, 6), 16, 24, activation)
    problem.x = problem.x.transpose(2, 0, 1, 3)[::-1, :, ::2]  # three dimensions of rows that cannot be one
    problem.grad = problem.grad.transpose(2, 0, 1, 3)[:, :, :3]
    problem.weight = problem.weight[::-1]
    check(problem, 2)


# --- the activations --------------------------------------------------------------------------------------------------


@triton.jit
def apply_kernel(x_ptr, y_ptr, F: tl.constexpr, N: tl.constexpr):
    at = tl.arange(0, N)
    tl.store(y_ptr + at, F(tl.load(x_ptr + at)))


POINTS = np.concatenate([np.linspace(-30, 30, 3967), [s * x for s in (1, -1) for x in (1e-30, 1e-6, 88.8, 104, 200)]])
SPECIAL = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e38, -1e38, 1e20, -1e20])


def applied(function: Any, x: np.ndarray) -> np.ndarray:
    size = triton.next_power_of_2(len(x))
    padded, y = np.zeros(size, x.dtype), np.empty(size, x.dtype)
    padded[: len(x)] = x
    with Sanitizer() as san:
        apply_kernel[(1,)](san.own(padded, "input"), san.own(y, "output"), function, size)
    return y[: len(x)]


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_activations_and_their_derivatives(name: str, dtype: str) -> None:
    ours, reference, x = ACTIVATIONS[name], REFERENCE[name], POINTS.astype(dtype)
    assert (ours.gated, ours.by_sign) == (reference.gated, reference.by_sign)
    z = torch.from_numpy(x).requires_grad_()
    torchs = truth.ACTIVATIONS[{"swiglu": "silu", "geglu": "gelu"}.get(name, name)](z)
    torchs.backward(torch.ones_like(z))
    for function, theirs, truths in (
        (ours.of, torchs.detach(), reference.of(np, x.astype(np.float64))),
        (ours.grad, z.grad, reference.grad(np, x.astype(np.float64))),
    ):
        found = applied(function, x)
        # In the last places of the number itself where it is large, of 1 where it is small.
        scale = EPS[dtype] * np.maximum(np.abs(truths), 1)
        error = np.abs(found - truths) / scale
        assert error.max() <= max(4, 2 * (np.abs(theirs.numpy() - truths) / scale).max())
        # Small results keep their relative precision, which torch's gelu, for one, does not.
        small = (np.abs(truths) > 1e-30) & (np.abs(x) < 9) & (function not in (ACTIVATIONS["tanh"].grad,))
        assert (np.abs(found / np.where(small, truths, 1) - 1)[small] < 4e5 * EPS[dtype]).all()


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_at_the_ends_of_the_numbers(name: str) -> None:
    z = torch.from_numpy(SPECIAL).requires_grad_()  # in float64: torch's own vector code errs here
    torchs = truth.ACTIVATIONS[{"swiglu": "silu", "geglu": "gelu"}.get(name, name)](z)
    torchs.backward(torch.ones_like(z))
    with np.errstate(over="ignore"):
        expected = torchs.detach().numpy().astype(np.float32)
    np.testing.assert_allclose(applied(ACTIVATIONS[name].of, SPECIAL.astype(np.float32)), expected, rtol=1e-6)
    finite = SPECIAL[np.isfinite(SPECIAL)]
    slopes = z.grad.numpy()[np.isfinite(SPECIAL)]
    np.testing.assert_allclose(applied(ACTIVATIONS[name].grad, finite.astype(np.float32)), slopes, rtol=1e-6, atol=1e-6)
    with np.errstate(invalid="ignore"):
        expected = REFERENCE[name].grad(np, SPECIAL)
    np.testing.assert_array_equal(
        np.isnan(applied(ACTIVATIONS[name].grad, SPECIAL.astype(np.float32))), np.isnan(expected)
    )


def test_tanh_reaches_one() -> None:
    x = np.array([20, -20, 1e-8, 100], np.float32)
    np.testing.assert_array_equal(applied(ACTIVATIONS["tanh"].of, x), np.array([1, -1, 1e-8, 1], np.float32))


# --- what it costs ----------------------------------------------------------------------------------------------------


def names(san: Sanitizer) -> list[str]:
    return [launch.name.removesuffix("_kernel") for launch in san.launches]


@pytest.mark.parametrize("activation", [None, "relu", "gelu", "swiglu"])
def test_launches(activation: str | None) -> None:
    problem = Problem((64,), 32, 48, activation, "bfloat16")
    _, saved, san = problem.forward()
    assert names(san) == ["matmul_descriptor"]
    product, first = "matmul_descriptor", ["dz"]
    for needs, expected in {
        (True, True, True): [*first, product, product],
        (True, True, False): [*(first if activation else []), product, product],
        (False, True, True): [*first, product],  # a frozen input costs nothing
        (True, False, True): [*first, product],  # nor does a frozen weight
        (False, False, True): [*first, "add_parts"],
        (True, False, False): [*(first if activation else []), product],
        (False, False, False): [],
    }.items():
        made, san = problem.backward(saved, needs)
        assert names(san) == expected
        assert [a is not None for a in made] == list(needs)


@pytest.mark.parametrize(
    ("change", "kernel"),
    [
        ({}, "matmul_descriptor"),
        ({"lead": (8, 4)}, "matmul_descriptor"),
        ({"m": 41}, "matmul_descriptor"),  # only its results do not suit bulk copies
        ({"k": 33}, "matmul_pointer"),
        ({"k": 36}, "matmul_pointer"),
        ({"lead": (), "k": 32}, "matmul_descriptor"),
        ({"layouts": ("transposed", "transposed", "contiguous")}, "matmul_descriptor"),
        ({"layouts": ("sliced", "contiguous", "contiguous")}, "matmul_pointer"),
        ({"layouts": ("expanded", "contiguous", "contiguous")}, "matmul_pointer"),
        ({"dtype": "float32"}, "matmul_pointer"),  # IEEE products: there are no tensor cores to be fed
        ({"dtype": "float64"}, "matmul_pointer"),
    ],
    ids=str,
)  # fmt: skip
def test_the_kernel_is_chosen_by_rule(change: dict[str, Any], kernel: str) -> None:
    given = {"lead": (32,), "k": 32, "m": 40, "activation": "silu", "dtype": "float16"} | change
    _, _, san = Problem(**given).forward()
    assert names(san) == [kernel]


def test_misaligned_addresses_take_pointers() -> None:
    problem = Problem((32,), 32, 40, "silu", "float16")
    room = np.empty(32 * 32 + 1, np.float16)
    x = room[1:].reshape(32, 32)
    x[...] = problem.x
    problem.x = x
    _, _, san = problem.forward()
    assert names(san) == ["matmul_pointer"]
    check(problem, 0)


@pytest.mark.parametrize("activation", ["relu", "gelu", "swiglu"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_bytes_of_the_pass_that_makes_dz(activation: str, dtype: str) -> None:
    problem = Problem((512,), 16, 256, activation, dtype)
    _, saved, _ = problem.forward()
    _, san = problem.backward(saved, (True, True, True))
    dz = san.launches[0]
    each = 5 if activation in GATED else 3  # dY, Z or its two halves, and as much of dZ: 6 bytes an element of bfloat16
    least = each * 512 * 256 * np.dtype(DTYPES[dtype]).itemsize
    assert least <= dz.read + dz.written <= 1.02 * least


@pytest.mark.parametrize("activation", [None, "relu", "gelu", "swiglu"])
@pytest.mark.parametrize("save", [False, True])
def test_bytes_of_the_forward(activation: str | None, save: bool) -> None:
    problem = Problem((128,), 64, 256, activation, "bfloat16")
    out, saved, san = problem.forward(save)
    kept = save and activation in ("gelu", "swiglu")  # the pre-activation is written only where backward needs it
    assert (saved is not None and saved is not out) == kept
    (launch,) = san.launches
    assert launch.written == launch.least_written == 2 * out.size * (1 + kept * (2 if activation == "swiglu" else 1))
    assert launch.flops == 2 * problem.x.size * len(problem.weight)


@pytest.mark.parametrize("frozen", [False, True])
def test_flops_of_the_backward(frozen: bool) -> None:
    problem = Problem((128,), 64, 256, "gelu", "bfloat16")
    _, saved, _ = problem.forward()
    _, san = problem.backward(saved, (True, not frozen, True))
    assert sum(launch.flops for launch in san.launches) == 2 * 128 * 64 * 256 * (1 if frozen else 2)


@pytest.mark.parametrize("activation", [None, "gelu", "geglu"])
@pytest.mark.parametrize("needs", [(True, True, True), (False, True, True), (False, False, True)], ids=str)
def test_the_same_bits_in_any_order(activation: str | None, needs: tuple[bool, bool, bool]) -> None:
    problem = Problem((300,), 24, 40, activation, "bfloat16")
    runs = []
    for seed in ORDERS.values():
        out, saved, _ = problem.forward(seed=seed)
        made, _ = problem.backward(saved, needs, seed)
        runs.append([a.view(np.uint16) for a in (out, *made) if a is not None])
    for run in runs[1:]:
        for a, b in zip(runs[0], run, strict=True):
            np.testing.assert_array_equal(a, b)


def test_the_gradient_of_the_bias_is_summed_wide() -> None:
    # 256 ones and more: in bfloat16 the sum would stop at 256, and dZ rounded before it is added loses 1/1024 of each.
    problem = Problem((1024,), 8, 16, "silu", "bfloat16")
    problem.x[...] = 0
    problem.bias[...] = 1
    problem.grad[...] = 1.0078125
    _, saved, _ = problem.forward()
    (_, _, db), _ = problem.backward(saved, (True, True, True))
    slope = float(REFERENCE["silu"].grad(np, np.float64(1.0)))
    np.testing.assert_allclose(values(db), 1024 * 1.0078125 * slope, rtol=2.0**-8)


# --- nothing there ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", [None, "relu", "gelu", "swiglu"])
@pytest.mark.parametrize("needs", [(True, True, True), (True, False, True), (False, False, True)], ids=str)
def test_an_empty_batch_has_gradients_of_zero(activation: str | None, needs: tuple[bool, bool, bool]) -> None:
    problem = Problem((0, 3), 4, 5, activation)
    out, saved, _ = problem.forward()
    assert out.shape == (0, 3, 5)
    (dx, dw, db), _ = problem.backward(saved, needs)  # the sanitizer sees to it that all of them are written
    assert dx is None or dx.shape == (0, 3, 4)
    assert dw is None or not dw.any()
    assert not db.any()


def test_no_features() -> None:
    problem = Problem((7,), 0, 5, "gelu")
    out, saved, _ = problem.forward()
    expected = REFERENCE["gelu"].of(np, problem.bias.astype(np.float64))
    np.testing.assert_allclose(out, np.broadcast_to(expected, (7, 5)), atol=1e-6)
    (dx, dw, db), _ = problem.backward(saved, (True, True, True))
    assert (dx.shape, dw.shape) == ((7, 0), (5, 0))
    assert db.any()
    check(Problem((7,), 5, 0, "gelu"), 0)


# --- the product by itself --------------------------------------------------------------------------------------------


def product(
    m: int, n: int, k: int, dtype: str, seed: int = 0, turned: bool = False, **options: Any
) -> tuple[np.ndarray, ...]:
    """Operands, and what they make."""
    rng = np.random.default_rng(seed)
    a, b = (rng.standard_normal(s).astype(DTYPES[dtype]) for s in (((k, m), (k, n)) if turned else ((m, k), (n, k))))
    a, b = (a.T, b.T) if turned else (a, b)
    return a, b, values(a) @ values(b).T


# By the copy engine and through pointers, with the accumulators' dtype.
PATHS = pytest.mark.parametrize(("dtype", "k"), [("float16", 64), ("float16", 61), ("float32", 61), ("float64", 64)])


@PATHS
def test_accumulating(dtype: str, k: int) -> None:
    a, b, expected = product(70, 40, k, dtype)
    out = np.arange(70 * 40).reshape(70, 40).astype("float64" if dtype == "float64" else "float32")
    before = out.astype(np.float64)
    with Sanitizer(3) as san:
        for x in (a, b):
            san.own(x, "input")
        san.own(out, "inout")
        matmul(matrix(view(a)), matrix(view(b)), view(out), accumulate=True)
    np.testing.assert_allclose(out, before + expected, rtol=1e-6, atol=1e-4)


@PATHS
def test_rows_that_go_elsewhere(dtype: str, k: int) -> None:
    a, b, expected = product(70, 40, k, dtype)
    index = np.random.default_rng(0).permutation(90)[:70].astype(np.int32)
    out = np.full((90, 40), 7, DTYPES[dtype])
    with Sanitizer(3) as san:
        for x in (a, b, index):
            san.own(x, "input")
        san.own(out, "inout")
        matmul(matrix(view(a)), matrix(view(b)), view(out), row_index=view(index))
    np.testing.assert_allclose(values(out)[index], expected, rtol=2e-3, atol=2e-2)
    assert (np.delete(values(out), index, 0) == 7).all()


@PATHS
@pytest.mark.parametrize(("count", "start", "left"), [(100, 30, 70), (50, 30, 20), (64, 0, 64), (10, 30, 0)])
def test_as_many_rows_as_the_device_says(dtype: str, k: int, count: int, start: int, left: int) -> None:
    a, b, expected = product(70, 40, k, dtype)
    out = np.full((70, 40), 7, DTYPES[dtype])
    limit = np.array([count], np.int32)
    with Sanitizer(3) as san:
        for x in (a, b, limit):
            san.own(x, "input")
        san.own(out, "inout")
        matmul(matrix(view(a)), matrix(view(b)), view(out), limit=view(limit), limit_start=start)
    left = min(left, 70)
    np.testing.assert_allclose(values(out)[:left], expected[:left], rtol=2e-3, atol=2e-2)
    assert (out[left:] == 7).all()


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize(("count", "start", "left"), [(400, 30, 200), (120, 30, 90), (10, 30, 0)])
def test_sums_as_long_as_the_device_says(dtype: str, count: int, start: int, left: int) -> None:
    a, b, _ = product(70, 40, 200, dtype, turned=True)
    a[:, left:], b[:, left:] = 0, 0  # as the chunks of linear_cross_entropy are
    limit = np.array([count], np.int32)
    with Sanitizer(3) as san:
        for x in (a, b, limit):
            san.own(x, "input")
        out = san.own(np.empty((70, 40), np.float32), "output")
        matmul(matrix(view(a)), matrix(view(b)), view(out), limit=view(limit), limit_start=start, limit_k=True)
    np.testing.assert_allclose(out, values(a)[:, :left] @ values(b)[:, :left].T, rtol=1e-5, atol=1e-4)
    (launch,) = san.launches
    depth = launch.constants["BLOCK_K"]
    sides = [launch.constants[side] for side in ("BLOCK_M", "BLOCK_N")]
    tiles = math.prod(triton.cdiv(n, side) for n, side in zip(out.shape, sides, strict=True))
    assert launch.flops == 2 * tiles * math.prod(sides) * triton.cdiv(left, depth) * depth  # and no longer


@pytest.mark.parametrize("turned", [(False, False), (False, True), (True, False), (True, True)], ids=str)
@pytest.mark.parametrize("tf32", [False, True])
def test_operands_along_either_axis(turned: tuple[bool, bool], tf32: bool) -> None:
    rng = np.random.default_rng(0)
    dtype = np.float32 if tf32 else np.float16
    a, b = (
        np.array(rng.standard_normal(shape).astype(dtype), order="F" if t else "C")
        for shape, t in zip(((72, 80), (136, 80)), turned, strict=True)
    )
    with Sanitizer(3) as san:
        out = san.own(np.empty((72, 136), dtype), "output")
        matmul(matrix(view(a)), matrix(view(b)), view(out), tf32=tf32)
    np.testing.assert_allclose(out, a.astype(np.float64) @ b.T.astype(np.float64), rtol=2e-2, atol=3e-2)
    assert names(san) == ["matmul_descriptor"]


# --- what is refused --------------------------------------------------------------------------------------------------


def ones(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return np.ones(shape, dtype)


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (ValueError, r"weight of shape \(out_features, 4\), got \(3, 5\)",
         lambda f: f(ones(2, 4), ones(3, 5), None, None)),
        (ValueError, r"\(2·out_features, 4\), got \(3, 4\)", lambda f: f(ones(2, 4), ones(3, 4), None, "swiglu")),
        (ValueError, r"bias of shape \(3,\), got \(4,\)", lambda f: f(ones(2, 4), ones(3, 4), ones(4), None)),
        (ValueError, "expected activation None or one of .*, got 'step'",
         lambda f: f(ones(2, 4), ones(3, 4), None, "step")),
        (TypeError, "weight of the input's dtype float32, got float16",
         lambda f: f(ones(2, 4), ones(3, 4, dtype=np.float16), None, None)),
        (TypeError, "take float16, bfloat16, float32, float64, got int32",
         lambda f: f(ones(2, 4, dtype=np.int32), ones(3, 4, dtype=np.int32), None, None)),
    ],
)  # fmt: skip
def test_errors_come_before_any_launch(error: type[Exception], message: str, call: Callable[..., None]) -> None:
    with Sanitizer() as san, pytest.raises(error, match=message):
        call(lambda *args: kernels.linear(*args, out=ones(2, 3), pre=None))
    assert san.launches == []


def test_backward_wants_what_the_forward_saved() -> None:
    problem = Problem((3,), 4, 5, "gelu")
    with pytest.raises(ValueError, match="what the forward saved for activation 'gelu', got None"):
        problem.backward(None, (True, True, True))
