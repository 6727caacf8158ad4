"""The CUDA C++ kernels beyond the contract: long rows, what they read and write, and what cannot run.

The contract and the promises run on them with all the other backends. Here, too, they are emulated and watched.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import emulated
import numpy as np
import pytest
from emulated import Schedule
from kinds import DTYPES

import tilegrad as tg
from tilegrad import backends, cuda_kernels, reference
from tilegrad.reference import LossOptions

SIZES = {"bfloat16": 2, "float32": 4, "float64": 8}


@pytest.fixture(autouse=True)
def on_the_emulator(request: pytest.FixtureRequest) -> Iterator[None]:
    with emulated.running(emulated.schedule_of(request.node.name)), tg.backend("cuda"):
        yield


def drawn(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    return np.asarray(3 * rng.standard_normal(shape)).astype(DTYPES[dtype])


# --- traffic ----------------------------------------------------------------------------------------------------------

ROWS = 2


def softmax(rng: np.random.Generator, columns: int, dtype: str, log: bool) -> list[str]:
    backends.softmax(drawn(rng, (ROWS, columns), dtype), 1, log)
    return ["x", "out"]


def softmax_backward(rng: np.random.Generator, columns: int, dtype: str, log: bool) -> list[str]:
    g, y = drawn(rng, (ROWS, columns), dtype), drawn(rng, (ROWS, columns), dtype) * 0 - 1
    backends.softmax_backward(g, y, 1, log)
    return ["grad", "y", "out"]


def cross_entropy(rng: np.random.Generator, columns: int, dtype: str, o: LossOptions, want_grad: bool) -> list[str]:
    z, target = drawn(rng, (ROWS, columns), dtype), rng.integers(0, columns, ROWS)
    backends.cross_entropy(z, target, None, o, want_grad, want_stats=o.label_smoothing > 0)
    return ["logits", *(["grad"] if want_grad else [])]


def cross_entropy_of_probabilities(rng: np.random.Generator, columns: int, dtype: str) -> list[str]:
    z, p = drawn(rng, (ROWS, columns), dtype), rng.random((ROWS, columns)).astype(DTYPES[dtype])
    backends.cross_entropy(z, p, None, LossOptions(), True, False)
    return ["logits", "target", "grad"]


def cross_entropy_backward(rng: np.random.Generator, columns: int, dtype: str) -> list[str]:
    z, target, o = drawn(rng, (ROWS, columns), dtype), rng.integers(0, columns, ROWS), LossOptions("none")
    made = backends.cross_entropy(z, target, None, o, False, False)
    upstream = drawn(rng, (ROWS,), dtype)
    backends.cross_entropy_backward(upstream, z, target, None, made.lse, o, (True, False))
    return ["logits", "grad"]


def nll_loss_backward(rng: np.random.Generator, columns: int, dtype: str) -> list[str]:
    target = rng.integers(0, columns, ROWS)
    backends.nll_loss_backward(drawn(rng, (), dtype), drawn(rng, (ROWS, columns), dtype), target, None, LossOptions())
    return ["grad"]


KERNELS: dict[str, Callable[..., list[str]]] = {
    "log_softmax": lambda *a: softmax(*a, True),
    "softmax": lambda *a: softmax(*a, False),
    "log_softmax_backward": lambda *a: softmax_backward(*a, True),
    "softmax_backward": lambda *a: softmax_backward(*a, False),
    "cross_entropy": lambda *a: cross_entropy(*a, LossOptions("none"), False),
    "cross_entropy with gradient": lambda *a: cross_entropy(*a, LossOptions(), True),
    "cross_entropy with all options": lambda *a: cross_entropy(*a, LossOptions("mean", 1, 0.1, 0.01, 5.0), True),
    "cross_entropy of probabilities": cross_entropy_of_probabilities,
    "cross_entropy_backward": cross_entropy_backward,
    "nll_loss_backward": nll_loss_backward,
}


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("columns", [65536, 131072, 262144])
@pytest.mark.parametrize("kernel", KERNELS)
def test_long_rows_are_read_once_and_written_once(kernel: str, columns: int, dtype: str) -> None:
    large = KERNELS[kernel](np.random.default_rng(columns), columns, dtype)
    moved = {name: emulated.traffic(name) for name in emulated.watched()}
    total = sum(t.bytes_read + t.bytes_written for t in moved.values())
    least = len(large) * ROWS * columns * SIZES[dtype]
    assert total / least == pytest.approx(1, abs=2e-3), {n: (t.bytes_read, t.bytes_written) for n, t in moved.items()}
    for name in large:
        t = moved[name]
        assert t.bytes_read + t.bytes_written == t.distinct_read + t.distinct_written == ROWS * columns * SIZES[dtype]


def test_what_does_not_fit_on_the_chip_is_read_again_and_right() -> None:
    """Rows longer than a block's shared memory on a chip without clusters."""
    columns, rng = 100_001, np.random.default_rng(3)
    x = drawn(rng, (ROWS, columns), "float32")
    with emulated.running(Schedule(1, "random", 80)):
        out = backends.softmax(x, 1, True)
        read = emulated.traffic("x").bytes_read
        grad = backends.softmax_backward(x, out, 1, True)
    assert ROWS * columns * 4 < read < 3 * ROWS * columns * 4  # three times, but for what is held
    expected, of_input = np.empty_like(x), np.empty_like(x)
    reference.softmax(x, 1, True, out=expected)
    np.testing.assert_allclose(out, expected, rtol=1e-6)
    reference.softmax_backward(x, expected, 1, True, out=of_input)
    np.testing.assert_allclose(grad, of_input, rtol=1e-4, atol=2e-3)


