"""The contract: every fused operation, on every backend and every kind of array, over its options, shapes and layouts.

A new backend joins by its name in BACKENDS. The truth is float64 torch on the same inputs; in lower precisions an error
is compared with torch's own on the same inputs: at most twice it in any case, and not above it on the geometric mean.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import random
import shutil
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import emulated
import numpy as np
import pytest
import torch
import truth
from kinds import DTYPES, KINDS, LAYOUTS, as_torch, gradients, laid_out, make, values
from sanitizer import Sanitizer

import tilegrad as tg
import tilegrad.nn.functional as F

# Where there is no C++ compiler, there are no kernels for the CPU; where there is one, there have to be.
_BUILT = shutil.which("c++") or shutil.which("g++") or tg.backends.describe()[1][1]
BACKENDS = ["reference", "cpu", "triton", "cuda"] if _BUILT else ["reference", "triton"]

EPS = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}


@contextlib.contextmanager
def running_on(backend: str) -> Iterator[None]:
    """The backend, on this machine: Triton's kernels under the sanitizing interpreter, those of CUDA C++ emulated."""
    schedule = emulated.schedule_of(os.environ.get("PYTEST_CURRENT_TEST", ""))
    elsewhere = {"triton": Sanitizer(), "cuda": emulated.running(schedule)}.get(backend, contextlib.nullcontext())
    with elsewhere, tg.backend(backend):
        yield


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    with running_on(request.param):
        yield request.param


def pairwise(seed: int, **axes: Any) -> list[dict[str, Any]]:
    """Cases in which every pair of values of two different axes occurs: far fewer than all, and no option untested
    beside another."""
    names = list(axes)
    todo = {
        (a, va, b, vb)
        for a, b in itertools.combinations(names, 2)
        for va in map(repr, axes[a])
        for vb in map(repr, axes[b])
    }
    draw, cases = random.Random(seed), []
    while todo:
        tried = [{n: draw.choice(list(axes[n])) for n in names} for _ in range(30)]

        def covers(case: dict[str, Any]) -> set[Any]:
            return {(a, repr(case[a]), b, repr(case[b])) for a, b in itertools.combinations(names, 2)}

        best = max(tried, key=lambda case: len(covers(case) & todo))
        if covers(best) & todo:
            todo -= covers(best)
            cases.append(best)
    return cases


def case_id(case: dict[str, Any]) -> str:
    return "-".join(f"{k}={v}" for k, v in case.items())


class Errors(NamedTuple):
    """The largest of a result against float64, ours and torch's, in units in the last place of the result's largest."""

    ours: float
    torchs: float
    dtype: str

    def ratio(self, least: float) -> float:
        """Ours to torch's, of which less than ``least`` units is luck."""
        return max(self.ours, least) / max(self.torchs, least)


def worst(errors: list[Errors]) -> float:
    """The largest ratio. Rounding a wider result to the dtype makes up to half a unit; what is computed in the dtype
    itself, float32, has rounded a few times, and now and then torch had luck with all of them: two units."""
    return max((e.ratio(2 if e.dtype == "float32" else 0.5) for e in errors), default=0)


def mean(errors: list[Errors]) -> float:
    """The geometric mean of the ratios."""
    return math.exp(np.log([e.ratio(0.5) for e in errors]).mean())


class Judge:
    """Errors against float64, beside torch's on the same inputs."""

    def __init__(self, dtype: str):
        self.dtype = dtype
        self.errors: list[Errors] = []

    def add(self, what: str, ours: np.ndarray, torchs: np.ndarray, truths: np.ndarray) -> None:
        assert ours.shape == truths.shape, f"{what}: shape {ours.shape}, expected {truths.shape}"
        same_special = np.isnan(ours) == np.isnan(truths)
        assert same_special.all(), f"{what}: NaN in {(~same_special).sum()} wrong places"
        finite = np.isfinite(truths)
        assert (ours[~finite & ~np.isnan(truths)] == truths[~finite & ~np.isnan(truths)]).all(), f"{what}: wrong inf"
        if not finite.any():
            return
        scale = max(np.abs(truths[finite]).max(), 1e-4)  # a gradient may be 0 but for rounding, and has no scale then
        error = np.abs(ours - truths)[finite].max() / scale
        if self.dtype == "float64":
            assert error <= 1e-11, f"{what}: error {error:.2e} against float64 torch"
            return
        theirs = np.abs(torchs - truths)[finite].max() / scale
        self.errors.append(Errors(error / EPS[self.dtype], theirs / EPS[self.dtype], self.dtype))


