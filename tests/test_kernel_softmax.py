"""The Triton kernels of softmax and log-softmax: what they compute, and what they cost in launches and bytes."""

from __future__ import annotations

import contextlib
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
from test_contract import Judge, softmax_case, worst

import tilegrad as tg
import tilegrad.nn.functional as F
from tilegrad import backends, kernels
from tilegrad.kernels import configs, rows
from tilegrad.kernels.configs import SoftmaxBlock, SoftmaxTile
from tilegrad.kernels.launch import view

Sanitized = Callable[..., Sanitizer]
INF, NAN = float("inf"), float("nan")

# How rows can be gone over, by tables that bring it to small shapes.
WAYS = {
    "whole": configs.Softmax(
        (SoftmaxTile(512, 512, 2),), (SoftmaxTile(512, 512, 2),), SoftmaxBlock(1, 8, 128, 1), SoftmaxBlock(4, 1, 64, 1)
    ),
    "staged": configs.Softmax(
        (SoftmaxTile(512, 512, 2, stages=2),), (SoftmaxTile(512, 512, 2, stages=2),),
        SoftmaxBlock(1, 8, 128, 1), SoftmaxBlock(4, 1, 64, 1),
    ),
    "in blocks": configs.Softmax((), (), SoftmaxBlock(1, 4, 128, 1), SoftmaxBlock(4, 1, 64, 1)),
}  # fmt: skip


@contextlib.contextmanager
def way(name: str) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for table in (configs.SOFTMAX, configs.SOFTMAX_BACKWARD):
            patch.setitem(table, "sm_90", WAYS[name])
        patch.setattr(rows, "EDGED", 20)
        yield


def forward(san: Sanitizer, x: np.ndarray, dim: int, log: bool, dtype: Any = None, out: Any = None) -> np.ndarray:
    out = np.empty(x.shape, dtype or x.dtype) if out is None else out
    kernels.softmax(san.own(x, "input"), dim, log, out=san.own(out, "output"))
    return out


def backward(san: Sanitizer, grad: np.ndarray, y: np.ndarray, dim: int, log: bool, out: Any = None) -> np.ndarray:
    out = np.empty(y.shape, y.dtype) if out is None else out
    kernels.softmax_backward(san.own(grad, "input"), san.own(y, "input"), dim, log, out=san.own(out, "output"))
    return out


def truth(x: np.ndarray, dim: int, log: bool) -> np.ndarray:
    return (torch.log_softmax if log else torch.softmax)(torch.from_numpy(values(x).copy()), dim).numpy()


def normal(rng: np.random.Generator, shape: tuple[int, ...], dtype: str = "bfloat16", scale: float = 3) -> np.ndarray:
    return (scale * rng.standard_normal(shape)).astype(DTYPES[dtype])


def numbers(dtype: str, count: int) -> np.ndarray:
    return normal(np.random.default_rng(count), (count,), dtype)


def on_lines(x: np.ndarray) -> np.ndarray:
    """A copy that begins where a line of the caches does, as those of GPU allocators do."""
    room = np.empty(x.nbytes + 128, np.uint8)
    start = -room.ctypes.data % 128
    copy = room[start : start + x.nbytes].view(x.dtype).reshape(x.shape)
    copy[...] = x
    return copy


# --- what they compute ------------------------------------------------------------------------------------------------

shapes = st.one_of(
    st.tuples(st.integers(1, 9), st.integers(1, 150)),
    st.tuples(st.integers(1, 150), st.integers(1, 9)),
    st.tuples(*[st.integers(1, 12)] * 3),
    st.tuples(*[st.integers(1, 6)] * 4),
    st.tuples(st.integers(1, 300)),
    st.just(()),
)


@settings(max_examples=80, deadline=None, derandomize=True, phases=[Phase.generate])
@given(
    shape=shapes, dim=st.integers(0, 3), op=st.sampled_from(["softmax", "log_softmax"]), seed=st.integers(0, 99),
    dtype=st.sampled_from(list(DTYPES)), layout=st.sampled_from(LAYOUTS), kind=st.sampled_from(KINDS),
    name=st.sampled_from(list(WAYS)),
)  # fmt: skip
def test_any_shape_layout_and_dtype(
    shape: tuple[int, ...], dim: int, name: str, op: str, dtype: str, layout: str, kind: str, seed: int
) -> None:
    dim = dim % len(shape) if shape else 0
    case = {"shape": (shape, dim), "op": op, "dtype": dtype, "layout": layout, "kind": kind}
    with way(name), Sanitizer(seed % 4), tg.backend("triton"):
        # Of so few numbers torch's float32 may be exact by luck: many are judged below.
        assert worst(softmax_case(case, seed)) <= (100 if dtype == "float32" else 2)