# --- all lengths ------------------------------------------------------------------------------------------------------

# One lane, several; a warp's, ragged; a block's; a cluster's of 2, 4, 8 and 16 blocks, and more than they hold.
LENGTHS = [
    1,
    2,
    3,
    7,
    8,
    31,
    33,
    127,
    255,
    257,
    1000,
    1023,
    2049,
    4096,
    5003,
    32768,
    32771,
    50257,
    128256,
    262147,
    524288,
]


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
@pytest.mark.parametrize("columns", LENGTHS)
def test_rows_of_every_length_that_begin_anywhere(columns: int, dtype: str) -> None:
    rng = np.random.default_rng(columns)
    rows = 5 if columns < 5000 else 1 if columns > 100_000 else 2
    room = drawn(rng, (rows * columns + 3,), dtype)
    z = room[3:].reshape(rows, columns)  # not on 16 bytes
    target, o = rng.integers(0, columns, rows), LossOptions("none")
    made = backends.cross_entropy(z, target, None, o, False, True)
    (grad, _) = backends.cross_entropy_backward(np.ones(rows, z.dtype), z, target, None, made.lse, o, (True, False))
    loss, lse, argmax, of_logits = np.empty(rows), np.empty((2, rows)), np.empty(rows, np.int64), np.empty(z.shape)
    reference.cross_entropy(z, target, None, o, loss=loss, lse=lse, argmax=argmax, grad=of_logits, flag=None)
    eps = {"bfloat16": 2.0**-8, "float32": 1e-6, "float64": 1e-13}[dtype]
    np.testing.assert_allclose(made.loss.astype(np.float64), loss, rtol=4 * eps, atol=8 * eps)
    np.testing.assert_allclose(
        backends.logsumexp_of(made.lse), lse[0] + lse[1], atol=1e-13 if dtype == "float64" else 1e-5
    )
    np.testing.assert_array_equal(made.argmax, argmax)
    np.testing.assert_allclose(grad.astype(np.float64), of_logits, rtol=4 * eps, atol=4 * eps * np.abs(of_logits).max())
    logp = backends.softmax(z, 1, True)
    np.testing.assert_allclose(
        logp.astype(np.float64), z.astype(np.float64) - (lse[0] + lse[1])[:, None], rtol=2 * eps, atol=4 * eps
    )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("columns", [12, 700, 40_000])
def test_large_logits_lose_nothing(columns: int, dtype: str) -> None:
    z = np.full((3, columns), -10_000).astype(DTYPES[dtype])
    z[:, ::5] = np.float32(z[0, 0]) + 20_096  # a multiple of each dtype's step there
    z[0, 0] = z[1, 5] = 8192
    made = backends.cross_entropy(z, np.full(3, 10), None, LossOptions("none"), False, True)
    largest = np.sum(z == z.max(1, keepdims=True), 1)
    np.testing.assert_allclose(made.lse[1], np.log(largest), rtol=2e-6)
    np.testing.assert_allclose(
        made.loss.astype(np.float64), np.log(largest), rtol=2.0**-7 if dtype == "bfloat16" else 1e-3
    )
    np.testing.assert_allclose(backends.softmax(z, 1, False)[2, 0].astype(np.float64), 1 / largest[2], rtol=2.0**-8)