def judged(
    dtype: str, kind: str, arrays: dict[str, np.ndarray | None], differentiable: list[str],
    ours: Callable[..., Any], theirs: Callable[..., Any], upstream_seed: int = 0,
) -> list[Errors]:  # fmt: skip
    """Run an operation on arrays, with value and gradients, and compare each."""
    judge = Judge(dtype)
    mine = {k: make(kind, v, k in differentiable and v is not None) for k, v in arrays.items()}
    before = {k: None if v is None else v.copy() for k, v in arrays.items()}
    output = ours(**mine)
    runs = []
    for wide in (False, True):
        args = {}
        for k, v in arrays.items():
            t = None if v is None else as_torch(np.array(v, order="C"))
            t = t.double() if t is not None and wide and t.is_floating_point() else t
            args[k] = t.requires_grad_() if t is not None and k in differentiable else t
        expected = theirs(**args)
        if not runs:
            upstream = np.random.default_rng(upstream_seed).standard_normal(tuple(expected.shape)) + 0.5
            upstream = np.asarray(upstream, DTYPES[dtype])
        expected.backward(as_torch(upstream).to(expected.dtype))
        runs.append((values(expected), [None if args[k] is None else values(args[k].grad) for k in differentiable]))
    found = gradients(kind, output, upstream, [mine[k] for k in differentiable])
    assert str(output.dtype).rpartition(".")[2] == dtype
    judge.add("value", values(output), runs[0][0], runs[1][0])
    if kind != "numpy":
        for name, got, torchs, truths in zip(differentiable, found, runs[0][1], runs[1][1], strict=True):
            if truths is not None:
                assert got is not None, f"no gradient for {name}"
                judge.add(f"gradient of {name}", got, torchs, truths)
    for k, v in arrays.items():
        if v is not None:
            np.testing.assert_array_equal(v, before[k], err_msg=f"{k} was overwritten")
    return judge.errors


def drawn(
    rng: np.random.Generator, shape: tuple[int, ...], dtype: str, layout: str = "contiguous", scale: float = 1.0
) -> np.ndarray:
    return laid_out((scale * rng.standard_normal(shape)).astype(DTYPES[dtype]), layout)


# --- linear -----------------------------------------------------------------------------------------------------------

# (leading dimensions of x), K, M: aligned, ragged, ragged K, one row, one column, no leading dimension, empty batch
LINEAR_SHAPES = [((64,), 32, 48), ((13,), 7, 5), ((2, 3), 17, 8), ((1,), 33, 1), ((), 4, 6), ((0,), 3, 4), ((5,), 1, 2)]


def linear_case(case: dict[str, Any], seed: int) -> list[Errors]:
    rng = np.random.default_rng(seed)
    lead, k, m = case["shape"]
    dt, layout = case["dtype"], case["layout"]
    rows = 2 * m if case["activation"] in ("swiglu", "geglu") else m
    arrays = {
        "x": drawn(rng, (*lead, k), dt, layout),
        "weight": drawn(rng, (rows, k), dt, "contiguous" if layout == "expanded" else layout, 1 / math.sqrt(k)),
        "bias": drawn(rng, (rows,), dt, layout) if case["bias"] else None,
    }
    return judged(
        dt, case["kind"], arrays, ["x", "weight", "bias"],
        lambda x, weight, bias: F.linear(x, weight, bias, activation=case["activation"]),
        lambda x, weight, bias: truth.linear(x, weight, bias, case["activation"]),
        seed,
    )  # fmt: skip


LINEAR = pairwise(
    1,
    activation=list(truth.ACTIVATIONS),
    shape=LINEAR_SHAPES,
    layout=LAYOUTS,
    dtype=list(DTYPES),
    kind=KINDS,
    bias=(True, False),
)


@pytest.mark.parametrize("case", LINEAR, ids=case_id)
def test_linear(backend: str, case: dict[str, Any]) -> None:
    assert worst(linear_case(case, 1)) <= 2


# --- softmax ----------------------------------------------------------------------------------------------------------

