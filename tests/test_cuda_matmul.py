"""The CUDA C++ matrix products and the pass that makes dZ, on the emulator: against float64, and with planted bugs."""

from __future__ import annotations

import ctypes
import functools
import itertools
import re

import matmul_calls
import ml_dtypes
import numpy as np
import planted_matmul
import pytest
import torch
import truth
from matmul_calls import configure, library, run, run_dz

BF16, FP16, FP32, FP64 = map(np.dtype, (ml_dtypes.bfloat16, np.float16, np.float32, np.float64))
HALVES = (BF16, FP16)
TORCH = {BF16: torch.bfloat16, FP16: torch.float16, FP32: torch.float32, FP64: torch.float64}
GATED = ("swiglu", "geglu")
EARLY, LATE, RANDOM = range(3)
# Results for the two variants of the Hopper kernel, several tiles for each block, on a chip of 2 multiprocessors.
NARROW, WIDE = (136, 264), (136, 504)

# Of float32, whose last digits torch gets right for one function and we for another.
SHARE_OF_ONE_FUNCTION = 1.5

tiles, hopper = "call_matmul_tiles", "call_matmul_hopper"


@pytest.fixture(autouse=True)
def plain_schedule() -> None:
    configure(library())
    library().set_multiprocessors(2)


def empty(shape: tuple[int, ...], dtype: np.dtype, *, offset: int = 0) -> np.ndarray:
    """An array of 64-byte aligned memory, or so many elements further on: full of NaN."""
    size = int(np.prod(shape, dtype=int)) * dtype.itemsize
    memory = np.empty(size + 128, np.uint8)
    start = -memory.ctypes.data % 64 + offset * dtype.itemsize
    array = memory[start : start + size].view(dtype).reshape(shape)
    array[...] = np.nan
    return array


def matrix(rng: np.random.Generator, shape: tuple[int, int], dtype: np.dtype, layout: str = "rows") -> np.ndarray:
    """``layout``: contiguous along "rows" or "columns", "strided" along both, or along rows but "misaligned"."""
    if layout == "strided":
        array = empty((2 * shape[0], 3 * shape[1]), dtype)[::2, ::3]
    elif layout == "columns":
        array = empty(shape[::-1], dtype).T
    else:
        array = empty(shape, dtype, offset=int(layout == "misaligned"))
    array[...] = rng.standard_normal(shape).astype(dtype)
    return array