ROUNDING = {"bfloat16": 2**-8, "float16": 2**-11, "float32": 2**-24, "float64": 2**-53}


@settings(max_examples=100, deadline=None, derandomize=True, phases=[Phase.generate])
@given(data=st.data(), shape=shapes.filter(len), log=st.booleans(), name=st.sampled_from(list(WAYS)))
def test_every_array_has_strides_and_a_dtype_of_its_own(
    data: st.DataObject, shape: tuple[int, ...], log: bool, name: str
) -> None:
    dim = data.draw(st.integers(-len(shape), len(shape) - 1))
    x, grad, y, dx = (
        placed(data, shape, output, partial(numbers, data.draw(st.sampled_from(list(DTYPES)))))
        for output in (False, False, True, True)
    )
    with way(name), Sanitizer(data.draw(st.integers(0, 3))) as san:
        forward(san, x, dim, log, out=y)
        backward(san, grad, y, dim, log, out=dx)

    def check(ours: np.ndarray, truths: np.ndarray, inputs: list[np.ndarray], scale: float) -> None:
        """Computed in the widest of the dtypes, at least float32, and rounded to the output's."""
        computed = scale * (2**-45 if np.float64 in [a.dtype for a in (ours, *inputs)] else 2**-18)
        rounded = ROUNDING[str(ours.dtype)] * np.maximum(np.abs(truths), np.finfo(np.float16).tiny)
        assert (np.abs(values(ours) - truths) <= rounded + computed).all()

    expected = truth(x, dim, log)
    check(y, expected, [x], np.abs(expected).max())
    g, p = values(grad), np.exp(values(y)) if log else values(y)
    expected = g - p * g.sum(dim, keepdims=True) if log else p * (g - (g * p).sum(dim, keepdims=True))
    check(dx, expected, [grad, y], np.abs(g).sum(dim).max())


def torchs(x: np.ndarray, grad: np.ndarray, log: bool, wide: bool) -> list[np.ndarray]:
    """torch's output and gradient along dimension 1, in the dtype of the input or in float64."""
    a, g = as_torch(x), as_torch(grad)
    a = (a.double() if wide else a).requires_grad_()
    y = (torch.log_softmax if log else torch.softmax)(a, 1)
    y.backward(g.to(y.dtype))
    return [values(y), values(a.grad)]


@pytest.mark.parametrize("name", ["whole", "in blocks"])
@pytest.mark.parametrize("log", [True, False])
@pytest.mark.parametrize(("dtype", "limit"), [("float32", 1.25), ("float16", 1.001), ("bfloat16", 1.001)])
def test_error_over_many_rows_is_not_above_torchs(
    sanitized: Sanitized, name: str, log: bool, dtype: str, limit: float
) -> None:
    rng = np.random.default_rng(0)
    x, grad = normal(rng, (40, 200), dtype), normal(rng, (40, 200), dtype, 1)
    with way(name), sanitized() as san:
        y = forward(san, x, 1, log)
        dx = backward(san, grad, y, 1, log)
    ours = [values(y), values(dx)]
    for our, their, exact in zip(ours, torchs(x, grad, log, False), torchs(x, grad, log, True), strict=True):
        assert np.linalg.norm(our - exact) <= limit * np.linalg.norm(their - exact)


@pytest.mark.parametrize("columns", [40_001, 1 << 20])
def test_long_rows_are_as_exact(sanitized: Sanitized, columns: int) -> None:
    rng = np.random.default_rng(0)
    x, grad = normal(rng, (1, columns), "float32"), normal(rng, (1, columns), "float32")
    with sanitized() as san:
        y = forward(san, x, 1, True)
        dx = backward(san, grad, y, 1, True)
    judge, theirs, exact = Judge("float32"), torchs(x, grad, True, False), torchs(x, grad, True, True)
    judge.add("value", y, theirs[0], exact[0])
    judge.add("gradient", dx, theirs[1], exact[1])
    assert worst(judge.errors) <= 2


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("columns", [40, 37])
def test_rows_that_hold_no_number_leave_others_alone(sanitized: Sanitized, name: str, dim: int, columns: int) -> None:
    x = normal(np.random.default_rng(0), (8, columns), "float32")
    x[1, 5], x[2, -1], x[3, 0] = NAN, NAN, INF
    x[4, :] = -INF
    x[5, :30], x[6, 3] = -INF, -INF  # more than a block of them, and the first of it
    x = x if dim else np.ascontiguousarray(x.T)
    grad = normal(np.random.default_rng(1), x.shape, "float32")
    for log in (True, False):
        with way(name), sanitized() as san:
            y = forward(san, x, dim, log)
            dx = backward(san, grad, truth(x, dim, log).astype(np.float32), dim, log)
        np.testing.assert_allclose(y, truth(x, dim, log), rtol=1e-5, atol=1e-6)
        rows_ = dx if dim else dx.T
        assert np.isnan(rows_[1:5]).all()
        assert np.isfinite(rows_[[0, 5, 6, 7]]).all()
        assert log or (rows_[5, :30] == 0).all()