SOFTMAX_SHAPES = [
    ((8, 64), 1),
    ((5, 7), 0),
    ((3, 5, 7), 1),
    ((4, 1), 1),
    ((1, 9), -1),
    ((6,), 0),
    ((), 0),
    ((0, 4), 1),
    ((2, 300), 1),
]


def softmax_case(case: dict[str, Any], seed: int) -> list[Errors]:
    rng = np.random.default_rng(seed)
    shape, dim = case["shape"]
    name = case["op"]
    return judged(
        case["dtype"], case["kind"], {"x": drawn(rng, shape, case["dtype"], case["layout"], 3.0)}, ["x"],
        lambda x: getattr(F, name)(x, dim),
        lambda x: getattr(torch.nn.functional, name)(x, dim),
        seed,
    )  # fmt: skip


SOFTMAX = pairwise(
    2, op=("softmax", "log_softmax"), shape=SOFTMAX_SHAPES, layout=LAYOUTS, dtype=list(DTYPES), kind=KINDS
)


@pytest.mark.parametrize("case", SOFTMAX, ids=case_id)
def test_softmax(backend: str, case: dict[str, Any]) -> None:
    assert worst(softmax_case(case, 2)) <= 2


# --- losses -----------------------------------------------------------------------------------------------------------

LOSS_SHAPES = [(16, 32), (7, 13), (3, 5, 2), (2, 4, 3, 2), (6, 1), (1, 9), (11,), (3, 1000), (2, 7, 1)]
LOSS_OPTIONS = {
    "reduction": ("mean", "sum", "none"),
    "weighted": (False, True),
    "label_smoothing": (0.0, 0.1, 1.0),
    "ignore_index": (-100, 1, -1),
    "z_loss": (0.0, 0.01),
    "softcap": (None, 5.0),
    "target": ("indices", "probabilities"),
}


def loss_target(rng: np.random.Generator, case: dict[str, Any], shape: tuple[int, ...]) -> np.ndarray:
    classes, rows = (shape[1], (shape[0], *shape[2:])) if len(shape) > 1 else (shape[0], ())
    if case["target"] == "probabilities":
        p = rng.random(shape)
        return laid_out(
            (p / p.sum(1 if len(shape) > 1 else 0, keepdims=True)).astype(DTYPES[case["dtype"]]), case["layout"]
        )
    t = rng.integers(0, classes, rows)
    if t.size > 2:
        t.flat[1] = case["ignore_index"] if case["ignore_index"] < classes else 0
    return laid_out(np.asarray(t), case["layout"])


def loss_options(case: dict[str, Any]) -> dict[str, Any]:
    names = ["reduction", "label_smoothing", "z_loss", "softcap"]
    if case["target"] == "indices":
        names.append("ignore_index")
    return {k: case[k] for k in names}


def cross_entropy_case(case: dict[str, Any], seed: int) -> list[Errors]:
    rng = np.random.default_rng(seed)
    shape, dt = case["shape"], case["dtype"]
    classes = shape[1] if len(shape) > 1 else shape[0]
    arrays = {
        "logits": drawn(rng, shape, dt, case["layout"], 3.0),
        "target": loss_target(rng, case, shape),
        "weight": laid_out((rng.random(classes) + 0.5).astype(DTYPES[dt]), case["layout"])
        if case["weighted"]
        else None,
    }
    options = loss_options(case)
    return judged(
        dt, case["kind"], arrays, ["logits", *(["target"] if case["target"] == "probabilities" else [])],
        lambda logits, target, weight: F.cross_entropy(logits, target, weight, **options),
        lambda logits, target, weight: truth.cross_entropy(logits, target, weight, **options),
        seed,
    )  # fmt: skip


CROSS_ENTROPY = pairwise(3, shape=LOSS_SHAPES, layout=LAYOUTS, dtype=list(DTYPES), kind=KINDS, **LOSS_OPTIONS)


@pytest.mark.parametrize("case", CROSS_ENTROPY, ids=case_id)
def test_cross_entropy(backend: str, case: dict[str, Any]) -> None:
    assert worst(cross_entropy_case(case, 3)) <= 2


NLL_OPTIONS = {k: LOSS_OPTIONS[k] for k in ("reduction", "weighted", "ignore_index")}
NLL = pairwise(4, shape=LOSS_SHAPES, layout=LAYOUTS, dtype=list(DTYPES), kind=KINDS, **NLL_OPTIONS)