def tensor(array: np.ndarray, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.from_numpy(array.astype(np.float64)).to(dtype)


def assert_as_good_as_torch(ours: np.ndarray, exact: torch.Tensor, torchs: torch.Tensor, share: float = 1.05) -> None:
    """The error on the mean at most this share of torch's own, and nowhere more than twice its largest. What is exact
    is of float64, so a float64 result may have some of its last digits otherwise."""
    assert not np.isnan(ours.astype(np.float64)).any()
    error, torch_error = tensor(ours) - exact, torchs.double() - exact
    digits = 1e-14 * float(exact.square().mean().sqrt())
    mean, torch_mean = float(error.square().mean().sqrt()), float(torch_error.square().mean().sqrt())
    assert mean <= share * torch_mean + digits
    most, torch_most = float(error.abs().max()), float(torch_error.abs().max())
    assert most <= 2 * torch_most + 10 * digits


def check(
    kernel: str, shape: tuple[int, int], depth: int, dtype: np.dtype, *, layouts: tuple[str, str] = ("rows", "rows"),
    activation: str | None = None, bias: bool = True, pre: bool = False, out: str = "rows", wide: bool = False,
    seed: int = 0,
) -> np.ndarray:  # fmt: skip
    """One product, its result and its pre-activation against torch. ``wide``: accumulated in float32."""
    rng = np.random.default_rng(seed)
    rows, columns = shape
    of_b = 2 * columns if activation in GATED else columns
    a, b = matrix(rng, (rows, depth), dtype, layouts[0]), matrix(rng, (of_b, depth), dtype, layouts[1])
    bias_array = matrix(rng, (1, of_b), dtype)[0] if bias else None
    z = matrix(rng, (rows, of_b), dtype, out) if pre else None
    y = matrix(rng, shape, FP32 if wide else dtype, out)
    before = tensor(y)
    error = run(kernel, a, b, y, bias=bias_array, pre=z, activation=activation, accumulate=wide)
    assert error is None, error

    def by_torch(of: torch.dtype, activation: str | None) -> torch.Tensor:
        bias_tensor = None if bias_array is None else tensor(bias_array, of)
        return truth.linear(tensor(a, of), tensor(b, of), bias_tensor, activation)

    exact = by_torch(torch.float64, activation) + (before if wide else 0)
    torchs = by_torch(torch.float32 if wide else TORCH[dtype], activation) + (before.float() if wide else 0)
    assert_as_good_as_torch(y, exact, torchs, SHARE_OF_ONE_FUNCTION if activation else 1.05)
    if z is not None:
        assert_as_good_as_torch(z, by_torch(torch.float64, None), by_torch(TORCH[dtype], None))
    return y


# --- multiply-adds ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [FP32, FP64, BF16, FP16], ids=str)
@pytest.mark.parametrize(
    "layouts", list(itertools.product(("rows", "columns", "strided", "misaligned"), repeat=2)), ids=str
)
def test_tiles_take_any_strides(dtype: np.dtype, layouts: tuple[str, str]) -> None:
    check(tiles, (130, 70), 37, dtype, layouts=layouts, out=layouts[0])


@pytest.mark.parametrize(("shape", "depth"), [((128, 64), 32), ((1, 1), 1), ((5, 130), 0), ((3, 3), 400)], ids=str)
def test_tiles_of_other_sizes(shape: tuple[int, int], depth: int) -> None:
    check(tiles, shape, depth, FP32)
    check(tiles, shape, depth, BF16, bias=False)


@pytest.mark.parametrize("dtype", [FP32, FP64, BF16], ids=str)
@pytest.mark.parametrize("activation", [name for name in truth.ACTIVATIONS if name])
def test_tiles_have_every_activation(activation: str, dtype: np.dtype) -> None:
    check(tiles, (70, 50), 16, dtype, activation=activation, pre=True)


def test_an_empty_result_needs_no_launch() -> None:
    for shape in (0, 5), (5, 0):
        assert run(tiles, empty((shape[0], 3), FP32), empty((shape[1], 3), FP32), empty(shape, FP32)) is None


# --- tensor cores -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("shape", [NARROW, WIDE], ids=("narrow", "wide"))
@pytest.mark.parametrize("layouts", list(itertools.product(("rows", "columns"), repeat=2)), ids=str)
def test_hopper_takes_both_majors(shape: tuple[int, int], layouts: tuple[str, str], dtype: np.dtype) -> None:
    check(hopper, shape, 72, dtype, layouts=layouts)


@pytest.mark.parametrize("activation", [name for name in truth.ACTIVATIONS if name])
@pytest.mark.parametrize("shape", [NARROW, WIDE], ids=("narrow", "wide"))
def test_hopper_has_every_activation(activation: str, shape: tuple[int, int]) -> None:
    dtype = HALVES[shape == WIDE]
    check(hopper, shape, 24, dtype, activation=activation, pre=True)


@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
@pytest.mark.parametrize(("columns", "out"), [(99, "rows"), (104, "misaligned"), (100, "strided"), (100, "columns")])
def test_hopper_stores_what_bulk_copies_cannot(columns: int, out: str, activation: str) -> None:
    check(hopper, (70, columns), 64, BF16, activation=activation, pre=True, out=out)


@pytest.mark.parametrize("out", ["rows", "misaligned", "strided"])
@pytest.mark.parametrize("kernel", [tiles, hopper])
def test_accumulates_in_float32(kernel: str, out: str) -> None:
    check(kernel, (200, 136), 136, BF16, layouts=("columns", "columns"), bias=False, wide=True, out=out)


@pytest.mark.parametrize(("rows", "columns", "depth"), [(1, 1, 8), (64, 32, 8), (129, 8, 200), (8, 257, 520)])
def test_hopper_of_other_sizes(rows: int, columns: int, depth: int) -> None:
    check(hopper, (rows, columns), depth, FP16)


@functools.cache
def in_order() -> dict[tuple[tuple[int, int], int], bytes]:
    """The bytes of results of more slices than there are stages, with the threads and copies in their order."""
    shapes = ((NARROW, 456), (WIDE, 328))
    return {(shape, depth): check(hopper, shape, depth, BF16, activation="gelu").tobytes() for shape, depth in shapes}


@pytest.mark.parametrize("completion", [EARLY, LATE, RANDOM], ids=("early", "late", "random"))
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_hopper_in_any_order(seed: int, completion: int) -> None:
    """The ring goes round, and the bits are the same always."""
    expected = in_order()
    configure(library(), seed, completion)
    for (shape, depth), result in expected.items():
        assert check(hopper, shape, depth, BF16, activation="gelu").tobytes() == result


def test_hopper_says_what_it_takes() -> None:
    def takes(a: np.ndarray, b: np.ndarray, capability: int = 90) -> bool:
        m = matmul_calls.described(a, b, empty((a.shape[0], b.shape[0]), a.dtype))
        return bool(library().call_hopper_takes(ctypes.byref(m), capability))

    a, b = empty((64, 64), BF16), empty((64, 64), BF16)
    row_of_40 = (a[:1, :40], b[:, :40])
    aligned_rows_of_13 = (a[:, :13], b[:, :13])
    assert all(takes(*pair) for pair in ((a, b), (a.T, b), (a, b.T), row_of_40, aligned_rows_of_13))
    strided, rows_of_13, misaligned = a[:, ::2], empty((64, 13), BF16), empty((64, 64), BF16, offset=1)
    no_depth, expanded = empty((64, 0), BF16), np.broadcast_to(a[:1], (64, 64))
    float32 = a.astype(np.float32)
    for pair in (
        (strided, b[:, :32]), (rows_of_13, b[:, :13]), (misaligned, b), (a, misaligned), (no_depth, no_depth),
        (expanded, b), (float32, float32),
    ):  # fmt: skip
        assert not takes(*pair)
    assert not takes(a, b, capability=80)
    assert not takes(a, b, capability=100)


def test_fields_that_do_not_go_together() -> None:
    a, b = empty((8, 8), BF16), empty((8, 8), BF16)
    for out, options, message in (
        (FP64, {}, "in the operands' dtype"),
        (FP32, {"activation": "relu"}, "neither activation nor pre"),
        (BF16, {"accumulate": True}, "to accumulate in float32"),
    ):
        assert message in str(run(tiles, a, b, empty((8, 8), out), **options))
    assert "hopper_takes" in str(run(hopper, a.astype(np.float32), b.astype(np.float32), empty((8, 8), FP32)))


# --- dZ ---------------------------------------------------------------------------------------------------------------


def check_dz(
    shape: tuple[int, int], dtype: np.dtype, activation: str | None, *, layout: str = "rows", want_dz: bool = True,
    want_bias: bool = True, traffic: dict[str, int] | None = None,
) -> tuple[np.ndarray | None, np.ndarray | None]:  # fmt: skip
    rng = np.random.default_rng(0)
    rows, columns = shape
    of_z = 2 * columns if activation in GATED else columns
    grad = matrix(rng, shape, dtype, layout)
    saved = matrix(rng, (rows, of_z), dtype, layout) if activation else None
    dz = empty((rows, of_z), dtype) if want_dz else None
    bias_grad = empty((of_z,), dtype) if want_bias else None
    error = run_dz(grad, saved, activation, dz=dz, bias_grad=bias_grad, traffic=traffic)
    assert error is None, error

    def by_torch(of: torch.dtype) -> torch.Tensor:
        if saved is None:
            return tensor(grad, of)
        z = tensor(saved, of).requires_grad_()
        truth.ACTIVATIONS[activation](z).backward(tensor(grad, of))
        assert z.grad is not None
        return z.grad

    exact, torchs = by_torch(torch.float64), by_torch(TORCH[dtype])
    if dz is not None:
        assert_as_good_as_torch(dz, exact, torchs, SHARE_OF_ONE_FUNCTION)
    if bias_grad is not None:
        # Sums of what has not been rounded yet: no worse than torch's of what it has, and then rounded once.
        assert_as_good_as_torch(bias_grad, exact.sum(0), torchs.sum(0), SHARE_OF_ONE_FUNCTION)
    return dz, bias_grad


@pytest.mark.parametrize("dtype", [FP32, FP64, BF16, FP16], ids=str)
@pytest.mark.parametrize("activation", truth.ACTIVATIONS)
def test_dz_of_every_activation(activation: str | None, dtype: np.dtype) -> None:
    check_dz((37, 72), dtype, activation)


@pytest.mark.parametrize("layout", ["rows", "columns", "strided", "misaligned"])
@pytest.mark.parametrize("activation", ["gelu", "swiglu", None])
def test_dz_takes_any_strides(activation: str | None, layout: str) -> None:
    check_dz((300, 43), BF16, activation, layout=layout)


@pytest.mark.parametrize(("want_dz", "want_bias"), [(True, False), (False, True)])
def test_dz_makes_what_is_asked_for(want_dz: bool, want_bias: bool) -> None:
    check_dz((200, 264), BF16, "silu", want_dz=want_dz, want_bias=want_bias)
    check_dz((200, 264), BF16, None, want_dz=want_dz, want_bias=want_bias)


@pytest.mark.parametrize("shape", [(1, 1), (1300, 24), (3, 1030)], ids=str)
def test_dz_of_other_sizes(shape: tuple[int, int]) -> None:
    check_dz(shape, FP32, "relu")


def test_dz_of_no_rows_has_a_bias_gradient_of_zeros() -> None:
    bias_grad = empty((16,), FP32)
    nothing = empty((0, 16), FP32)
    assert run_dz(empty((0, 8), FP32), nothing, "swiglu", dz=nothing, bias_grad=bias_grad) is None
    assert not bias_grad.any()


def test_dz_reads_and_writes_each_byte_once() -> None:
    traffic = {"grad": 0, "saved": 0, "dz": 0}
    check_dz((256, 512), BF16, "gelu", traffic=traffic)
    assert traffic == {"grad": 256 * 512 * 2, "saved": 256 * 512 * 2, "dz": 256 * 512 * 2}


def test_dz_is_the_same_in_any_order() -> None:
    configure(library())
    expected = check_dz((1100, 40), FP32, "geglu")
    for seed in 1, 2, 3:
        configure(library(), seed)
        for one, other in zip(check_dz((1100, 40), FP32, "geglu"), expected, strict=True):
            np.testing.assert_array_equal(one, other)


# --- planted bugs -----------------------------------------------------------------------------------------------------


def run_planted(name: str, seed: int, completion: int) -> str | None:
    of = matmul_calls.planted()
    configure(of, seed, completion)
    rng = np.random.default_rng(0)
    a, b = matrix(rng, (200, 200), BF16), matrix(rng, (136, 200), BF16)
    bias, pre, y = matrix(rng, (1, 136), BF16)[0], empty((200, 136), BF16), empty((200, 136), BF16)
    error = run(f"run_{name}", a, b, y, of=of, multiprocessors=2, bias=bias, pre=pre, activation="relu")
    exact = truth.linear(tensor(a), tensor(b), tensor(bias), "relu")
    right = bool(((tensor(y) - exact).abs() <= 2.0**-8 * exact.abs() + 1e-3).all())
    return error or (None if right else "wrong")


@pytest.mark.parametrize("completion", [EARLY, LATE, RANDOM], ids=("early", "late", "random"))
def test_without_a_bug_nothing_is_found(completion: int) -> None:
    assert run_planted("sound", 1, completion) is None


@pytest.mark.parametrize("name", planted_matmul.BUGS)
def test_planted_bugs_are_found(name: str) -> None:
    found = [run_planted(name, seed, completion) for seed, completion in ((0, EARLY), (1, LATE), (2, RANDOM))]
    for what in filter(None, found):
        assert re.search(planted_matmul.BUGS[name].found, what), what
    assert any(found)