@pytest.mark.parametrize("shape", [(3, 5000, 7), (2, 300, 33), (1, 70000, 3), (40, 129, 1)])
def test_classes_that_are_not_the_last_dimension(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(1)
    x = drawn(rng, shape, "float32")
    out, expected = backends.softmax(x, 1, False), np.empty(shape)
    t = emulated.traffic("x")
    assert t.bytes_read == t.distinct_read == x.nbytes
    reference.softmax(x, 1, False, out=expected)
    np.testing.assert_allclose(out, expected, rtol=2e-6, atol=1e-9)


# --- several launches -------------------------------------------------------------------------------------------------


def test_linear_cross_entropy_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The chunks' parts add up to what one chunk makes, whatever the reduction."""
    rng = np.random.default_rng(7)
    x, w = drawn(rng, (11, 6), "float32"), drawn(rng, (9, 2, 6), "float32")
    b, target = drawn(rng, (9, 2), "float32"), rng.integers(0, 9, (11, 2))
    target[4] = -100
    for reduction in ("mean", "sum", "none"):
        o = LossOptions(reduction, -100, 0.1, 0.01, 5.0)
        needs = (reduction != "none",) * 3 + (False,)
        whole = backends.linear_cross_entropy(x, w, b, target, None, o, needs, True)
        monkeypatch.setattr(cuda_kernels, "LOGITS", 3 * 9 * 4)  # 3 samples
        parts = backends.linear_cross_entropy(x, w, b, target, None, o, needs, True)
        monkeypatch.undo()
        for one, other in zip([*whole[:3], *whole[3]], [*parts[:3], *parts[3]], strict=True):
            assert (one is None) == (other is None)
            if one is not None:
                np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


# --- what cannot run --------------------------------------------------------------------------------------------------


def test_arrays_of_the_cpu_are_refused_where_nothing_is_emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    class NotEmulated:
        emulated, softmax = False, None

    monkeypatch.setattr(cuda_kernels, "_C", NotEmulated())
    with pytest.raises(RuntimeError, match=r"need arrays on a GPU, got numpy\.ndarray in memory of the CPU"):
        cuda_kernels.softmax(np.zeros((2, 3)), 1, True, out=np.empty((2, 3)))


def test_a_build_without_the_kernels_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_kernels, "_C", None)
    with (
        pytest.raises(RuntimeError, match=r"backend 'cuda' cannot run: .* build it where nvcc is found"),
        tg.backend("cuda"),
    ):
        pass


@pytest.mark.parametrize(
    ("dtype", "message"), [(np.complex64, "complex64"), (np.dtype("U3"), "U3")], ids=["complex", "text"]
)
def test_dtypes_that_no_kernel_takes(dtype: Any, message: str) -> None:
    with pytest.raises(TypeError, match=f"the CUDA C\\+\\+ kernels take .*, got .*{message}"):
        backends.softmax(np.zeros((2, 3), dtype), 1, True)


def test_an_old_chip_is_refused() -> None:
    with (
        emulated.running(Schedule(0, "early", 75)),
        pytest.raises(RuntimeError, match=r"need compute capability 8\.0 or newer, got 7\.5"),
    ):
        backends.softmax(np.zeros((2, 3)), 1, True)


def test_more_columns_than_31_bits_count_are_refused() -> None:
    x = np.broadcast_to(np.float32(0), (1, 2**31))
    with pytest.raises(ValueError, match="expected fewer than 2147418111 columns, got 2147483648"):
        cuda_kernels.softmax(x, 1, True, out=x)
    assert math.prod(x.shape) == 2**31


def test_more_rows_than_a_grid_has_blocks_are_refused() -> None:
    x = np.broadcast_to(np.float32(0), (2**31, 5000))
    with pytest.raises(ValueError, match="the launch of softmax: expected at most 2147483647 blocks, got 2147483648"):
        cuda_kernels.softmax(x, 1, True, out=x)
