"""The Triton kernels of cross-entropy and the negative log-likelihood: what they compute, and what that costs in
launches and bytes."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from kinds import DTYPES, KINDS, LAYOUTS, as_torch, placed, values
from sanitizer import ORDERS, Sanitizer, every_order
from test_contract import LOSS_OPTIONS, cross_entropy_case, nll_loss_case, worst

import tilegrad as tg
import tilegrad.nn.functional as F
from tilegrad import kernels, reference
from tilegrad.kernels import configs, row_losses
from tilegrad.kernels.configs import CrossEntropyTile, CrossEntropyTiles, NllTile
from tilegrad.kernels.launch import view
from tilegrad.reference import LossOptions

Sanitized = Callable[..., Sanitizer]
INF, NAN = math.inf, math.nan

# How rows can be gone over, by tables that bring it to small shapes. The few programs make each go over several tiles.
WAYS = {
    "as shipped": None,
    "whole": CrossEntropyTiles((CrossEntropyTile(512, 2, 1, rows=2),), CrossEntropyTile(512, 2, 1)),
    "long": CrossEntropyTiles((), CrossEntropyTile(16, 1, 1, rows=2)),
}


@contextlib.contextmanager
def way(name: str) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        if (tiles := WAYS[name]) is not None:
            for table in (configs.CROSS_ENTROPY_ALONG, configs.CROSS_ENTROPY_ACROSS):
                patch.setitem(table, "sm_90", dict.fromkeys(table["sm_90"], tiles))
            patch.setattr(configs, "NLL_ROWS", 4)
            patch.setattr(configs, "NLL_ALONG", NllTile(2, 16))
            patch.setattr(configs, "NLL_ACROSS", NllTile(8, 8))
        yield


def normal(shape: tuple[int, ...], dtype: str = "bfloat16", scale: float = 3, seed: int = 0) -> np.ndarray:
    return (scale * np.random.default_rng(seed).standard_normal(shape)).astype(DTYPES[dtype])


def classes_of(rows: tuple[int, ...] | int, classes: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, classes, rows)


class Call:
    """One call of the kernels on NumPy arrays, or torch tensors over their memory, as the backends make it."""

    def __init__(
        self,
        logits: np.ndarray,
        target: np.ndarray,
        weight: np.ndarray | None = None,
        *,
        grad: bool = True,
        **options: Any,
    ):
        self.logits, self.target, self.weight, self.options = logits, target, weight, LossOptions(**options)
        rows = logits.shape[:1] + logits.shape[2:] if logits.ndim > 1 else ()
        wide = np.float64 if logits.dtype == np.float64 else np.float32
        self.outputs = {
            "loss": np.empty(rows if self.options.reduction == "none" else (), logits.dtype),
            "lse": np.empty((2, *rows), wide),
            "argmax": np.empty(rows, np.int64),
            "grad": np.empty(logits.shape, logits.dtype) if grad else None,
            "flag": np.zeros((), bool),
        }

    def run(self, san: Sanitizer) -> dict[str, Any]:
        """On the kernels, the arrays having their roles."""
        args = (self.logits, self.target, self.weight, self.options)
        for x in args[:3]:
            if x is not None:
                san.own(x, "input")
        for name, x in self.outputs.items():
            if x is not None:
                san.own(x, "inout" if name == "flag" else "output")
        given = (*(None if x is None else as_torch(x) for x in args[:3]), self.options)
        outputs = {name: None if x is None else as_torch(x) for name, x in self.outputs.items()}
        listed = kernels.cross_entropy_workspace(*given, **outputs)
        workspace = {k: san.own(np.empty(shape, dtype), "workspace") for k, (shape, dtype) in listed.items()}
        kernels.cross_entropy(*given, **outputs, workspace=workspace)
        return self.outputs

    def expected(self) -> dict[str, Any]:
        """By the reference."""
        made = {k: None if v is None else np.zeros_like(v) for k, v in self.outputs.items()}
        with np.errstate(all="ignore"):
            reference.cross_entropy(self.logits, self.target, self.weight, self.options, **made)
        return made


# --- what they compute ------------------------------------------------------------------------------------------------

shapes = st.one_of(
    st.tuples(st.integers(1, 40), st.integers(1, 80)),
    st.tuples(st.integers(1, 6), st.integers(1, 300)),
    st.tuples(*[st.integers(1, 12)] * 3),
    st.tuples(*[st.integers(1, 6)] * 4),
    st.tuples(st.integers(1, 200)),
)
arrays = {
    "shape": shapes,
    "dtype": st.sampled_from(list(DTYPES)),
    "layout": st.sampled_from(LAYOUTS),
    "kind": st.sampled_from(KINDS),
}
options = {name: st.sampled_from(choices) for name, choices in LOSS_OPTIONS.items()}

# A float32 result is judged by one number that torch's rounding may have spared; others by the dtype's own rounding.
LIMIT = {"float64": 1, "float32": 8, "float16": 2, "bfloat16": 2}


@settings(max_examples=80, deadline=None, derandomize=True, phases=[Phase.generate])
@given(case=st.fixed_dictionaries({**arrays, **options}), name=st.sampled_from(list(WAYS)), seed=st.integers(0, 99))
def test_any_shape_layout_dtype_and_options(case: dict[str, Any], name: str, seed: int) -> None:
    with way(name), Sanitizer(seed % 4), tg.backend("triton"):
        assert worst(cross_entropy_case(case, seed)) <= LIMIT[case["dtype"]]


@settings(max_examples=80, deadline=None, derandomize=True, phases=[Phase.generate])
@given(
    case=st.fixed_dictionaries({**arrays, **{k: options[k] for k in ("reduction", "weighted", "ignore_index")}}),
    name=st.sampled_from(list(WAYS)),
    seed=st.integers(0, 99),
)
def test_nll_loss_of_any_shape_layout_dtype_and_options(case: dict[str, Any], name: str, seed: int) -> None:
    with way(name), Sanitizer(seed % 4), tg.backend("triton"):
        assert worst(nll_loss_case(case, seed)) <= 2


@settings(max_examples=50, deadline=None, derandomize=True, phases=[Phase.generate])
@given(
    data=st.data(), shape=shapes, name=st.sampled_from(list(WAYS)), reduction=options["reduction"],
    smoothing=options["label_smoothing"], softcap=st.sampled_from([0.0, 5.0]), probabilities=st.booleans(),
)  # fmt: skip
def test_every_array_has_strides_of_its_own(
    data: st.DataObject, shape: tuple[int, ...], name: str, reduction: str, smoothing: float, softcap: float,
    probabilities: bool,
) -> None:  # fmt: skip
    classes, rows = (shape[1], (shape[0], *shape[2:])) if len(shape) > 1 else (shape[0], ())
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))

    def put(where: tuple[int, ...], dtype: Any, output: bool = False, filled: np.ndarray | None = None) -> np.ndarray:
        x = placed(data, where, output, partial(np.zeros, dtype=dtype))
        if filled is not None:
            x[...] = filled
        return x

    o = LossOptions(reduction, -1, smoothing, 0.01, softcap)
    logits = put(shape, np.float64, filled=3 * rng.standard_normal(shape))
    integers = data.draw(st.sampled_from([np.int8, np.int16, np.int32, np.int64]))
    target = (
        put(shape, np.float64, filled=rng.random(shape)) if probabilities
        else put(rows, integers, filled=rng.integers(-1, min(classes, 127), rows))
    )  # fmt: skip
    weight = put((classes,), np.float64, filled=rng.random(classes)) if data.draw(st.booleans()) else None
    per_loss = rows if reduction == "none" else ()
    upstream = put(per_loss, np.float64, filled=rng.standard_normal(per_loss))

    def outputs(make: Callable[..., np.ndarray]) -> tuple[dict[str, Any], dict[str, Any]]:
        forward = {
            "loss": make(per_loss, np.float64), "lse": make((2, *rows), np.float64), "argmax": make(rows, np.int64),
            "grad": make(shape, np.float64), "flag": np.zeros((), bool),
        }  # fmt: skip
        backward = {"grad": make(shape, np.float64), "grad_target": make(shape, np.float64) if probabilities else None}
        return forward, backward

    got, expected = outputs(lambda *a: put(*a, True)), outputs(np.zeros)
    inputs = (logits, target, weight)
    with way(name), Sanitizer(data.draw(st.integers(0, 3))) as san:
        for x in (*inputs, upstream):
            if x is not None:
                san.own(x, "input")
        for key, x in (*got[0].items(), *got[1].items()):
            if x is not None:
                san.own(x, "inout" if key == "flag" else "output")
        for function, args, made in (
            ("cross_entropy", (*inputs, o), got[0]),
            ("cross_entropy_backward", (upstream, *inputs, got[0]["lse"], o), got[1]),
        ):
            listed = getattr(kernels, f"{function}_workspace")(*args, **made)
            workspace = {k: san.own(np.empty(s, d), "workspace") for k, (s, d) in listed.items()}
            getattr(kernels, function)(*args, **made, workspace=workspace)
    with np.errstate(all="ignore"):
        reference.cross_entropy(*inputs, o, **expected[0])
        reference.cross_entropy_backward(upstream, *inputs, expected[0]["lse"], o, **expected[1])
    for ours, theirs in zip(got, expected, strict=True):
        for key, x in ours.items():
            if x is not None and key != "flag":
                np.testing.assert_allclose(x, theirs[key], rtol=1e-11, atol=1e-12, err_msg=key)


# --- rows of every kind -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_rows_without_finite_logits(sanitized: Sanitized, name: str, reduction: str) -> None:
    """NaN where the reference has it, and 0 for what is ignored, whatever that holds."""
    x = normal((12, 37), "float32")
    x[1], x[2, 5], x[3, 30], x[4, :20], x[5, 36] = -INF, NAN, INF, -INF, -INF
    x[6], x[7], x[8] = NAN, INF, -INF
    target = classes_of(12, 37)
    target[4], target[5], target[6:9] = 25, 36, -100
    call = Call(x, target, reduction=reduction, z_loss=0.01, label_smoothing=0.1 if reduction == "sum" else 0.0)
    with way(name), sanitized() as san:
        made = call.run(san)
    expected = call.expected()
    for key in ("loss", "grad", "argmax"):
        np.testing.assert_allclose(made[key], expected[key], rtol=1e-5, atol=1e-6, err_msg=key)
    np.testing.assert_allclose(
        made["lse"][:, [0, 4, 5, 9, 10]], expected["lse"][:, [0, 4, 5, 9, 10]], rtol=1e-6, atol=1e-6
    )
    assert np.isnan(made["lse"].sum(0)[[1, 2, 3, 6, 7, 8]]).all()
    assert not made["flag"]


@pytest.mark.parametrize("name", WAYS)
def test_a_class_without_weight_takes_no_part(sanitized: Sanitized, name: str) -> None:
    """0·(−inf) is 0 there: of a logit of −inf, with smoothing, as the target, and with probabilities."""
    x, weight = normal((6, 40), "float32"), np.ones(40, np.float32)
    x[:, 7], weight[7] = -INF, 0
    target = np.array([7, 1, 7, 2, 3, 7])
    p = np.random.default_rng(0).random((6, 40)).astype(np.float32)
    for asked, smoothing in ((target, 0.0), (target, 0.1), (p, 0.0), (p, 0.1)):
        call = Call(x, asked, weight, reduction="none", label_smoothing=smoothing)
        with way(name), sanitized() as san:
            made = call.run(san)
        expected = call.expected()
        assert np.isfinite(made["loss"]).all()
        np.testing.assert_allclose(made["loss"], expected["loss"], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(made["grad"], expected["grad"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("classes", [5, 37, 100])
def test_what_is_not_there_stays_out_under_soft_capping(sanitized: Sanitized, name: str, classes: int) -> None:
    """Logits far below −c: what pads a tile would count as one of them, were it capped like them."""
    call = Call(normal((9, classes), "float32") - 1000, classes_of(9, classes), softcap=5.0, reduction="none")
    with way(name), sanitized() as san:
        made = call.run(san)
    np.testing.assert_allclose(made["lse"].sum(0), -5 + math.log(classes), rtol=1e-6)
    np.testing.assert_allclose(made["loss"], math.log(classes), rtol=1e-6)
    assert (np.abs(made["grad"]) < 1e-30).all()  # nothing moves a logit at the cap


@pytest.mark.parametrize("name", WAYS)
def test_argmax_is_numpys(sanitized: Sanitized, name: str) -> None:
    """The first of equal logits; the first NaN, if there is one; and a class in any case."""
    rng = np.random.default_rng(3)
    x = rng.integers(0, 4, (60, 45)).astype(np.float32)
    x[0], x[1], x[2], x[3, [9, 40]], x[4, 44], x[5, :44], x[6, 20] = NAN, -INF, INF, NAN, NAN, -INF, INF
    call = Call(x, classes_of(60, 45), reduction="none", grad=False)
    with way(name), sanitized() as san:
        made = call.run(san)
    np.testing.assert_array_equal(made["argmax"], x.argmax(1))


@pytest.mark.parametrize("name", WAYS)
def test_a_gradient_next_to_zero_is_precise(sanitized: Sanitized, name: str) -> None:
    """p − 1 of a target that is almost certain: p rounded to the logits' own 16 bits would be 1."""
    x = np.zeros((3, 40), DTYPES["bfloat16"])
    x[:, 4] = 14
    call = Call(x, np.full(3, 4), reduction="sum")
    with way(name), sanitized() as san:
        made = call.run(san)
    exact = -39 * math.exp(-14) / (1 + 39 * math.exp(-14))
    np.testing.assert_allclose(values(made["grad"])[:, 4], exact, rtol=2**-8)


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("bad", [50, -1, 2**40, -(2**40)])
def test_a_target_out_of_range_poisons_its_row_and_sets_the_flag(
    sanitized: Sanitized, name: str, reduction: str, bad: int
) -> None:
    target = classes_of(9, 50)
    target[4] = bad
    call = Call(normal((9, 50), "float32"), target, normal((50,), "float32") ** 2, reduction=reduction)
    with way(name), sanitized() as san:
        made = call.run(san)
    others = [i for i in range(9) if i != 4]
    assert made["flag"]
    assert np.isnan(made["grad"][4]).all()
    assert np.isfinite(made["grad"][others]).all()
    assert np.isnan(made["loss"][4] if reduction == "none" else made["loss"])
    np.testing.assert_allclose(made["grad"][others], call.expected()["grad"][others], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("bad", [50, -1, 2**40])
def test_nll_loss_poisons_its_row_too(sanitized: Sanitized, name: str, reduction: str, bad: int) -> None:
    x, target, flag = normal((9, 50), "float32"), classes_of(9, 50), np.zeros((), bool)
    target[4] = bad
    o = LossOptions(reduction)
    loss, grad = np.empty(9 if reduction == "none" else (), np.float32), np.empty_like(x)
    with way(name), sanitized():
        for function, args, made in (
            (kernels.nll_loss, (x, target, None, o), {"loss": loss, "flag": flag}),
            (kernels.nll_loss_backward, (np.ones_like(loss), x, target, None, o), {"grad": grad}),
        ):
            listed = getattr(kernels, f"{function.__name__}_workspace")(*args, **made)
            function(*args, **made, workspace={k: np.empty(s, d) for k, (s, d) in listed.items()})
    assert flag
    assert np.isnan(loss[4] if reduction == "none" else loss)
    assert np.isnan(grad[4]).all()
    assert np.isfinite(np.delete(grad, 4, 0)).all()


def test_nothing_but_ignored_rows_and_no_rows(sanitized: Sanitized) -> None:
    for rows, target in ((5, np.full(5, -100)), (0, np.zeros(0, np.int64))):
        for reduction, loss in (("mean", NAN), ("sum", 0)):
            call = Call(normal((rows, 40), "float32"), target, reduction=reduction, z_loss=0.1)
            with sanitized() as san:
                made = call.run(san)
            np.testing.assert_array_equal(made["loss"], loss)
            assert (made["grad"] == 0).all()


# --- what they cost ---------------------------------------------------------------------------------------------------


def logits_and_target(rows: int, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    return as_torch(normal((rows, classes))).requires_grad_(), torch.from_numpy(classes_of(rows, classes))


def issued(san: Sanitizer) -> int:
    """Bytes that the launches read and wrote."""
    return sum(launch.read + launch.written for launch in san.launches)


# Whole rows: several to a tile, and one; ragged, without any vectors, and with vectors of 8.
COLUMNS = [(40, 1024), (40, 1000), (40, 4096), (12, 4095), (6, 30000), (3, 32768)]


@pytest.mark.parametrize(("rows", "classes"), [(400, 100), (500, 64), *COLUMNS, (3, 70001)])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_forward_reads_each_logit_once(sanitized: Sanitized, rows: int, classes: int, reduction: str) -> None:
    x, t = logits_and_target(rows, classes)
    with sanitized() as san, tg.backend("triton"), torch.no_grad():
        F.cross_entropy(x, t, reduction=reduction, return_stats=True)
    assert san.traffic <= (1.02 if classes >= 1000 else 1.08)  # of a short row, the target read twice is a part
    assert len(san.launches) == (1 if reduction == "none" else 2)


@pytest.mark.parametrize(("rows", "classes"), COLUMNS)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_forward_with_gradient_reads_and_writes_once(
    sanitized: Sanitized, rows: int, classes: int, reduction: str
) -> None:
    x, t = logits_and_target(rows, classes)
    with sanitized() as san, tg.backend("triton"):
        loss = F.cross_entropy(x, t, reduction=reduction)
    assert san.traffic <= 1.02
    assert len(san.launches) == 2
    with sanitized() as san, tg.backend("triton"):
        loss.backward()
    assert issued(san) <= 1000  # of the upstream gradient, where it is looked at on the device


@pytest.mark.parametrize(("rows", "classes"), [*COLUMNS, (3, 70001)])
def test_losses_of_rows_recompute(sanitized: Sanitized, rows: int, classes: int) -> None:
    x, t = logits_and_target(rows, classes)
    with sanitized() as san, tg.backend("triton"):
        loss = F.cross_entropy(x, t, reduction="none")
    assert san.traffic <= 1.02
    with sanitized() as san, tg.backend("triton"):
        loss.backward(torch.randn(rows).bfloat16())
    assert san.traffic <= 1.02
    assert [launch.name for launch in san.launches] in (["whole_rows_kernel"], ["long_rows_kernel"])


def test_long_rows_are_read_once_more_for_their_gradient(sanitized: Sanitized) -> None:
    x, t = logits_and_target(3, 70000)
    with sanitized() as san, tg.backend("triton"):
        F.cross_entropy(x, t)
    assert san.issued_by(x)[0] <= 1.001 * 2 * 2 * x.numel()
    assert san.traffic <= 1.51


def test_a_class_dimension_in_the_middle_is_not_copied(sanitized: Sanitized) -> None:
    """And each sector of 32 bytes is touched once, but for the targets' own."""
    x = torch.randn(2, 150, 256).bfloat16().requires_grad_()  # on a multiple of 64 bytes, as on a GPU
    with sanitized() as san, tg.backend("triton"):
        F.cross_entropy(x, torch.from_numpy(classes_of((2, 256), 150)))
    targets = 512 * 2 * 32
    moved = sum(launch.sectors_read + launch.sectors_written for launch in san.launches) - targets
    assert san.traffic <= 1.03
    assert moved <= 1.03 * san.least


def test_probabilities_are_read_once(sanitized: Sanitized) -> None:
    x = as_torch(normal((20, 2000))).requires_grad_()
    p = torch.softmax(as_torch(normal((20, 2000), seed=1)).float(), 1).bfloat16()
    with sanitized() as san, tg.backend("triton"):
        F.cross_entropy(x, p, label_smoothing=0.1)
    assert san.traffic <= 1.02


def test_options_and_statistics_cost_no_traffic(sanitized: Sanitized) -> None:
    x, t = logits_and_target(40, 2048)
    with sanitized() as san, tg.backend("triton"):
        F.cross_entropy(x, t, label_smoothing=0.1, z_loss=0.01, softcap=30.0, return_stats=True)
    assert san.traffic <= 1.02


def test_nll_loss_gathers_and_its_gradient_is_written_once(sanitized: Sanitized) -> None:
    x, t = logits_and_target(500, 300)
    with sanitized() as san, tg.backend("triton"):
        loss = F.nll_loss(x, t)
    assert issued(san) <= 500 * (8 + 2) + 2000
    assert len(san.launches) == 2
    with sanitized() as san, tg.backend("triton"):
        loss.backward()
    assert san.traffic <= 1.06  # twice the targets
    assert san.issued_by(x) == (0, 0)
    assert len(san.launches) == 2


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_backward_takes_two_launches_at_most(sanitized: Sanitized, reduction: str) -> None:
    x, p = normal((20, 50), "float32"), np.random.default_rng(0).random((20, 50)).astype(np.float32)
    a, b = (torch.from_numpy(v).requires_grad_() for v in (x, p))
    with sanitized(), tg.backend("triton"):
        loss = F.cross_entropy(a, b, reduction=reduction)
    with sanitized() as san, tg.backend("triton"):
        loss.backward(torch.randn(loss.shape))
    assert [launch.name for launch in san.launches].count("whole_rows_kernel") == 1
    names = {launch.name for launch in san.launches} - {"scale_kernel"}
    assert names == ({"prepare_kernel", "whole_rows_kernel"} if reduction == "mean" else {"whole_rows_kernel"})


@settings(max_examples=200, deadline=None, derandomize=True, phases=[Phase.generate])
@given(data=st.data(), shape=shapes, dtypes=st.tuples(*[st.sampled_from([np.float32, np.float16, np.int8])] * 2))
def test_vectors_begin_where_the_compiler_is_told(data: st.DataObject, shape: tuple[int, ...], dtypes: Any) -> None:
    """Nothing that is interpreted would show it: an access of several elements that is not on a multiple of them."""
    shape = tuple(data.draw(st.sampled_from([1, 4, 8])) * n for n in shape)
    axis = 1 if len(shape) > 1 else 0
    views = [view(placed(data, shape, False, partial(np.zeros, dtype=dtype))) for dtype in dtypes]
    where = row_losses.layout(axis, dict(zip("ab", views, strict=True)), {})
    width = row_losses.vector(where, shape[axis], *where.arrays.values())
    for x in where.arrays.values():
        steps, sizes = (*(s // 2 for s in x.outer), x.inner, x.column), (*where.outer, where.inner, shape[axis])
        along = len(steps) - (1 if all(y.column == 1 for y in where.arrays.values()) else 2)
        if width > 1:
            assert steps[along] == 1
            assert sizes[along] % width == 0
        places = [range(0, n, width) if i == along else range(n) for i, n in enumerate(sizes)]
        offsets = sum(np.ix_(*[np.array(p) * s for p, s in zip(places, steps, strict=True)]), np.zeros((), int))
        itemsize = x.ptr.dtype.itemsize
        assert ((x.ptr.address + offsets * itemsize) % (width * itemsize) == 0).all()


# --- programs together ------------------------------------------------------------------------------------------------


@every_order
@pytest.mark.parametrize(("name", "reduction"), [("whole", "mean"), ("long", "sum")])
def test_the_last_program_adds_up_what_all_have_left(sanitized: Sanitized, name: str, reduction: str) -> None:
    weight = normal((33,), "float32") ** 2
    target = classes_of(100, 33)
    target[::7] = -100
    call = Call(normal((100, 33), "float32"), target, weight, reduction=reduction, z_loss=0.01, label_smoothing=0.1)
    with way(name), sanitized() as san:
        made = call.run(san)
    assert san.launches[-1].grid[0] > 4
    expected = call.expected()
    np.testing.assert_allclose(made["loss"], expected["loss"], rtol=1e-6)
    np.testing.assert_allclose(made["grad"], expected["grad"], rtol=1e-5, atol=1e-7)


def test_the_order_of_programs_does_not_show(sanitized: Sanitized) -> None:
    results = []
    for seed in ORDERS.values():
        call = Call(normal((200, 40), "float32"), classes_of(200, 40))
        with way("whole"), Sanitizer(seed) as san:
            made = call.run(san)
        results.append((made["loss"].tobytes(), made["grad"].tobytes()))
    assert len(set(results)) == 1


def test_many_targets_are_counted_by_several_programs(sanitized: Sanitized) -> None:
    target = classes_of(2500, 400)
    target[::3] = -100
    call = Call(normal((2500, 400)), target, normal((400,)) ** 2)
    with sanitized() as san:
        made = call.run(san)
    assert san.launches[0].grid[0] > 1
    assert san.traffic <= 1.03
    np.testing.assert_allclose(values(made["loss"]), call.expected()["loss"].astype(float), rtol=1e-2)


# --- errors -----------------------------------------------------------------------------------------------------------


def test_what_the_kernels_cannot_take_is_said_before_a_launch(sanitized: Sanitized) -> None:
    o, x, t = LossOptions(), np.zeros((3, 4), np.float32), np.zeros(3, np.int64)
    outputs: dict[str, Any] = {"loss": np.zeros(()), "lse": None, "argmax": None, "grad": None, "flag": None}
    with sanitized() as san:
        with pytest.raises(TypeError, match=r"cross_entropy: .* take float16, bfloat16, float32, float64, got int64"):
            kernels.cross_entropy(x.astype(np.int64), t, None, o, **outputs)
        with pytest.raises(TypeError, match=r"cross_entropy: expected a target of an integer dtype, got float32"):
            kernels.cross_entropy(x, t.astype(np.float32), None, o, **outputs)
        with pytest.raises(TypeError, match=r"cross_entropy: expected a target of float32, got float64"):
            kernels.cross_entropy(x, x.astype(np.float64), None, o, **outputs)
        with pytest.raises(TypeError, match=r"nll_loss: expected a target of an integer dtype, got float32"):
            kernels.nll_loss(x, t.astype(np.float32), None, o, loss=np.zeros(()), flag=None)
        huge = np.lib.stride_tricks.as_strided(np.zeros(1, np.float32), (2**31,), (0,))
        with pytest.raises(ValueError, match=r"expected fewer than 2³¹ classes, got 2147483648"):
            kernels.nll_loss(huge, np.zeros((), np.int64), None, o, loss=np.zeros(()), flag=None)
    assert not san.launches