@pytest.mark.parametrize("name", WAYS)
def test_adding_a_number_to_a_row_changes_nothing(sanitized: Sanitized, name: str) -> None:
    x = np.random.default_rng(0).integers(-20, 20, (4, 100)).astype(np.float32)
    with way(name), sanitized() as san:
        np.testing.assert_array_equal(forward(san, x, 1, True), forward(san, x + 10_000, 1, True))


@pytest.mark.parametrize("name", WAYS)
def test_results_do_not_depend_on_the_order_of_programs(name: str) -> None:
    x = normal(np.random.default_rng(0), (30, 45), "float32")
    found = []
    for seed in ORDERS.values():
        with way(name), Sanitizer(seed) as san:
            y = forward(san, x, 1, False)
            found.append((y, backward(san, x, y, 1, False)))
    for y, dx in found[1:]:
        np.testing.assert_array_equal(y, found[0][0])
        np.testing.assert_array_equal(dx, found[0][1])


def test_the_row_of_a_dimension_less_array_is_its_element(sanitized: Sanitized) -> None:
    with sanitized(), tg.backend("triton"):
        assert F.softmax(np.array(3.0), 0) == 1
        assert F.log_softmax(np.array(3.0), 0) == 0


# --- what they cost ---------------------------------------------------------------------------------------------------

# Aligned, ragged, with rows that begin anywhere; one column, few, as many as fit at once. And other dimensions than the
# last: with neighbours along it in other rows, with its rows split in two, and a matrix that is stored by columns.
ONE_PASS = [
    ((64, 1), 1), ((100, 2), 1), ((300, 10), 1), ((33, 7), 1), ((40, 1000), 1), ((7, 1001), 1), ((3, 4096), 1),
    ((3, 4095), 1), ((5, 5000), 1), ((2, 16384), 1), ((2, 32768), 1), ((3, 32767), 1), ((2, 30001), 1),
    ((300, 40), 0), ((3, 19, 65), 1), ((2, 64, 128), 1), ((5, 1000, 16), 1), ((4, 3, 5, 6), 2), ((2048, 33), 0),
]  # fmt: skip


@pytest.mark.parametrize(("shape", "dim"), ONE_PASS)
@pytest.mark.parametrize("log", [True, False])
def test_each_element_is_read_once_and_written_once(
    sanitized: Sanitized, shape: tuple[int, ...], dim: int, log: bool
) -> None:
    """4 bytes an element of bfloat16 forward, 6 backward, in one launch each."""
    x = normal(np.random.default_rng(0), shape)
    with sanitized() as san:
        y = forward(san, x, dim, log)
        # The backward pass of softmax has to hold both of its arrays.
        fits = shape[dim] <= ((32768 if log else 16384) if dim == len(shape) - 1 else 1024)
        if fits:
            backward(san, x, y, dim, log)
    assert [launch.name for launch in san.launches] == ["softmax_kernel", "softmax_backward_kernel"][: 1 + fits]
    for launch, each in zip(san.launches, (4, 6), strict=False):
        assert launch.read + launch.written == each * x.size


@pytest.mark.parametrize("shape", [(2, 32769), (2, 50257), (1, 1 << 20), (2, 4100, 32)])
def test_longer_rows_are_read_twice(sanitized: Sanitized, shape: tuple[int, ...]) -> None:
    x = normal(np.random.default_rng(0), shape)
    with sanitized() as san:
        y = forward(san, x, 1, True)
        backward(san, x, y, 1, True)  # the sum does without y
        backward(san, x, y, 1, False)
    for launch, each in zip(san.launches, (6, 8, 10), strict=True):  # edges once
        assert each - 0.01 < (launch.read + launch.written) / x.size <= each