def nll_loss_case(case: dict[str, Any], seed: int) -> list[Errors]:
    rng = np.random.default_rng(seed)
    shape, dt = case["shape"], case["dtype"]
    classes = shape[1] if len(shape) > 1 else shape[0]
    arrays = {
        "logp": laid_out((-5 * rng.random(shape)).astype(DTYPES[dt]), case["layout"]),
        "target": loss_target(rng, {**case, "target": "indices"}, shape),
        "weight": laid_out((rng.random(classes) + 0.5).astype(DTYPES[dt]), case["layout"])
        if case["weighted"]
        else None,
    }
    options = {k: case[k] for k in ("reduction", "ignore_index")}
    return judged(
        dt, case["kind"], arrays, ["logp"],
        lambda logp, target, weight: F.nll_loss(logp, target, weight, **options),
        lambda logp, target, weight: torch.nn.functional.nll_loss(logp, target, weight, **options),
        seed,
    )  # fmt: skip


@pytest.mark.parametrize("case", NLL, ids=case_id)
def test_nll_loss(backend: str, case: dict[str, Any]) -> None:
    assert worst(nll_loss_case(case, 4)) <= 2


# N (None: no batch), K, C, (further dimensions)
LCE_SHAPES = [
    (16, 8, 32, ()),
    (7, 5, 13, ()),
    (None, 6, 9, ()),
    (1, 3, 4, ()),
    (5, 1, 2, ()),
    (4, 3, 5, (2,)),
    (3, 4, 6, (2, 3)),
    (9, 4, 1, ()),
]


def linear_cross_entropy_case(case: dict[str, Any], seed: int) -> list[Errors]:
    rng = np.random.default_rng(seed)
    n, k, c, positions = case["shape"]
    dt, layout = case["dtype"], case["layout"]
    batch = () if n is None else (n,)
    solid = "contiguous" if layout == "expanded" else layout
    arrays = {
        "x": drawn(rng, (*batch, k), dt, layout),
        "linear_weight": drawn(rng, (c, *positions, k), dt, solid, 2 / math.sqrt(k)),
        "target": loss_target(rng, case, (*batch, c, *positions)),
        "linear_bias": drawn(rng, (c, *positions), dt, solid) if case["bias"] else None,
        "weight": laid_out((rng.random(c) + 0.5).astype(DTYPES[dt]), solid) if case["weighted"] else None,
    }
    options = loss_options(case)
    return judged(
        dt, case["kind"], arrays,
        ["x", "linear_weight", "linear_bias", *(["target"] if case["target"] == "probabilities" else [])],
        lambda x, linear_weight, target, linear_bias, weight: F.linear_cross_entropy(
            x, linear_weight, target, linear_bias=linear_bias, weight=weight, **options
        ),
        lambda x, linear_weight, target, linear_bias, weight: truth.linear_cross_entropy(
            x, linear_weight, target, linear_bias, weight=weight, **options
        ),
        seed,
    )  # fmt: skip


LINEAR_CROSS_ENTROPY = pairwise(
    5, shape=LCE_SHAPES, layout=LAYOUTS, dtype=list(DTYPES), kind=KINDS, bias=(True, False), **LOSS_OPTIONS
)


@pytest.mark.parametrize("case", LINEAR_CROSS_ENTROPY, ids=case_id)
def test_linear_cross_entropy(backend: str, case: dict[str, Any]) -> None:
    assert worst(linear_cross_entropy_case(case, 5)) <= 2


# --- the geometric mean -----------------------------------------------------------------------------------------------

SUITES = {
    "linear": (linear_case, LINEAR),
    "softmax": (softmax_case, SOFTMAX),
    "nll_loss": (nll_loss_case, NLL),
    "cross_entropy": (cross_entropy_case, CROSS_ENTROPY),
    "linear_cross_entropy": (linear_cross_entropy_case, LINEAR_CROSS_ENTROPY),
}


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("op", SUITES)
def test_error_is_not_above_torchs_on_the_geometric_mean(backend: str, op: str, dtype: str) -> None:
    run, cases = SUITES[op]
    cases = [{**case, "dtype": dtype} for case in cases if case["kind"] != "numpy"]
    errors = [found for seed in (10, 11) for case in cases for found in run(case, seed)]
    assert len(errors) > 20
    assert mean(errors) <= 1, f"geometric mean of error ÷ torch's error: {mean(errors):.3f} over {len(errors)} results"
