"""What every backend promises, a test for each rule, on every kind of array."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from kinds import KINDS, laid_out, make, values
from test_contract import BACKENDS, running_on

import tilegrad as tg
import tilegrad.nn.functional as F

NAN, INF = math.nan, math.inf
RECORDED = ("Tensor", "torch")  # the kinds with gradients


@pytest.fixture(params=BACKENDS, autouse=True)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    with running_on(request.param):
        yield request.param


def draw(*shape: int, seed: int = 0, dtype: Any = np.float32) -> np.ndarray:
    return (3 * np.random.default_rng(seed).standard_normal(shape)).astype(dtype)


def classes(n: int, c: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, c, n)


def loss_and_gradient(kind: str, x: np.ndarray, loss: Callable[[Any], Any]) -> tuple[np.ndarray, np.ndarray | None]:
    made = make(kind, x, True)
    out = loss(made)
    if kind == "numpy":
        return values(out), None
    (out if out.ndim == 0 else out.sum()).backward()
    return values(out), values(made.grad)


# --- numerics ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_halves_accumulate_in_float32(kind: str, dtype: Any) -> None:
    # 4096 + 1 + 1 + … stays 4096 if the sum is kept in 16 bits.
    x = np.ones((1, 2049), dtype)
    w = np.ones((2, 2049), dtype)
    w[:, 0] = 4096
    assert (values(F.linear(make(kind, x), make(kind, w))) == np.float64(dtype(4096 + 2048))).all()
    logits = np.zeros((1, 4096), dtype)
    lse = F.cross_entropy(make(kind, logits), make(kind, np.array([0])), return_stats=True)[1].lse
    np.testing.assert_allclose(values(lse), math.log(4096), rtol=1e-6)
    assert str(lse.dtype).endswith("float32")


@pytest.mark.parametrize("kind", KINDS)
def test_a_shift_of_integer_logits_changes_nothing(kind: str) -> None:
    x = np.random.default_rng(0).integers(-20, 20, (8, 50)).astype(np.float32)
    t = classes(8, 50)
    for options in ({}, {"label_smoothing": 0.1}, {"reduction": "none"}):
        results = [
            loss_and_gradient(kind, z, lambda a: F.cross_entropy(a, make(kind, t), **options)) for z in (x, x + 10000)
        ]
        np.testing.assert_array_equal(results[0][0], results[1][0])
        if kind != "numpy":
            np.testing.assert_array_equal(results[0][1], results[1][1])


@pytest.mark.parametrize("kind", KINDS)
def test_minus_infinity_in_a_row_is_fine(kind: str) -> None:
    x = draw(4, 6)
    x[:, [1, 4]] = -INF
    t = np.array([0, 2, 3, 5])
    loss, grad = loss_and_gradient(kind, x, lambda a: F.cross_entropy(a, make(kind, t), reduction="none"))
    keep = [0, 2, 3, 5]
    expected = torch.nn.functional.cross_entropy(
        torch.tensor(x[:, keep]).double(), torch.tensor([keep.index(v) for v in t]), reduction="none"
    )
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    if grad is not None:
        assert (grad[:, [1, 4]] == 0).all()
        assert np.isfinite(grad).all()
    assert (values(F.softmax(make(kind, x), 1))[:, 1] == 0).all()
    assert (values(F.log_softmax(make(kind, x), 1))[:, 1] == -INF).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [[-INF] * 5, [0, NAN, 1, 2, 3], [0, INF, 1, 2, 3]], ids=["-inf", "nan", "inf"])
def test_a_bad_row_is_nan_in_that_row_only(kind: str, bad: list[float]) -> None:
    x = draw(3, 5)
    clean = x.copy()
    x[1] = bad
    t = np.array([0, 1, 2])
    for function in (F.softmax, F.log_softmax):
        y, expected = values(function(make(kind, x), 1)), values(function(make(kind, clean), 1))
        assert np.isnan(y[1]).all()
        np.testing.assert_array_equal(y[[0, 2]], expected[[0, 2]])

    def rows(a: Any) -> Any:
        return F.cross_entropy(a, make(kind, t), reduction="none")

    (loss, grad), (clean_loss, clean_grad) = loss_and_gradient(kind, x, rows), loss_and_gradient(kind, clean, rows)
    assert np.isnan(loss[1])
    np.testing.assert_array_equal(loss[[0, 2]], clean_loss[[0, 2]])
    if grad is not None:
        assert np.isnan(grad[1]).all()
        np.testing.assert_array_equal(grad[[0, 2]], clean_grad[[0, 2]])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("classes", [5, 70], ids=["short", "long"])
def test_a_bad_row_is_nan_even_if_none_of_its_classes_counts(kind: str, reduction: str, classes: int) -> None:
    x = draw(3, classes)
    x[1, 2] = NAN
    weight, probabilities = np.ones(classes, np.float32), np.full((3, classes), 0.5, np.float32)
    weight[1] = probabilities[1] = 0
    target = np.array([0, 1, 2])
    linear_weight = np.eye(classes, dtype=np.float32)
    for loss in (
        lambda w: F.cross_entropy(make(kind, x), make(kind, target), w, reduction=reduction),
        lambda w: F.cross_entropy(make(kind, x), make(kind, probabilities), reduction=reduction),
        lambda w: F.linear_cross_entropy(
            make(kind, x), make(kind, linear_weight), make(kind, target), weight=w, reduction=reduction
        ),
        lambda w: F.linear_cross_entropy(
            make(kind, x), make(kind, linear_weight), make(kind, probabilities), reduction=reduction
        ),
    ):
        got = values(loss(make(kind, weight)))
        np.testing.assert_array_equal(np.isnan(got), [False, True, False] if reduction == "none" else True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_an_ignored_row_contributes_exactly_zero_even_if_it_holds_nan(kind: str, reduction: str, bad: float) -> None:
    x, w = draw(5, 4), draw(7, 4, seed=2)
    t = np.array([0, -100, 2, -100, 4])
    kept = [0, 2, 4]
    dirty = x.copy()
    dirty[[1, 3]] = bad
    options = {"reduction": reduction, "z_loss": 0.1, "label_smoothing": 0.1}
    logits = x @ w.T
    dirty_logits = logits.copy()
    dirty_logits[[1, 3]] = bad
    for given, clean, loss in (
        (dirty_logits, logits, lambda a, t: F.cross_entropy(a, make(kind, t), **options)),
        (dirty, x, lambda a, t: F.linear_cross_entropy(a, make(kind, w), make(kind, t), **options)),
    ):
        got, grad = loss_and_gradient(kind, given, lambda a, loss=loss: loss(a, t))
        expected, expected_grad = loss_and_gradient(
            kind, np.ascontiguousarray(clean[kept]), lambda a, loss=loss: loss(a, t[kept])
        )
        np.testing.assert_allclose(got[kept] if got.ndim else got, expected, rtol=1e-6)
        if got.ndim:
            assert (got[[1, 3]] == 0).all()
        if grad is not None:
            assert (grad[[1, 3]] == 0).all()
            np.testing.assert_allclose(grad[kept], expected_grad, rtol=1e-5, atol=1e-7)
    if kind in RECORDED:
        weight = make(kind, w, True)
        F.linear_cross_entropy(make(kind, dirty), weight, make(kind, t), reduction="sum").backward()
        assert np.isfinite(values(weight.grad)).all()
    logp = np.array(dirty_logits)
    nll, grad = loss_and_gradient(kind, logp, lambda a: F.nll_loss(a, make(kind, t), reduction=reduction))
    assert np.isfinite(nll).all()
    if grad is not None:
        assert (grad[[1, 3]] == 0).all()


@pytest.mark.parametrize("kind", RECORDED)
def test_an_ignored_position_of_a_nan_sample_contributes_nothing_to_its_weights(kind: str) -> None:
    x, w = draw(4, 3), draw(5, 2, 3, seed=2)
    t = np.array([[0, 1], [-100, -100], [2, -100], [3, 4]])  # beside a sample that counts nowhere
    x[2] = NAN
    weight = make(kind, w, True)
    F.linear_cross_entropy(make(kind, x), weight, make(kind, t), reduction="sum").backward()
    got = values(weight.grad)
    assert np.isnan(got[:, 0]).all()
    weight = make(kind, w, True)
    F.linear_cross_entropy(make(kind, x[[0, 3]]), weight, make(kind, t[[0, 3]]), reduction="sum").backward()
    np.testing.assert_allclose(got[:, 1], values(weight.grad)[:, 1], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_all_rows_ignored_is_a_nan_mean_with_zero_gradients(kind: str) -> None:
    x, w, t = draw(3, 4), draw(5, 4, seed=1), np.full(3, -100)
    for given, loss in (
        (draw(3, 5), lambda a: F.cross_entropy(a, make(kind, t), z_loss=0.1)),
        (draw(3, 5), lambda a: F.nll_loss(a, make(kind, t))),
        (x, lambda a: F.linear_cross_entropy(a, make(kind, w), make(kind, t), z_loss=0.1)),
    ):
        value, grad = loss_and_gradient(kind, given, loss)
        assert np.isnan(value)
        if grad is not None:
            assert (grad == 0).all()
    assert values(F.cross_entropy(make(kind, draw(3, 5)), make(kind, t), reduction="sum")) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_logits_give_the_loss_of_the_same_values_in_float32(kind: str) -> None:
    x = draw(64, 1000).astype(ml_dtypes.bfloat16)
    t = classes(64, 1000)
    for options in ({}, {"label_smoothing": 0.1, "z_loss": 0.01, "softcap": 10.0}, {"reduction": "none"}):
        half, half_stats = F.cross_entropy(make(kind, x), make(kind, t), return_stats=True, **options)
        full, full_stats = F.cross_entropy(
            make(kind, x.astype(np.float32)), make(kind, t), return_stats=True, **options
        )
        np.testing.assert_allclose(values(half_stats.lse), values(full_stats.lse), rtol=1e-5)
        # The loss itself is rounded once, to the dtype that torch returns.
        np.testing.assert_array_equal(values(half), values(full).astype(ml_dtypes.bfloat16).astype(np.float64))


@pytest.mark.parametrize("kind", RECORDED)
def test_results_are_bit_identical_from_run_to_run(kind: str) -> None:
    x, w, t = draw(200, 30), draw(70, 30, seed=1), classes(200, 70)

    def run() -> list[np.ndarray]:
        a, b = make(kind, x, True), make(kind, w, True)
        loss = F.linear_cross_entropy(F.linear(a, make(kind, draw(30, 30)), activation="gelu"), b, make(kind, t))
        loss.backward()
        return [values(loss), values(a.grad), values(b.grad)]

    for first, second in zip(run(), run(), strict=True):
        np.testing.assert_array_equal(first, second)


# --- gradients --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", RECORDED)
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "sliced", "expanded"])
def test_upstream_gradients_of_any_stride_are_honoured(kind: str, layout: str) -> None:
    x, w, t = draw(6, 5, 2), draw(4, 5, seed=1), np.random.default_rng(1).integers(0, 5, (6, 2))
    upstream = laid_out(draw(6, 2, seed=5), layout)
    a = make(kind, x, True)
    F.cross_entropy(a, make(kind, t), reduction="none").backward(make(kind, upstream))
    b = torch.tensor(x, requires_grad=True)
    torch.nn.functional.cross_entropy(b, torch.tensor(t), reduction="none").backward(torch.tensor(np.array(upstream)))
    np.testing.assert_allclose(values(a.grad), values(b.grad), rtol=1e-4, atol=1e-6)

    rows = laid_out(draw(6, 4, seed=6), layout)
    a, b = make(kind, x[..., 0].copy(), True), torch.tensor(x[..., 0], requires_grad=True)
    F.linear(a, make(kind, w), activation="silu").backward(make(kind, rows))
    torch.nn.functional.silu(torch.nn.functional.linear(b, torch.tensor(w))).backward(torch.tensor(np.array(rows)))
    np.testing.assert_allclose(values(a.grad), values(b.grad), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", RECORDED)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_a_scalar_upstream_gradient_other_than_one_is_folded_in(kind: str, reduction: str) -> None:
    x, w, t = draw(6, 5), draw(7, 5, seed=1), classes(6, 7)

    def gradient(factor: float) -> np.ndarray:
        a = make(kind, x, True)
        loss = F.linear_cross_entropy(a, make(kind, w), make(kind, t), reduction=reduction)
        (loss * factor).sum().backward()
        return values(a.grad)

    np.testing.assert_allclose(gradient(-2.5), -2.5 * gradient(1.0), rtol=1e-5)


@pytest.mark.parametrize("kind", RECORDED)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_backward_runs_twice_with_retain_graph(kind: str, reduction: str) -> None:
    x, w, t = draw(6, 5), draw(7, 5, seed=1), classes(6, 7)
    for loss in (
        lambda a: F.cross_entropy(a, make(kind, classes(6, 5)), reduction=reduction),
        lambda a: F.linear_cross_entropy(a, make(kind, w), make(kind, t), reduction=reduction),
        lambda a: F.nll_loss(F.log_softmax(a, 1), make(kind, classes(6, 5)), reduction=reduction),
        lambda a: F.linear(a, make(kind, w), activation="gelu"),
    ):
        a = make(kind, x, True)
        out = loss(a).sum()
        out.backward(retain_graph=True)
        once = values(a.grad).copy()
        a.grad.zero_()  # must not reach what the graph keeps
        out.backward()
        # A gradient that was handed over is made again, perhaps by another kernel: the last digit may differ.
        np.testing.assert_allclose(values(a.grad), once, rtol=1e-6, atol=1e-8)


def test_second_derivatives_are_right_or_a_clear_error() -> None:
    x, w, b, t = (
        draw(4, 3, dtype=np.float64),
        draw(6, 3, seed=1, dtype=np.float64),
        draw(6, seed=2, dtype=np.float64),
        classes(4, 6),
    )

    def penalty(kind: str, grad: Callable[..., Any], function: Callable[..., Any]) -> list[np.ndarray]:
        given = [make(kind, v.copy(), True) for v in (x, w, b)]
        firsts = grad(function(*given), given[:2], create_graph=True)
        total = sum((g**2).sum() for g in firsts)
        return [values(g) for g in grad(total, given)]

    for activation in (None, "gelu", "swiglu", "tanh", "mish"):

        def network(m: Any, target: Any, x: Any, w: Any, b: Any, act: str | None = activation) -> Any:
            return m.nll_loss(m.log_softmax(F.linear(x, w, b, activation=act), 1), target)

        small = classes(4, 3)
        ours = penalty("Tensor", tg.autograd.grad, lambda *a: network(F, tg.tensor(small), *a))
        # torch's second derivative of our linear, and of torch's own: all three must agree
        mixed = penalty("torch", torch.autograd.grad, lambda *a: network(F, torch.tensor(small), *a))
        from truth import linear

        def reference(x: Any, w: Any, b: Any, act: str | None = activation) -> Any:
            f = torch.nn.functional
            return f.nll_loss(f.log_softmax(linear(x, w, b, act), 1), torch.tensor(small))

        expected = penalty("torch", torch.autograd.grad, reference)
        for o, m, e in zip(ours, mixed, expected, strict=True):
            np.testing.assert_allclose(o, e, rtol=1e-8, atol=1e-10)
            np.testing.assert_allclose(m, e, rtol=1e-8, atol=1e-10)

    for kind, grad in (("Tensor", tg.autograd.grad), ("torch", torch.autograd.grad)):
        for reduction in ("mean", "none"):
            for loss in (
                lambda x, w: F.cross_entropy(F.linear(x, w), make(kind, t), reduction=reduction),
                lambda x, w: F.linear_cross_entropy(x, w, make(kind, t), reduction=reduction),
            ):
                a, c = make(kind, x.copy(), True), make(kind, w.copy(), True)
                (g,) = grad(loss(a, c).sum(), a, create_graph=True)
                with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
                    ((g**2).sum() + (a**2).sum()).backward()


@pytest.mark.parametrize("kind", RECORDED)
def test_a_frozen_weight_costs_no_gradient(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[set[str]] = []
    chosen = tg.backends._for

    class Spy:
        def __init__(self, x: Any):
            self.operations = chosen(x)

        def __getattr__(self, operation: str) -> Any:
            def run(*args: Any, **outputs: Any) -> None:
                asked.append({k for k, v in outputs.items() if v is not None and k.startswith("grad")})
                getattr(self.operations, operation)(*args, **outputs)

            return run

    monkeypatch.setattr(tg.backends, "_for", Spy)
    x, w, t = make(kind, draw(4, 3), True), make(kind, draw(5, 3)), make(kind, classes(4, 5))
    F.linear_cross_entropy(x, w, t).backward()
    F.linear_cross_entropy(x, w, t, reduction="none").sum().backward()
    F.linear(x, w).sum().backward()
    with tg.no_grad(), torch.no_grad():
        F.linear_cross_entropy(x, w, t)
        F.cross_entropy(make(kind, draw(4, 5), True), t)
    assert {"grad_input"} in asked
    assert all(names <= {"grad_input"} for names in asked)


@pytest.mark.parametrize("kind", KINDS)
def test_stats_are_each_rows_logsumexp_and_argmax(kind: str) -> None:
    x, w, t = draw(6, 3, 2), draw(9, 4, seed=3), np.array([[0, 1], [2, -100], [1, 1], [0, 0], [2, 2], [1, 0]])
    cap = 4.0
    loss, stats = F.cross_entropy(make(kind, x, True), make(kind, t), softcap=cap, return_stats=True)
    z = cap * np.tanh(x.astype(np.float64) / cap)
    np.testing.assert_allclose(values(stats.lse), np.log(np.exp(z).sum(1)), rtol=1e-5)
    np.testing.assert_array_equal(values(stats.argmax), z.argmax(1))
    assert not getattr(stats.lse, "requires_grad", False)
    np.testing.assert_array_equal(values(loss), values(F.cross_entropy(make(kind, x), make(kind, t), softcap=cap)))
    if kind in RECORDED:
        loss.backward()
    a = draw(5, 4)
    _, stats = F.linear_cross_entropy(make(kind, a, True), make(kind, w), make(kind, classes(5, 9)), return_stats=True)
    z = a.astype(np.float64) @ w.T
    np.testing.assert_allclose(values(stats.lse), np.log(np.exp(z).sum(1)), rtol=1e-5)
    np.testing.assert_array_equal(values(stats.argmax), z.argmax(1))
    assert stats.argmax.shape == (5,)


# Triton's kernels list their workspace: test_kernel_linear_cross_entropy.py looks at that.
@pytest.mark.parametrize("backend", ["reference"], indirect=True)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_linear_cross_entropy_never_holds_all_of_the_logits(reduction: str) -> None:
    w = tg.tensor(draw(2000, 4, seed=1), requires_grad=True)
    peaks = []
    for n in (2500, 7000):  # both of several chunks
        x, t = tg.tensor(draw(n, 4), requires_grad=True), tg.tensor(classes(n, 2000))
        tracemalloc.start()
        F.linear_cross_entropy(x, w, t, reduction=reduction).sum().backward()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    logits = 4500 * 2000 * 4  # bytes of float32 by which they would grow
    assert peaks[1] - peaks[0] < 0.1 * logits


# --- layout -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_empty_batches_return_what_torch_returns(kind: str) -> None:
    x, w, t = np.zeros((0, 4), np.float32), draw(5, 4), np.zeros(0, np.int64)
    f = torch.nn.functional
    for reduction in ("mean", "sum", "none"):
        for ours, theirs in (
            (lambda m, a, t, r: m.cross_entropy(a, t, reduction=r), f),
            (lambda m, a, t, r: m.nll_loss(a, t, reduction=r), f),
            (lambda m, a, t, r: m.linear_cross_entropy(a, make(kind if m is F else "torch", w), t, reduction=r), f),
        ):
            expected = ours(theirs, torch.tensor(x), torch.tensor(t), reduction)
            got, grad = loss_and_gradient(kind, x, lambda a, ours=ours: ours(F, a, make(kind, t), reduction))
            np.testing.assert_array_equal(got, values(expected))
            if grad is not None:
                assert grad.shape == (0, 4)
    assert values(F.linear(make(kind, x), make(kind, w))).shape == (0, 5)
    assert values(F.softmax(make(kind, x), 1)).shape == (0, 4)
    assert values(F.log_softmax(make(kind, np.zeros((3, 0), np.float32)), 1)).shape == (3, 0)


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [5, -1, 10**9])
def test_a_target_out_of_range_is_an_index_error_before_anything_is_written(
    kind: str, bad: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, w, t = draw(3, 5), draw(5, 5, seed=1), np.array([0, bad, 2])
    monkeypatch.setattr(tg.backends, "_run", lambda *a, **k: pytest.fail("it was run"))
    message = rf"expected targets in \[0, 5\).*got {bad}"
    for loss in (
        lambda: F.cross_entropy(make(kind, x), make(kind, t)),
        lambda: F.nll_loss(make(kind, x), make(kind, t), reduction="none"),
        lambda: F.linear_cross_entropy(make(kind, x), make(kind, w), make(kind, t)),
    ):
        with pytest.raises(IndexError, match=message):
            loss()


def test_on_a_device_a_target_out_of_range_poisons_its_row_and_sets_the_flag() -> None:
    # What a GPU gets instead of an IndexError; the reference is asked directly, as on a device.
    from tilegrad import reference
    from tilegrad.reference import LossOptions

    x, t, flag = draw(3, 5), np.array([0, 5, 2]), np.zeros((), bool)
    loss, grad = np.empty(3, np.float32), np.empty_like(x)
    o = LossOptions(reduction="none")
    reference.cross_entropy(x, t, None, o, loss=loss, lse=None, argmax=None, grad=grad, flag=flag)
    assert flag
    assert np.isnan(loss).tolist() == [False, True, False]
    assert np.isnan(grad).all(1).tolist() == [False, True, False]
    assert np.isfinite(grad[[0, 2]]).all()
    flag[...] = False
    reference.nll_loss(x, np.array([0, -100, 2]), None, o, loss=loss, flag=flag)
    assert not flag


@pytest.mark.parametrize("kind", KINDS)
def test_errors_name_what_came_and_what_was_expected(kind: str) -> None:
    def m(x: Any) -> Any:
        return make(kind, x)

    x, w, t = m(draw(4, 3)), m(draw(5, 3)), m(classes(4, 3))
    cases: list[tuple[type[Exception], str, Callable[[], Any]]] = [
        (ValueError, r"\[4, 3\] and \[5, 2\]", lambda: F.linear(x, m(draw(5, 2)))),
        (ValueError, r"bias of shape \[5\], got \[4\]", lambda: F.linear(x, w, m(draw(4)))),
        (ValueError, "one of relu.*got 'rely'", lambda: F.linear(x, w, activation="rely")),
        (ValueError, r"\(2M, K\), got \[5, 3\]", lambda: F.linear(x, w, activation="swiglu")),
        (TypeError, "float32 and weight is .*float64", lambda: F.linear(x, m(draw(5, 3, dtype=np.float64)))),
        (TypeError, "expected", lambda: F.linear([1.0], w)),
        (IndexError, "dim 2 .*2 dimensions", lambda: F.softmax(x, 2)),
        (TypeError, "floating dtype, got .*int64", lambda: F.softmax(t, 0)),
        (ValueError, r"target of shape \[4\].*or \[4, 3\].*got \[3\]", lambda: F.cross_entropy(x, m(classes(3, 3)))),
        (TypeError, "integer dtype, got .*float32", lambda: F.cross_entropy(x, m(draw(4)))),
        (TypeError, "floating dtype, got .*int64", lambda: F.cross_entropy(x, m(np.ones((4, 3), np.int64)))),
        (ValueError, r"weight of shape \[3\].*got \[4\]", lambda: F.cross_entropy(x, t, m(draw(4)))),
        (ValueError, "between 0 and 1, got 1.5", lambda: F.cross_entropy(x, t, label_smoothing=1.5)),
        (ValueError, "'none', 'mean' or 'sum', got 'avg'", lambda: F.cross_entropy(x, t, reduction="avg")),
        (ValueError, "softcap.*got 0", lambda: F.cross_entropy(x, t, softcap=0)),
        (ValueError, "z_loss.*got -1", lambda: F.cross_entropy(x, t, z_loss=-1)),
        (ValueError, "ignore_index is for class indices, got 2", lambda: F.cross_entropy(x, x, ignore_index=2)),
        (ValueError, r"\[4, 3\] and \[5, 2\]", lambda: F.linear_cross_entropy(x, m(draw(5, 2)), t)),
        (
            ValueError,
            r"linear_bias of shape \[5\], got \[3\]",
            lambda: F.linear_cross_entropy(x, w, t, linear_bias=m(draw(3))),
        ),
        (
            ValueError,
            "got -100 with class prob",
            lambda: F.linear_cross_entropy(x, w, m(draw(4, 5)), ignore_index=-100),
        ),
        (ValueError, r"target of shape \[4\]", lambda: F.nll_loss(x, m(classes(3, 3)))),
    ]
    for error, message, call in cases:
        with pytest.raises(error, match=message):
            call()


def test_mixed_kinds_are_a_type_error_that_names_both() -> None:
    x, w, t = draw(4, 3), draw(5, 3), classes(4, 5)
    for a in KINDS:
        for b in KINDS:
            if a != b:
                with pytest.raises(TypeError, match=f"input is a {a} array and weight a {b} array"):
                    F.linear(make(a, x), make(b, w))
                with pytest.raises(TypeError, match=f"{a} array and target a {b} array"):
                    F.cross_entropy(make(a, x), make(b, t))
                with pytest.raises(TypeError, match="one kind"):
                    F.mse_loss(make(a, x), make(b, x))


def test_class_weights_that_require_grad_are_refused() -> None:
    for kind in RECORDED:
        with pytest.raises(ValueError, match="requires grad"):
            F.cross_entropy(make(kind, draw(4, 3)), make(kind, classes(4, 3)), make(kind, draw(3), True))


# --- backends ---------------------------------------------------------------------------------------------------------


def test_a_backend_that_cannot_run_says_why_and_runs_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"expected \"auto\", 'reference'.*got 'cublas'"), tg.backend("cublas"):
        pass
    for name, can_run, sentence in tg.backends.describe():
        if not can_run:
            with pytest.raises(RuntimeError, match=f"backend '{name}' cannot run"), tg.backend(name):
                pass
            assert name in sentence
            monkeypatch.setattr(tg.backends._chosen, "name", None)
            monkeypatch.setattr(tg.backends, "_asked", name)  # TILEGRAD_BACKEND, as it was at the start
            with pytest.raises(RuntimeError, match=f"backend '{name}' cannot run"):
                F.softmax(draw(2, 2), 1)
    monkeypatch.setattr(tg.backends._chosen, "name", None)
    monkeypatch.setattr(tg.backends, "_asked", "nonsense")
    with pytest.raises(ValueError, match=r"TILEGRAD_BACKEND.*got 'nonsense'"):
        F.softmax(draw(2, 2), 1)


# --- torch ------------------------------------------------------------------------------------------------------------


def torch_calls() -> list[tuple[Any, tuple[Any, ...]]]:
    ops = torch.ops.tilegrad
    x, w, b, t = (torch.tensor(v) for v in (draw(4, 3), draw(6, 3), draw(6), classes(4, 6)))
    a, c = x.clone().requires_grad_(), w.clone().requires_grad_()
    logits = torch.tensor(draw(4, 6), requires_grad=True)
    loss_options = (-100, 0.1, 0.01, 5.0)
    return [
        (ops.linear, (a, c, b, "gelu", True)),
        (ops.linear, (a, c, None, "relu", True)),
        (ops.linear, (a, c, b, "swiglu", True)),
        (ops.softmax, (logits, 1, True, None)),
        (ops.softmax, (logits, 0, False, torch.float64)),
        (ops.nll_loss, (logits, t, None, "mean", -100)),
        (ops.nll_loss, (logits, t, torch.rand(6), "none", 1)),
        (ops.cross_entropy, (logits, t, None, "mean", *loss_options, True, True)),
        (ops.cross_entropy, (logits, t, None, "none", *loss_options, False, False)),
        (
            ops.linear_cross_entropy,
            (a, c[:, None], None, t[:, None], None, "sum", *loss_options, [True, True, False, False], True),
        ),
        (ops.linear_cross_entropy, (a, c[:, None], None, t[:, None], None, "none", *loss_options, [False] * 4, False)),
    ]


@pytest.mark.parametrize("which", range(11))
def test_torch_operators_pass_torchs_own_check(which: int) -> None:
    op, args = torch_calls()[which]
    # (that a derivative is not recorded twice is tested above; opcheck's autograd test is of values)
    torch.library.opcheck(op, args, test_utils=("test_schema", "test_autograd_registration", "test_faketensor"))


def test_torch_compile_takes_the_operators_whole() -> None:
    x, w, t = draw(4, 3), draw(6, 3), torch.tensor(classes(4, 6))

    def step(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        h = F.linear(a, b, activation="gelu")
        return F.cross_entropy(h, t, label_smoothing=0.1) + F.linear_cross_entropy(a, b, t) + F.log_softmax(h, 1).sum()

    results = []
    for function in (step, torch.compile(step, backend="aot_eager", fullgraph=True)):
        a, b = torch.tensor(x, requires_grad=True), torch.tensor(w, requires_grad=True)
        loss = function(a, b)
        loss.backward()
        results.append([values(v) for v in (loss, a.grad, b.grad)])
    for eager, compiled in zip(*results, strict=True):
        np.testing.assert_allclose(compiled, eager, rtol=1e-6)


@pytest.mark.filterwarnings("ignore")  # torch.jit.trace is deprecated, and tells of every shape that is looked at
def test_torch_calls_that_something_looks_at_are_operators() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.utils._python_dispatch import TorchDispatchMode

    x, t = torch.from_numpy(draw(6, 5)).requires_grad_(), torch.from_numpy(classes(6, 5))
    calls = {
        "softmax": lambda a: F.log_softmax(a, 1), "linear": lambda a: F.linear(a, a),
        "cross_entropy": lambda a: F.cross_entropy(a, t), "nll_loss": lambda a: F.nll_loss(a, t),
        "linear_cross_entropy": lambda a: F.linear_cross_entropy(a, a[:5], t),
    }  # fmt: skip

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(function))
            return function(*args, **(kwargs or {}))

    for name, call in calls.items():
        seen: list[str] = []
        expected = call(x)
        with Watch():
            assert torch.equal(call(x), expected)
        assert f"tilegrad.{name}.default" in seen
        traced = [str(node.target) for node in make_fx(call)(x.detach()).graph.nodes]
        assert f"tilegrad.{name}.default" in traced
        if name != "linear_cross_entropy":  # which has a list of bools, and torch.jit.trace takes none
            assert torch.equal(torch.jit.trace(call, x.detach(), check_trace=False)(2 * x), call(2 * x))
        if name in ("softmax", "linear"):  # the others' targets would have to be such, too
            assert call(x.to("meta")).shape == expected.shape
            with FakeTensorMode() as mode:
                assert call(mode.from_tensor(x)).shape == expected.shape


def test_torch_autocast_is_followed() -> None:
    x, w, b, t = (torch.tensor(v) for v in (draw(4, 3), draw(6, 3), draw(6), classes(4, 6)))
    with torch.autocast("cpu", torch.bfloat16):
        h = F.linear(x, w.requires_grad_(), b)
        expected = torch.nn.functional.linear(x, w, b)
        assert h.dtype == expected.dtype == torch.bfloat16
        torch.testing.assert_close(h, expected, rtol=1e-2, atol=1e-2)
        mixed = F.linear(h, torch.randn(2, 6))  # bfloat16 activations beside a float32 weight
        assert mixed.dtype == torch.bfloat16
        loss = F.cross_entropy(h, t)
        assert loss.dtype == torch.nn.functional.cross_entropy(expected, t).dtype == torch.float32
        torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(h.float(), t))
        joined = F.linear_cross_entropy(x.bfloat16(), w, t, linear_bias=b)
        torch.testing.assert_close(joined, loss, rtol=1e-2, atol=1e-2)
    loss.backward()
    assert w.grad is not None
    assert w.grad.dtype == torch.float32