@pytest.mark.parametrize(
    ("shape", "dim", "order"),
    [
        ((2, 100, 64), 1, (0, 1, 2)),
        ((256, 128), 0, (0, 1)),
        ((2, 1000, 16), 1, (0, 1, 2)),
        ((1, 3000, 64), 1, (0, 1, 2)),
        ((128, 256), 1, (1, 0)),  # the input lies by columns, the output by rows
    ],
)
def test_other_dimensions_move_in_whole_sectors(
    sanitized: Sanitized, shape: tuple[int, ...], dim: int, order: tuple[int, ...]
) -> None:
    x = on_lines(normal(np.random.default_rng(0), tuple(shape[i] for i in order))).transpose(order)
    y, dx = (on_lines(np.zeros(shape, x.dtype)) for _ in range(2))
    with sanitized() as san:
        forward(san, x, dim, True, out=y)
        backward(san, x, y, dim, True, out=dx)
    for launch in san.launches:
        assert launch.sectors_read == launch.read
        assert launch.sectors_written == launch.written


@pytest.mark.parametrize(
    ("columns", "stride", "vector"),
    [
        (4096, 4096, (8, False)),
        (1000, 1000, (8, False)),
        (4095, 4096, (8, True)),  # ragged, but every row begins on 16 bytes
        (50257, 50257, (8, True)),  # every row begins anywhere
        (10, 10, (2, False)),  # too short for edges
    ],
)
def test_rows_are_cut_into_wide_accesses(
    sanitized: Sanitized, columns: int, stride: int, vector: tuple[int, bool]
) -> None:
    memory, result = (np.zeros((3, stride), DTYPES["bfloat16"]) for _ in range(2))
    with sanitized() as san:
        forward(san, memory[:, :columns], 1, True, out=result[:, :columns])
    constants = san.launches[0].constants
    assert (constants["VECTOR"], constants["EDGES"]) == vector


def test_edges_are_where_all_arrays_have_them() -> None:
    a, b = np.zeros((4, 2001), np.float16), np.zeros((4, 2008), np.float16)[:, :2001]

    def cut(*arrays: np.ndarray) -> rows.Vectors:
        views = [view(x) for x in arrays]
        return rows.vectors_of(2001, rows.rows_of((4,), *(v.strides[:1] for v in views), columns_stride=1), views)

    assert cut(a, a) == (8, True)
    assert cut(b, b) == (8, True)
    assert cut(a, b) == (1, False)  # an element that begins a vector in one is in the middle of one in the other
    assert cut(a[:, 1:]) == (1, False)


@every_order
def test_few_programs_do_all_long_rows(sanitized: Sanitized) -> None:
    """Rows of which one fills a multiprocessor: a program for each, which goes from row to row."""
    x = normal(np.random.default_rng(0), (20, 20_000))
    with sanitized() as san:
        y = forward(san, x, 1, True)
    assert san.launches[0].grid == (8, 1, 1)
    assert san.launches[0].constants["STAGES"] == 2
    assert np.abs(values(y) - truth(x, 1, True)).max() < 0.1


def test_several_short_rows_share_a_program(sanitized: Sanitized) -> None:
    with sanitized() as san:
        forward(san, normal(np.random.default_rng(0), (1000, 16)), 1, True)
    assert san.launches[0].constants["ROWS"] == 256
    assert san.launches[0].grid == (4, 1, 1)


# --- what they refuse -------------------------------------------------------------------------------------------------


def test_other_dtypes_and_shapes_are_refused_before_a_launch(sanitized: Sanitized) -> None:
    x = np.zeros((3, 4), np.float32)
    with sanitized() as san:
        with pytest.raises(TypeError, match=r"softmax: .*float32.*, got x of int64"):
            kernels.softmax(x.astype(np.int64), 1, True, out=x)
        with pytest.raises(TypeError, match=r"softmax_backward: .* got out of int8"):
            kernels.softmax_backward(x, x, 1, True, out=x.astype(np.int8))
        with pytest.raises(ValueError, match=r"softmax: expected out of shape \(3, 4\), got \(4, 3\)"):
            kernels.softmax(x, 1, True, out=x.T)
        endless = np.lib.stride_tricks.as_strided(x, (1, 2**31), (0, 0))
        with pytest.raises(ValueError, match=r"fewer than 2³¹"):
            kernels.softmax(endless, 1, True, out=endless)
    assert san.launches == []


def test_nothing_is_launched_for_nothing(sanitized: Sanitized) -> None:
    with sanitized() as san, tg.backend("triton"):
        for shape in ((0, 4), (3, 0)):
            assert backends.softmax(np.zeros(shape, np.float32), 1, True).shape == shape
            kernels.softmax(np.zeros(shape), 1, True, out=np.zeros(shape))
    assert san.launches == []
